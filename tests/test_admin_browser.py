"""The admin in a real browser: headless Chromium, a live server, a real scheduler and a real worker."""

import contextlib
import datetime as dt
import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
import pytest
from django.contrib.auth.models import User
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.handlers.wsgi import WSGIHandler
from django.db import connections
from django.db.models.functions import Now
from django.test import Client
from selenium.webdriver.common.by import By

from example_project import chromium
from pgwerk_django.jobs import pause_queue
from pgwerk_django.models import Job, Origin, Process, Queue, Schedule, Status
from pgwerk_django.registry import registry
from pgwerk_django.registry import schedule as declare
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.worker import Worker
from tests import functions
from tests.test_admin import XSS, make, make_job, page_of, user
from tests.waiting import wait_until

AXE = Path(__file__).parent.parent / ".browser" / "node_modules" / "axe-core" / "axe.min.js"
LIST = "/admin/pgwerk_django/schedule/"
OVERVIEW = "/admin/pgwerk_django/overview/"
WIDE, NARROW = (1440, 900), (390, 844)

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(bool(chromium.MISSING), reason=chromium.MISSING),
]


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium.chromium() as started:
        yield started


class Browser:
    """A person at the browser; what the console complained of is checked when they leave."""

    def __init__(self, driver: Any, root: str) -> None:
        self.driver, self.root = driver, root

    def log_in(self, person: User) -> None:
        client = Client()
        client.force_login(person)
        self.driver.get(f"{self.root}/admin/login/")
        self.driver.add_cookie({"name": "sessionid", "value": client.cookies["sessionid"].value})
        self.driver.execute_script("sessionStorage.clear()")  # it outlives the test: there a refresh was stopped

    def open(self, url: str) -> None:
        self.driver.get(self.root + url)

    def find(self, css: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[Any]:
        return list(self.driver.find_elements(By.CSS_SELECTOR, css))

    def run(self, script: str) -> Any:
        return self.driver.execute_script(f"return {script}")

    @property
    def text(self) -> str:
        return str(self.run("document.body ? document.body.innerText : ''"))

    def sees(self, text: str) -> None:
        """Also on the page that is still on its way."""
        wait_until(lambda: text in self.text)

    def ask(self, action: str, reason: str = "") -> None:
        """Open the question of a button on a schedule's page, and answer it."""
        self.find(f".pgwerk-ask:has(button[value={action}]) summary").click()
        self.find(f".pgwerk-ask[open] form:has(button[value={action}]) input[name=reason]").send_keys(reason)
        self.find(f".pgwerk-ask[open] button[value={action}]").click()

    def complaints(self) -> list[str]:
        """Of scripts, styles and the security policy; a missing icon is none."""
        return [entry["message"] for entry in self.driver.get_log("browser") if "favicon" not in entry["message"]]


@pytest.fixture
def more_middleware(live_server: Any, settings: Any) -> Iterator[Any]:
    """A function that adds one. The server has read the setting long before a test changes it, so it is given a new handler."""
    server = live_server.thread.httpd
    before = server.get_app()

    def add(path: str) -> None:
        settings.MIDDLEWARE = [*settings.MIDDLEWARE, path]
        server.set_app(StaticFilesHandler(WSGIHandler()))

    yield add
    server.set_app(before)


def policy_of(live_server: Any) -> str:
    with urllib.request.urlopen(f"{live_server.url}/admin/login/") as response:
        return str(response.headers["Content-Security-Policy"])


@pytest.fixture
def anna(driver: Any, live_server: Any, more_middleware: Any) -> Iterator[Browser]:
    """An administrator, whose browser is told to obey a strict Content-Security-Policy."""
    more_middleware("tests.test_admin_browser.strict")
    assert policy_of(live_server).startswith("default-src 'self'")
    browser = Browser(driver, live_server.url)
    browser.log_in(User.objects.create_superuser("anna"))
    browser.complaints()
    chromium.resize(driver, *WIDE)
    chromium.prefer(driver, "light")
    yield browser
    found = browser.complaints()
    driver.get("about:blank")
    driver.delete_all_cookies()
    assert found == []


def strict(get_response: Any) -> Any:
    def respond(request: Any) -> Any:
        response = get_response(request)
        response["Content-Security-Policy"] = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"
        return response

    return respond


@contextlib.contextmanager
def at_work() -> Iterator[None]:
    """A scheduler and a worker, each in a thread of its own, until the test is over."""
    services: list[Any] = [Scheduler(), Worker(concurrency=1)]
    failed: list[BaseException] = []

    def run(service: Any) -> None:
        try:
            service.run()
        except BaseException as error:  # noqa: BLE001  # told to the test below
            failed.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(service,)) for service in services]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: Process.objects.count() == 2)
        yield
    finally:
        for service in services:
            service.stop()
        for thread in threads:
            thread.join(20)
    assert not failed
    assert not any(thread.is_alive() for thread in threads)


