"""Cron expressions and names of zones as hostile text: refused with one clear line, or due, by every door, after little work."""

import functools
import io
import json
import re
import sys
import zoneinfo
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from django.utils import translation
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pgwerk_django import cron, importers
from pgwerk_django.admin.preview import preview
from pgwerk_django.admin.words import recurrence_in_words
from pgwerk_django.exceptions import shown
from pgwerk_django.importers import json_file
from pgwerk_django.models import Job, Schedule
from pgwerk_django.recurrence import Cron
from pgwerk_django.registry import define, read_options, registry, schedule
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.tick import tick
from tests import cron_oracle, functions
from tests.hostile import IS_DEEP, LONGEST_MESSAGE, TEXTS
from tests.test_cron import EXPRESSIONS
from tests.test_hostile_admin import BASE, fields
from tests.test_hostile_values import undone

MINUTE = timedelta(minutes=1)
START = datetime(2026, 3, 28, 23, 17, 30, 5, tzinfo=UTC)  # the night before a change of the clocks
ZONES = sorted(zoneinfo.available_timezones() - {"localtime"})

# Calls of functions, ours, Python's and croniter's: as many on every machine. (Of what is usual it takes a hundred.)
WORK_OF_A_REFUSAL = 5_000
WORK_OF_PARSING = 10_000
WORK_OF_A_STEP = 20_000
WORK_OF_FOUR_HUNDRED_GAPS = 500_000  # of what only ever falls into the yearly gap, which is given up then


def many(usual: int) -> Any:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(deadline=None, max_examples=4_000 if IS_DEEP else usual, suppress_health_check=checks)


# -- text ------------------------------------------------------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=60)  # halves of surrogate pairs, too
PLANTED = [
    *TEXTS.values(),
    "1; SELECT pg_sleep(9)",
    "* * * * * root rm -rf /",
    "%(x)s",
    "\u202e* * * * *",
    "\ufeff* * * * *",
]
WORDS = [
    "*", "0", "1", "5", "7", "23", "29", "30", "31", "59", "60", "00", "007", "1-5", "5-1", "0-7", "5-7", "9-9", "*/2", "*/7", "*/0",
    "1/2", "7/2", "1-5/2", "*/99999", "0-59/61", "9" * 30, "9" * 190, "-1", "+5", "1_0", "1.5", "1e3", "0x1F", "1-2-3", "1-", "-", "/",
    "/5", "*/", "*/5/5", ",", ",,", "1,", "**", "*-5", "L", "l", "LW", "15W", "5L", "5#2", "mon#2", "#", "?", "H", "h", "H/15", "H(0-7)",
    "R", "~", "0~30", "!", "^", "$", "&", "jan", "JAN", "jAn", "january", "dec", "sun", "SuN", "sunday", "sat-sun", "sun-sun", "sun-mon",
    "fri-mon", "mon-5", "1-fri", "lun", "mars", "dim", "%", "'", "<b>", "{0}", "\\",
]  # fmt: skip
FOREIGN = [
    "M\u00e4r", "\u043f\u043d", "\u4e00\u6708", "\u017fun", "\u212aan", "\uff15", "\u0663", "\u0be7", "\u00b2", "\u2167", "\u00bd",
    "\U0001d7d8", "\u22c6", "\u2217", "\u2012", "\uff0c", "\u00a0", "\x0b", "\x1c", "\x85", "\u2028", "\u200b", "\u202e", "\0", "\n",
    "\r\n", "\x1b[2J", "\ud800", "\udfff",
]  # fmt: skip
TOKENS = [*WORDS, *WORDS, *FOREIGN]
MACROS = [
    *cron.ALIASES, *map(str.upper, cron.ALIASES), "@reboot", "@every 5m", "@daily\n", " @daily\t", "@", "@@daily", "@daily * * * *",
    "@hourly@hourly", "@d\u0430ily", "@weekly ", "@monthly\0",
]  # fmt: skip


