"""Where things are on the admin's pages, in a real browser, on whichever Django this is: below the heading, wide, whole.

Clicks and axe are content with a panel that is squeezed into a column of 70 pixels: these are not.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User

from example_project import chromium
from pgwerk_django.models import Job, Queue, Schedule, Status
from tests.test_admin import make, page_of
from tests.test_admin_browser import LIST, NARROW, OVERVIEW, WIDE, Browser, full  # noqa: F401  a fixture

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(bool(chromium.MISSING), reason=chromium.MISSING),
]

# What may be wrong with a page of ours, in the browser's own words.
JUDGE = r"""
const narrow = innerWidth < 768;
const content = document.querySelector("#content");
const style = getComputedStyle(content);
const room = content.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
const heading = document.querySelector("#content h1").getBoundingClientRect();
const wrong = [];
const name = (each) => each.tagName.toLowerCase() + (each.id ? "#" + each.id : "") + [...each.classList].map((c) => "." + c).join("");
const seen = (each) => each.checkVisibility() && each.getBoundingClientRect().width > 0;
const all = (css) => [...document.querySelectorAll(css)].filter(seen);

for (const each of all(".pgwerk-panel, .pgwerk-actions, .pgwerk-readonly, .pgwerk-overview, .pgwerk-confirm")) {
    const box = each.getBoundingClientRect();
    if (box.top < heading.bottom) wrong.push(`${name(each)} begins at ${box.top}, above the end of the heading at ${heading.bottom}`);
    if (box.width < 0.9 * room) wrong.push(`${name(each)} is ${box.width} wide where there is room for ${room}`);
}
for (const each of all(".pgwerk-panel .module")) {
    const box = each.getBoundingClientRect();
    if (box.width < (narrow ? 0.9 : 0.3) * room) wrong.push(`a module of the panel is ${box.width} wide where there is room for ${room}`);
}
for (const each of all(".pgwerk-overview > section, .pgwerk-overview .pgwerk-halves section")) {
    const box = each.getBoundingClientRect();
    if (box.width < (narrow ? 0.9 : 0.4) * room) wrong.push(`${name(each)} is ${box.width} wide where there is room for ${room}`);
}
// What reaches out of the content, or out of a box that neither scrolls nor lets it show.
for (const each of all("#content *:not(svg *)")) {
    const box = each.getBoundingClientRect();
    const scrolls = each.closest(".pgwerk-scroll, .pgwerk-pre, .results, .changelist-form-container, #changelist, .visually-hidden");
    const end = Math.min(innerWidth, content.getBoundingClientRect().right);
    if (!scrolls && box.right > end + 1) wrong.push(`${name(each)} ends at ${box.right}, where the content ends at ${end}`);
    if (!scrolls && !/^(tr|td|th|tbody|thead|table|input|textarea|select|option)$/i.test(each.tagName)
        && each.scrollWidth > each.clientWidth + 2 && each.clientWidth && getComputedStyle(each).overflowX === "hidden") {
        wrong.push(`${name(each)} is cut off`);
    }
}
// No button lies on another one, or on the heading.
const buttons = all("#content :is(button, .button, input[type=submit], .object-tools a, summary)");
for (const [place, one] of buttons.entries()) {
    for (const other of [...buttons.slice(place + 1), document.querySelector("#content h1")]) {
        const [a, b] = [one.getBoundingClientRect(), other.getBoundingClientRect()];
        if (one.contains(other) || other.contains(one)) continue;
        const text = document.createRange();
        text.selectNodeContents(other);
        const c = other.tagName === "H1" ? text.getBoundingClientRect() : b;
        if (a.left < c.right - 1 && c.left < a.right - 1 && a.top < c.bottom - 1 && c.top < a.bottom - 1) {
            wrong.push(`${name(one)} "${one.innerText}" lies on ${name(other)} "${other.innerText}"`);
        }
    }
}
// Glued together: buttons in one row have a gap.
for (const [place, one] of buttons.entries()) {
    for (const other of buttons.slice(place + 1)) {
        const [a, b] = [one.getBoundingClientRect(), other.getBoundingClientRect()];
        const beside = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4;
        if (beside && Math.abs(b.left - a.right) < 2) wrong.push(`"${one.innerText}" is glued to "${other.innerText}"`);
    }
}
// The trail is Django's own, on its own ground, from edge to edge.
const trail = document.querySelector(".breadcrumbs");
const ground = getComputedStyle(trail).backgroundColor;
const bar = trail.getBoundingClientRect();
if (ground === "rgba(0, 0, 0, 0)") wrong.push("the breadcrumbs have no ground");
if (bar.width < 0.98 * innerWidth || bar.height < 25) wrong.push(`the breadcrumbs are ${bar.width} by ${bar.height}`);
const inBar = getComputedStyle(trail.querySelector("a")).color;
if (inBar === ground) wrong.push("the breadcrumbs cannot be read");
const text = trail.innerText.replace(/\s+/g, " ");
if ((text.match(/›/g) || []).length < 2 && trail.tagName !== "OL") wrong.push(`the breadcrumbs are no trail: ${text}`);
return {wrong, trail: trail.tagName, crumbs: trail.querySelectorAll("a").length};
"""


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium.chromium() as started:
        yield started


@pytest.fixture
def anna(driver: Any, live_server: Any) -> Browser:
    browser = Browser(driver, live_server.url)
    browser.log_in(User.objects.create_superuser("anna"))
    return browser


def judge(browser: Browser) -> dict[str, Any]:
    found: dict[str, Any] = browser.driver.execute_script(JUDGE)
    return found


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_nothing_is_squeezed_cut_or_covered(anna: Browser, full: dict[str, str], size: tuple[int, int]) -> None:  # noqa: F811
    """Each page of ours, and a question that is open."""
    chromium.resize(anna.driver, *size)
    chromium.prefer(anna.driver, "light")
    Schedule.objects.filter(name="paused").update(origin="code")  # a note above the buttons
    wrong = {}
    for name, url in full.items():
        anna.open(url)
        found = judge(anna)
        if anna.all(".pgwerk-ask"):
            anna.driver.execute_script("document.querySelector('.pgwerk-ask').open = true")
            found["wrong"] += [f"while a question is open: {each}" for each in judge(anna)["wrong"]]
        if found["wrong"]:
            wrong[name] = found["wrong"]
    assert wrong == {}


def test_what_has_to_be_below_the_heading_is_there(anna: Browser, full: dict[str, str]) -> None:  # noqa: F811
    """Once each: no block of a template is missing, and none is drawn twice."""
    chromium.resize(anna.driver, *WIDE)
    for name, css in (
        ("schedule", ".pgwerk-panel"),
        ("schedule", ".pgwerk-actions"),
        ("queue", ".pgwerk-actions"),
        ("running", ".pgwerk-actions"),
    ):
        anna.open(full[name])
        assert len(anna.all(css)) == 1, (name, css)


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_pages_that_ask(anna: Browser, size: tuple[int, int]) -> None:
    """The confirmation of an action, and Django's own of a deletion, whose breadcrumbs ours are like."""
    chromium.resize(anna.driver, *size)
    rows = [make("a" * 180), make("b")]
    Job.objects.create(status=Status.READY)
    Queue.objects.create(name="mail")
    trails = set()
    for url, action in (
        (LIST, "pause"),
        ("/admin/pgwerk_django/job/", "cancel"),
        ("/admin/pgwerk_django/queue/", "pause"),
        (LIST, "delete_selected"),
    ):
        anna.open(url)
        anna.driver.execute_script(
            "document.querySelectorAll('input.action-select').forEach((each) => { each.checked = true; });"
            "document.querySelector('[name=action]').value = arguments[0]; document.querySelector('#changelist-form').submit()",
            action,
        )
        anna.sees("No, take me back")
        found = judge(anna)
        assert found["wrong"] == [], (url, action)
        trails.add((found["trail"], found["crumbs"]))
    assert len(trails) == 1
    anna.open(OVERVIEW)
    assert judge(anna)["trail"] == next(iter(trails))[0]
    anna.open(page_of(rows[1]))
    assert judge(anna)["trail"] == next(iter(trails))[0]