def test_pause_resume_and_trigger_by_clicks(anna: Browser) -> None:
    declare(interval=3600, _name="hourly", args=[1])(functions.add)
    with at_work():
        row = Schedule.objects.get()
        anna.open(page_of(row))
        anna.ask("pause", "stocktaking")
        anna.sees("1 schedule was paused.")
        anna.sees("by anna: stocktaking")
        # Its due time comes and goes.
        Schedule.objects.filter(pk=row.pk).update(next_run_at=Now() - dt.timedelta(seconds=1))
        other = make("other", origin=Origin.API)
        Schedule.objects.filter(pk=other.pk).update(next_run_at=Now())
        wait_until(lambda: Job.objects.filter(schedule_name=other.name).exists())
        assert not Job.objects.filter(schedule_name="hourly").exists()
        anna.open(page_of(row))
        anna.ask("resume", "all counted")
        anna.sees("1 schedule was resumed.")
        anna.ask("trigger", "to be sure")
        anna.sees("1 schedule was triggered.")
        done = Job.objects.filter(schedule_name="hourly", status=Status.SUCCESSFUL)
        wait_until(done.exists)
        assert (done.get().kind, done.get().result) == ("trigger", 1)
        anna.open(page_of(row))
        anna.sees("Successful")
        anna.sees("Triggered: to be sure")
        anna.sees("Nothing is in its way")


def test_a_double_click_triggers_once(anna: Browser) -> None:
    row = make()
    anna.open(page_of(row))
    anna.find(".pgwerk-ask:has(button[value=trigger]) summary").click()
    button = "document.querySelector('.pgwerk-ask[open] button[value=trigger]')"
    anna.driver.execute_script(f"const button = {button}; button.click(); button.click();")
    anna.sees("1 schedule was triggered.")
    assert Schedule.objects.get(pk=row.pk).triggered_by == "anna"
    assert anna.text.count("Triggered.") == 1


def test_the_question_is_for_keyboards_too(anna: Browser) -> None:
    anna.open(page_of(make()))
    anna.find(".pgwerk-ask summary").send_keys("\ue007")  # Enter
    wait_until(lambda: anna.run("document.activeElement.name") == "reason")
    anna.driver.switch_to.active_element.send_keys("\ue00c")  # Escape
    assert anna.all(".pgwerk-ask[open]") == []
    assert anna.run("document.activeElement.tagName") == "SUMMARY"


def test_the_form_previews_while_one_types(anna: Browser, settings: Any) -> None:
    settings.PGWERK = {"AUTODISCOVER": (), "ALLOWED_FUNCTIONS": ["tests.functions.*"]}
    anna.open(f"{LIST}add/")
    said = lambda: str(anna.run("document.querySelector('#pgwerk-preview').innerText"))  # noqa: E731
    anna.find("[name=cron]").send_keys("0 9 * * mon-fri")
    wait_until(lambda: "At 09:00 on weekdays" in said())
    assert len(anna.all("#pgwerk-preview li")) == 5
    anna.find("[name=cron]").clear()
    anna.find("[name=cron]").send_keys("61 * * * *")
    wait_until(lambda: "61" in said())
    anna.find("[name=cron]").clear()
    anna.find("[name=interval]").send_keys("30")
    wait_until(lambda: "more often than each minute" in said())
    anna.find("[name=function]").send_keys("tests.functions.add")
    wait_until(lambda: "add(a: int, b: int = 0)" in said())
    anna.find("[name=args]").clear()
    anna.find("[name=args]").send_keys("[1]")
    anna.find("[name=name]").send_keys("mine")
    anna.find("[name=_save]").click()
    anna.sees("was added successfully")
    assert Schedule.objects.get().interval == 30


@pytest.fixture
def quick(driver: Any) -> Iterator[None]:
    """The overview looks again at once, not after ten seconds."""
    source = "{ const plain = setTimeout; window.setTimeout = (call, delay) => plain(call, Math.min(delay, 50)); }"
    added = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
    yield
    driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


@pytest.mark.usefixtures("quick")
def test_the_overview_refreshes_and_keeps_scroll_and_focus(anna: Browser) -> None:
    for number in range(12):
        make(f"s{number}")
    anna.open(OVERVIEW)
    anna.find("#pgwerk-next a")
    # In one go: what is found may be replaced by the next look.
    href = anna.driver.execute_script(
        "const link = document.querySelector('#pgwerk-next a'); link.focus(); window.scrollTo(0, 200); return link.href"
    )
    before = anna.run("window.scrollY")
    Process.objects.create(role="scheduler", host="web-9")
    make_job("failing", status=Status.FAILED, queue="fresh")
    make("failing")
    anna.sees("web-9")
    wait_until(lambda: "failing" in anna.run("document.querySelector('#pgwerk-failing').innerText"))
    assert anna.run("document.activeElement.href") == href
    assert anna.run("window.scrollY") == before