@st.composite
def nearly_valid(draw: st.DrawFn) -> str:
    """Fields made of tokens, most of them ordinary."""
    usual = st.sampled_from(["*", "*", "0", "3", "*/15", "1,15", "1-5", "7", "2"])
    tokens = st.sampled_from(FOREIGN if draw(st.integers(0, 7)) == 0 else WORDS)
    odd = st.tuples(st.lists(tokens, min_size=1, max_size=3), st.sampled_from(["", ",", "-", "/"]))
    columns = [usual] * draw(st.sampled_from([5, 5, 5, 5, 5, 5, 4, 6, 7]))
    for place in draw(st.lists(st.integers(0, len(columns) - 1), max_size=2)):
        columns[place] = odd.map(lambda pair: pair[1].join(pair[0]))
    return draw(st.sampled_from([*[" "] * 8, "\t", "  ", "\n", "\u00a0", ""])).join(map(draw, columns))


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A good expression, a few characters or tokens of which were changed."""
    text = draw(EXPRESSIONS)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(text)))
        rest = place + draw(st.integers(0, 3))
        text = text[:place] + draw(st.sampled_from(["", text[:3], " ", ",", "-", "/", *TOKENS])) + text[rest:]
    return text


@st.composite
def repeated(draw: st.DrawFn) -> str:
    """Thousands of commas, ranges and steps; a megabyte of anything."""
    piece = draw(
        st.sampled_from(
            ["1,", "1-5,", "*/2,", "0/1,", ",", "-", "/", "*", " ", "* ", "9", "a", "\t", "@", "\0", "\u0663", "\ud800"]
        )
    )
    length = draw(st.sampled_from([60, 190, 199, 200, 201, 10_000, 1_000_000]))
    ends = draw(st.sampled_from(["", " * * * *", "1 * * * *"]))
    return (piece * (length // len(piece)))[: length - len(ends)] + ends


EXPRESSION = st.one_of(
    nearly_valid(), mutated(), EXPRESSIONS, repeated(), ANY_TEXT, st.sampled_from(PLANTED), st.sampled_from(MACROS)
)
NASTY_PARTS = [
    *ZONES[::40], "..", ".", "", "etc", "passwd", "America", "Argentina", "posixrules", "localtime", "Factory", "right", "posix", "zoneinfo",
    "tzdata.zi", "zone1970.tab", "leapseconds", "__init__.py", "UTC", "utc", "Utc", "GMT+25", "EST5EDT4", "+02:00", "~", "C:", "\0", "\n", " ",
    "%2e%2e", "\u202e", "\ud800", "\uff35TC", "\u0415urope", "x" * 100,
]  # fmt: skip
ZONE = st.one_of(
    st.sampled_from(ZONES),
    st.lists(st.sampled_from(NASTY_PARTS), min_size=1, max_size=4).flatmap(
        lambda parts: st.sampled_from(["/", "", "//", "\\", "/../", " "]).map(lambda between: between.join(parts))
    ),
    st.tuples(st.sampled_from(ZONES), st.sampled_from([str.upper, str.lower, str.title, str.swapcase])).map(
        lambda pair: pair[1](pair[0])
    ),
    st.tuples(st.sampled_from(["", "/", "./", "../", " ", "\0", "posix/", "right/"]), st.sampled_from(ZONES)).map("".join),
    st.tuples(st.sampled_from(ZONES), st.sampled_from(["", "/", "/.", "/..", " ", "\0", "\n", ".", "/UTC", "\x00.tab"])).map("".join),
    st.tuples(st.sampled_from(["a/", "../", "UTC", "x", "/", "\0"]), st.sampled_from([199, 10_000, 1_000_000])).map(
        lambda pair: pair[0] * (pair[1] // len(pair[0]))
    ),
    ANY_TEXT,
    st.sampled_from(PLANTED),
)  # fmt: skip


def instants(first_year: int) -> st.SearchStrategy[datetime]:
    """To the last that a row may hold."""
    first, last = (datetime(year, 1, 1) for year in (first_year, 8999))  # noqa: DTZ001  what the strategy wants
    return st.datetimes(first, last, timezones=st.just(UTC))


# -- what is asked of it -----------------------------------------------------------------------------------------------------


def refusal(call: Callable[[str], object], text: str) -> str | None:
    """What a refusal says; anything but a `ValueError` is none."""
    try:
        call(text)
    except ValueError as error:
        assert type(error) is ValueError
        return str(error)
    return None


def is_clear(sentence: str, option: str, text: str) -> bool:
    """One short line that can be printed: the option, what it must be, and the value, cut short."""
    got = f"{option} must ", f"{option} ", " must ", ", got "
    shows = any(shown(each) in sentence for each in (text, text.strip()))
    is_line = sentence.isprintable() and len(sentence) < LONGEST_MESSAGE
    return sentence.startswith(got[:2]) and all(each in sentence for each in got[2:]) and shows and is_line


def work(call: Callable[[], object]) -> int:
    """How many functions are called, Python's own among them."""
    count = 0

    def counting(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counting)
    try:
        call()
    finally:
        sys.setprofile(before)
    return count


def forget() -> None:
    for cached in (cron._parsed, cron._next_after, cron._latest):
        cached.cache_clear()


def work_of_a_step(text: str, zone: cron.Zone, instant: datetime) -> int:
    """The larger of forwards and back, for an expression that nobody asked for before."""
    forget()
    assert work(lambda: cron.parse(text)) < WORK_OF_PARSING
    return max(work(functools.partial(walk, text, zone, instant)) for walk in (cron.next_after, cron.latest))


def first_shown(text: str, start: datetime, end: datetime) -> datetime | None:
    """By the oracle, in UTC, where no clock changes."""
    rule = cron_oracle.rule(text)
    walk = start.replace(second=0, microsecond=0) + MINUTE
    while walk <= end:
        if rule.shows(walk.replace(tzinfo=None)):
            return walk
        walk += MINUTE
    return None


# -- expressions -------------------------------------------------------------------------------------------------------------


@given(text=EXPRESSION, instant=instants(1973))
@example(text="0 0 29 2 */7", instant=datetime(2088, 3, 1, tzinfo=UTC))  # the next is forty years away
@example(text=("1," * 100)[:191] + " * * * *", instant=START)
@many(400)
def test_text_is_refused_in_one_clear_line_or_due(text: str, instant: datetime) -> None:
    sentence = refusal(cron.parse, text)
    assert refusal(Cron, text) == sentence
    if sentence is not None:
        assert is_clear(sentence, "cron", text), sentence
        assert work(lambda: refusal(cron.parse, text)) < WORK_OF_A_REFUSAL
        return
    assert len(text) <= cron.MAX_LENGTH
    assert re.fullmatch(r"[0-9a-z@*,/ \t-]+", text, re.ASCII | re.IGNORECASE)
    assert work_of_a_step(text, UTC, instant) < WORK_OF_A_STEP
    due = Cron(text).upcoming(instant, 4)
    assert [instant, *due] == sorted({instant, *due})
    assert len(due) == 4
    assert all(each.tzinfo is UTC and each.second == each.microsecond == 0 for each in due)
    assert cron.latest(text, UTC, due[-1]) == due[-1]
    assert cron.latest(text, UTC, due[-1] - timedelta.resolution) == due[-2]
    forget()
    assert Cron(text).upcoming(instant, 4) == due  # as it was, from the start
    if not text.strip().startswith("@"):
        assert all(cron_oracle.rule(text).shows(each.replace(tzinfo=None)) for each in due)
        assert first_shown(text, instant, min(due[0], instant + timedelta(hours=7))) in (due[0], None)


@given(
    text=st.one_of(EXPRESSIONS, mutated(), nearly_valid()).filter(lambda text: refusal(cron.parse, text) is None),
    zone=st.sampled_from(ZONES),
    instant=instants(1900),
)
@many(200)
def test_what_is_accepted_is_due_in_every_zone(text: str, zone: str, instant: datetime) -> None:
    where = cron.zone(zone)
    assert work_of_a_step(text, where, instant) < WORK_OF_FOUR_HUNDRED_GAPS
    due = Cron(text, zone).upcoming(instant, 4)
    assert [instant, *due] == sorted({instant, *due})
    assert all(each.tzinfo is UTC for each in due)
    for each in due:
        assert cron.latest(text, where, each) == each
    forget()
    assert Cron(text, zone).upcoming(instant, 4) == due