@pytest.mark.usefixtures("quick")
def test_the_overview_asks_nothing_while_hidden_or_stopped(anna: Browser) -> None:
    anna.open(OVERVIEW)
    looks = lambda: int(anna.run("document.querySelector('.pgwerk-overview').dataset.looks || 0"))  # noqa: E731
    wait_until(lambda: looks() > 1)
    hide = "Object.defineProperty(document, 'hidden', {configurable: true, get: () => %s}); document.dispatchEvent(new Event('visibilitychange'))"
    anna.driver.execute_script(hide % "true")
    # What was asked before is answered; then it is silent. The console's own timers tell the time.
    anna.driver.execute_async_script("const done = arguments[0]; fetch(location.href).then(() => done())")
    silent = looks()
    for _ in range(5):
        anna.driver.execute_async_script("const done = arguments[0]; fetch(location.href).then(() => done())")
    assert looks() <= silent + 1
    anna.driver.execute_script(hide % "false")
    wait_until(lambda: looks() > silent + 1)
    anna.find(".pgwerk-refresh button").click()
    assert anna.find(".pgwerk-refresh button").text == "Refresh by itself"


def test_the_timeline_is_zoomed(anna: Browser) -> None:
    anna.open(OVERVIEW)
    assert anna.find(".pgwerk-spans [aria-current]").text == "24h"
    anna.find(".pgwerk-spans a[href*='7d']").click()
    assert anna.find(".pgwerk-spans [aria-current]").text == "7d"


def test_who_may_only_look_sees_no_buttons(anna: Browser) -> None:
    row = make()
    anna.log_in(user("victor", "view_schedule", "view_job", "view_process"))
    anna.open(page_of(row))
    anna.sees("hourly")
    assert anna.all(".pgwerk-ask") == anna.all("#content [type=submit]") == []
    anna.open(LIST)
    assert anna.all("[name=action]") == []


@pytest.fixture
def full(settings: Any) -> dict[str, str]:
    """The pages, with something of each kind on them."""
    settings.PGWERK = {"AUTODISCOVER": (), "ALLOWED_FUNCTIONS": ["tests.functions.*"]}
    row, paused, broken = make(), make("paused"), make("broken")
    Schedule.objects.filter(pk=paused.pk).pause(by="bob", reason="stocktaking")
    Schedule.objects.filter(pk=broken.pk).update(error="ValueError: no", next_run_at=None)
    now = dt.datetime.now(dt.UTC)
    for number, status in enumerate([*Status.values, "SUCCESSFUL", "FAILED"] * 2):
        due = now - dt.timedelta(minutes=30 - number)
        job = make_job(
            due_at=due, status=status, schedule=row, started_at=due, finished_at=due + dt.timedelta(seconds=3), claims=1,
            kwargs={"token": "x"}, error="Traceback" * 2000 if status == "FAILED" else "", reason=XSS,
            progress={"done": 1, "total": 2, "note": "half"},
        )  # fmt: skip
    running = Job.objects.filter(status=Status.RUNNING)[0]
    Process.objects.create(role="scheduler", host="web-1", stats={"clock": 0})
    pause_queue("mail", by="bob", reason="the provider is down")
    mail = Queue.objects.get(name="mail")
    registry.clear()
    return {
        "overview": OVERVIEW,
        "schedules": LIST,
        "schedule": page_of(row),
        "paused": page_of(paused),
        "add": f"{LIST}add/",
        "jobs": "/admin/pgwerk_django/job/",
        "job": f"/admin/pgwerk_django/job/{job.pk}/change/",
        "running": f"/admin/pgwerk_django/job/{running.pk}/change/",
        "queues": "/admin/pgwerk_django/queue/",
        "queue": f"/admin/pgwerk_django/queue/{mail.pk}/change/",
        "processes": "/admin/pgwerk_django/process/",
    }


@pytest.mark.skipif(not AXE.exists(), reason="no axe-core here: make fetches it where there is npm")
@pytest.mark.parametrize(("size", "scheme"), [(WIDE, "light"), (NARROW, "dark")])
def test_axe_finds_nothing_serious(anna: Browser, full: dict[str, str], scheme: str, size: tuple[int, int]) -> None:
    chromium.resize(anna.driver, *size)
    chromium.prefer(anna.driver, scheme)
    found = {}
    for name, url in full.items():
        anna.open(url)
        anna.driver.execute_script(AXE.read_text())
        result = anna.driver.execute_async_script(
            "const done = arguments[0]; axe.run({include: ['#content'], exclude: ['#toolbar']}).then(done)"
        )  # without Django's own search bar
        serious = [each for each in result["violations"] if each["impact"] in ("serious", "critical")]
        ours = [
            f"{each['id']}: {node['html'][:160]}: {node['failureSummary'][:200]}"
            for each in serious
            for node in each["nodes"]
        ]
        if ours:
            found[name] = ours
    assert not found, json.dumps(found, indent=1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_needs_no_scrolling_sideways(anna: Browser, full: dict[str, str], scheme: str) -> None:
    chromium.resize(anna.driver, *NARROW)
    chromium.prefer(anna.driver, scheme)
    for name, url in full.items():
        anna.open(url)
        assert anna.run("document.documentElement.scrollWidth") <= NARROW[0], name
    ground = anna.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(18, 18, 18)")


def test_right_to_left(anna: Browser, full: dict[str, str], settings: Any) -> None:
    settings.LANGUAGE_CODE = "ar"
    for name, url in full.items():
        anna.open(url)
        assert anna.run("document.documentElement.dir") == "rtl"
        assert anna.run("document.documentElement.scrollWidth") <= WIDE[0], name


# -- a policy with nonces alone: Django's own pages have them since 6.1


WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
    window.violations.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sourceFile}:${event.lineNumber} ${event.sample}`);
});
"""
POLICIES = {
    "self": {"default-src": ["'self'"], "img-src": ["'self'", "data:"]},
    "nonces": {
        "default-src": ["'self'"], "img-src": ["'self'", "data:"], "script-src": ["<CSP_NONCE_SENTINEL>"],
        "style-src": ["<CSP_NONCE_SENTINEL>"],
    },
}  # fmt: skip


@pytest.fixture
def watched(driver: Any, live_server: Any, settings: Any, more_middleware: Any) -> Iterator[Browser]:
    """A browser that notes each violation of the policy from the first line of a page on."""
    more_middleware("django.middleware.csp.ContentSecurityPolicyMiddleware")
    template = settings.TEMPLATES[0]
    processors = [*template["OPTIONS"]["context_processors"], "django.template.context_processors.csp"]
    settings.TEMPLATES = [{**template, "OPTIONS": {"context_processors": processors}}]
    browser = Browser(driver, live_server.url)
    added = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
    browser.log_in(User.objects.create_superuser("anna"))
    chromium.resize(driver, *WIDE)
    yield browser
    driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    browser.complaints()
    driver.get("about:blank")
    driver.delete_all_cookies()


@pytest.mark.skipif(django.VERSION < (6, 1), reason="before 6.1 Django's own admin pages have no nonces")
@pytest.mark.parametrize("policy", POLICIES)
def test_no_page_violates_a_content_security_policy(
    watched: Browser, live_server: Any, full: dict[str, str], settings: Any, policy: str
) -> None:
    settings.SECURE_CSP = POLICIES[policy]
    assert ("'nonce-" in policy_of(live_server)) == (policy == "nonces")
    found = {}

    def note(name: str) -> None:
        if violations := watched.run("window.violations"):
            found[name] = violations

    for name, url in full.items():
        watched.open(url)
        note(name)
        if name == "overview":
            assert watched.all(".pgwerk-refresh button")  # its script has run
            assert watched.run("getComputedStyle(document.querySelector('.pgwerk-tiles')).display") != "block"
        if name == "add":
            watched.find("[name=cron]").send_keys("0 9 * * mon-fri")
            wait_until(lambda: "At 09:00 on weekdays" in watched.text)
            note("preview")
    asked = {
        LIST: ("pause", "resume", "trigger"),
        "/admin/pgwerk_django/job/": ("cancel", "retry"),
        "/admin/pgwerk_django/queue/": ("pause",),
    }
    for url, actions in asked.items():
        for action in actions:
            watched.open(url)
            watched.driver.execute_script(
                "const form = document.querySelector('#changelist-form');"
                "form.insertAdjacentHTML('beforeend', '<input name=reason><input name=post value=yes>');"
                "form.querySelector('[name=reason]').value = 'x'.repeat(600);"  # too long: asked again
                "form.querySelector('input.action-select').checked = true;"
                "form.querySelector('[name=action]').value = arguments[0]; form.submit()",
                action,
            )
            watched.sees("No, take me back")
            note(f"{url} {action}")
            assert (
                watched.run("getComputedStyle(document.querySelector('.pgwerk-confirm input[type=text]')).boxSizing")
                == "border-box"
            )
    assert found == {}