def test_each_zone_of_the_database() -> None:
    for name in ZONES:
        for text in ("30 2 * * *", "*/20 * * * *"):
            assert work_of_a_step(text, cron.zone(name), START) < WORK_OF_A_STEP, name
            due = Cron(text, name).upcoming(START, 3)
            assert [START, *due] == sorted({START, *due}), name


def test_exactly_the_dates_that_never_come_are_refused() -> None:
    for month in range(1, 13):
        longest = 29 if month == 2 else 31 - (month in (4, 6, 9, 11))
        for day in range(1, 32):
            text = f"0 0 {day} {month} *"
            sentence = refusal(cron.parse, text)
            assert (sentence is None) == (day <= longest), text
            if sentence:
                assert "must exist in the month" in sentence
                assert is_clear(sentence, "cron", text)
                assert work(lambda text=text: refusal(cron.parse, text)) < WORK_OF_A_REFUSAL


@pytest.mark.parametrize("text", ["*/5 2 8-14 3 */7", "* 2 * 3 */7", "*/5 2 29 2 *", "* 2 29 2 */7", "59 */2 29 2 */7"])
@pytest.mark.parametrize("zone", ["America/New_York", "Europe/Paris", "Pacific/Apia", "Africa/Casablanca", "UTC"])
def test_what_hardly_ever_comes_is_found_or_given_up_after_bounded_work(text: str, zone: str) -> None:
    where = cron.zone(zone)
    assert work_of_a_step(text, where, START) < WORK_OF_FOUR_HUNDRED_GAPS
    due = cron.next_after(text, where, START)
    assert due is None or due > START
    assert zone != "UTC" or due is not None


@given(text=EXPRESSION)
@many(150)
def test_every_door_says_the_same(text: str) -> None:
    sentence = refusal(cron.parse, text)
    assert refusal(lambda text: define(functions.noop, {"cron": text}), text) == sentence
    registry.clear()
    assert refusal(lambda text: schedule(functions.noop, cron=text), text) == sentence
    assert len(registry) == (sentence is None)
    # The form takes off what stands around it; and without text there is nothing to preview.
    typed = text.strip()
    seen = preview({"cron": text, "timezone": "Europe/Paris"}, START)
    assert list(seen.errors) == [each for each in [refusal(cron.parse, typed)] if each and typed]
    if sentence is not None:
        return
    row = Schedule(**define(functions.noop, {"cron": text}).columns)
    row.clean_fields()
    assert len(seen.times) > 0
    for language in ("en", "de", "fr"):
        with translation.override(language):
            words = recurrence_in_words(row)
        assert words
        assert words.isprintable()


# -- zones -------------------------------------------------------------------------------------------------------------------


@given(name=ZONE)
@many(400)
def test_a_zone_is_one_of_the_database_or_refused(name: str) -> None:
    for door, option in (
        (cron.zone, "timezone"),
        (functools.partial(Cron, "0 9 * * *"), "timezone"),
        (lambda name: define(functions.noop, {"cron": "0 9 * * *", "_timezone": name}), "_timezone"),
        (lambda name: read_options({"timezone": name}), "timezone"),
    ):
        sentence = refusal(door, name)
        assert (sentence is None) == (name in ZONES)
        assert sentence is None or is_clear(sentence, option, name), sentence
    if name in ZONES:
        assert cron.zone(name).key == name
        Schedule(**define(functions.noop, {"cron": "0 9 * * *", "_timezone": name}).columns).clean_fields()


@given(name=ZONE)
@many(200)
def test_no_file_beside_the_database_of_zones_is_looked_for(name: str) -> None:
    opened: list[str] = []

    def opening(key: str) -> zoneinfo.ZoneInfo:
        opened.append(key)
        return zoneinfo.ZoneInfo(key)

    cron._zone.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cron, "ZoneInfo", opening)
        refusal(cron.zone, name)
    cron._zone.cache_clear()
    assert all(re.fullmatch(r"[\w+-]+(/[\w+-]+)*", key, re.ASCII) and len(key) <= 200 for key in opened)


# -- through the database -----------------------------------------------------------------------------------------------------

ACCEPTED = st.one_of(nearly_valid(), mutated(), st.sampled_from(sorted(cron.ALIASES))).filter(
    lambda text: refusal(cron.parse, text) is None
)


@pytest.fixture
def anna(db: None, settings: Any) -> Client:
    settings.PGWERK = {"AUTODISCOVER": (), "ALLOWED_FUNCTIONS": ["tests.functions.*"]}
    client = Client()
    client.force_login(User.objects.create_superuser("anna"))
    return client


@pytest.mark.django_db
@given(text=ACCEPTED, zone=st.sampled_from(ZONES))
@example(text=" \t0\t9 * * mon-FRI  ", zone="Factory")
@example(text="0,1" + " " * 189 + "* * * *", zone="America/Argentina/ComodRivadavia")  # as long as any may be
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_accepted_comes_back_and_makes_jobs(text: str, zone: str) -> None:
    with undone():
        made = Scheduler().schedule(functions.noop, cron=text, _timezone=zone, _name="x")
        row = Schedule.objects.get()
        assert (row.cron, row.timezone) == (text, zone)
        assert row.next_run_at == made.next_run_at == cron.next_after(text, cron.zone(zone), row.created_at)
        for verb in ("list", "next", "export"):
            said = io.StringIO()
            call_command("schedules", verb, stdout=said)
            assert said.getvalue().replace("\n", "").replace("\t", "").isprintable()
        # Due: a tick makes its job, and plans what follows.
        due_at = cron.latest(text, cron.zone(zone), row.created_at)
        assert due_at is not None
        Schedule.objects.update(next_run_at=due_at, replan=False)
        assert tick(using="default") == 1
        row.refresh_from_db()
        assert (row.error, Job.objects.get().due_at) == ("", due_at)
        assert row.next_run_at == made.next_run_at
        # And another table takes it as it is.
        exported = "".join(json_file.dump([row]))
        Schedule.objects.all().delete()
        assert not importers.import_text(exported, timezone=None, using="default", dry_run=False).refused
        again = Schedule.objects.get()
        assert (again.cron, again.timezone, again.next_run_at) == (text, zone, row.next_run_at)


@given(text=st.one_of(nearly_valid(), mutated()), zone=ZONE.filter(lambda name: len(name) < 20_000))
@example(text="\u00a00 9 * * *\n", zone=" UTC ")
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_form_takes_what_the_api_takes(anna: Client, text: str, zone: str) -> None:
    if any("\ud800" <= each <= "\udfff" for each in text + zone):
        return  # no browser can send it
    given = {**fields(), "interval": "", "cron": text, "timezone": zone}
    with undone():
        response = anna.post(f"{BASE}/schedule/add/", given)
        taken = {"cron": text.strip(), "timezone": zone.strip()}
        wrong = {
            "cron": bool(refusal(cron.parse, taken["cron"])),
            "timezone": bool(refusal(cron.zone, taken["timezone"])),
        }
        if response.status_code == 302:
            assert not any(wrong.values())
            while tick(using="default"):
                pass
            assert Schedule.objects.get(**taken).error == ""
            return
        errors = response.context["adminform"].form.errors
        assert errors.keys() == {field for field, is_wrong in wrong.items() if is_wrong}
        assert all(len(sentence) < LONGEST_MESSAGE for listed in errors.values() for sentence in listed)


@pytest.mark.django_db
@given(text=ACCEPTED.filter(lambda text: "@" not in text), zone=st.sampled_from(ZONES))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_crontab_may_hold_it(text: str, zone: str) -> None:
    crontab = f"CRON_TZ={zone}\n{text} python manage.py check\n"
    report = importers.import_text(crontab, timezone=None, using="default", dry_run=True)
    assert [line.name for line in report.lines] == ["manage.py check"]
    assert not report.refused
    assert json.loads(report.as_json())
