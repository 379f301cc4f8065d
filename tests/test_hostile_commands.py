"""Commands and importers with hostile arguments and files: done, or one short line that says what was wrong."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pgwerk_django import importers
from pgwerk_django.exceptions import SourceUnreadable
from pgwerk_django.models import Queue, Schedule
from pgwerk_django.scheduler import Scheduler
from tests import functions
from tests.hostile import LONGEST_MESSAGE, TEXTS, deep, everything

# Of an argument no NUL can be part; bytes that are no text come as halves of surrogate pairs.
ARGUMENTS = {**{name: text for name, text in TEXTS.items() if name != "NUL"}, "bytes": "a\udcffb"}


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command(*arguments, stdout=out, stderr=out)
    return out.getvalue()


@pytest.mark.process
@pytest.mark.django_db
@pytest.mark.parametrize(
    "arguments",
    [
        ("schedules", "pause"), ("schedules", "resume"), ("schedules", "trigger"), ("schedules", "next"), ("schedules", "export"),
        ("schedules", "next", "-n"), ("schedules", "import"), ("schedules", "import", "--timezone"),
        ("schedules", "import", "/dev/null", "--timezone"), ("schedules", "pause", "u", "--reason"), ("schedules", "import", "--format"),
        ("queues", "pause"), ("queues", "resume"), ("queues", "pause", "q", "--reason"), ("queues",), ("schedules",),
        ("runscheduler", "--once", "--batch-size"), ("runscheduler", "--once", "--on-unregistered"), ("runscheduler", "--once", "--concurrency"),
        ("runworker", "--burst", "--concurrency"), ("runworker", "--burst", "--threads"), ("runworker", "--burst", "--shutdown-timeout"), ("runworker", "--burst", "--max-jobs-per-child"),
        ("syncschedules", "--on-unregistered"), ("syncschedules", "--format"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_each_argument_of_each_command(arguments: tuple[str, ...]) -> None:
    Scheduler().interval(60, functions.noop, _name="u")
    numbers = {
        "digits": "9" * 5000,
        "other digits": "\u0663",
        "infinity": "inf",
        "NaN": "nan",
        "less": "-1",
        "zero": "0",
    }
    for name, value in {**ARGUMENTS, **(numbers if arguments[-1].startswith("-") else {})}.items():
        *others, last = arguments
        sent = [*others, f"{last}={value}"] if last.startswith("--") else [*arguments, value]
        if name == "dashes" and "=" not in sent[-1]:
            sent.insert(-1, "--")  # as a shell's user must
        try:
            run(*sent)
        except CommandError as error:
            is_argparses = "invalid choice" in str(error) or "unrecognized arguments" in str(error)
            assert is_argparses or len(str(error)) < 1500, (name, str(error)[:200])
        except SystemExit as ended:
            assert ended.code == 1  # something could not be imported, and it said so
    assert Schedule.objects.filter(name="u").exists()
    assert all(len(text.splitlines()) == 1 for text in Queue.objects.values_list("name", flat=True))


@pytest.mark.django_db
def test_names_with_leading_dashes() -> None:
    Scheduler().interval(60, functions.noop, _name="--help")
    run("schedules", "pause", "--reason=--help", "--", "--help")
    row = Schedule.objects.get()
    assert (row.paused, row.pause_reason) == (True, "--help")


@pytest.mark.django_db
def test_what_lists_print_is_a_line_for_each() -> None:
    names = [text for text in TEXTS.values() if len(text) <= 200]
    for name in names:
        try:
            Scheduler().interval(60, functions.noop, _name=name, _queue=name[:100])
        except ValueError:
            continue
    count = Schedule.objects.count()
    assert count > 5
    assert len(run("schedules", "list").splitlines()) == count
    assert len(run("queues", "list").splitlines()) == Queue.objects.count()


# -- importers -----------------------------------------------------------------------------------------------------------


def imported(text: str) -> importers.Report:
    return importers.import_text(text, timezone=None, using="default", dry_run=True)


LINES = st.lists(
    st.sampled_from(
        ["* * * * *", "0 9 * * 1-5", "@daily", "@reboot", "python manage.py check", "manage.py", "migrate", "&&", "|", ">>", "2>&1",
         "'", '"', "\\", "$HOME", "`id`", "#", "%", "CRON_TZ=", "TZ='", "=", "Europe/Paris", "\0", "\x1b[2J", "\ud800", "\u202e", "x" * 3000]
    )
    | st.text(max_size=10),
    max_size=12,
).map(" ".join)  # fmt: skip


@pytest.mark.django_db
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, max_size=4))
@example(lines=["CRON_TZ=\x1b[2J\u202e", "TZ=" + "x" * 3000, "y" * 3000 + "=1"])
def test_crontabs(lines: list[str]) -> None:
    report = imported("#\n" + "\n".join(lines))
    for told in report.as_text():
        assert len(told) < LONGEST_MESSAGE
        assert told.isprintable()
    json.loads(report.as_json())


@pytest.mark.django_db
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changed=st.dictionaries(
        st.sampled_from(
            ["name", "function", "target", "queue", "args", "kwargs", "cron", "interval", "timezone", "starts_at", "next_run_at",
             "anchor_at", "created_at", "paused", "paused_by", "run_count", "max_runs", "backoff", "origin", "error", "meta", "nonsense"]
        ),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.integers(), max_size=2)
        | st.datetimes().map(str) | st.just({}),
        min_size=1, max_size=3,
    )
)  # fmt: skip
def test_exported_json_that_somebody_edited(changed: dict[str, Any]) -> None:
    usual = {"name": "a", "function": "tests.functions.noop", "interval": 60}
    text = json.dumps(
        {"format": "pgwerk_django", "version": 1, "schedules": [{**usual, **changed}, usual | {"name": "good"}]}
    )
    report = imported(text)
    first, second = (line.as_text(dry_run=False) for line in report.lines)
    assert len(first) < 1500
    assert second == "inserted good"


@pytest.mark.django_db
@pytest.mark.parametrize("text", ["{", "{}", "{" * 5000, '{"format": 1e400}', '{"a": ' * 5000, '{"format": "pgwerk_django", "schedules": 1}',
                                  '{"n": ' + "9" * 5000 + "}"])  # fmt: skip
def test_json_that_is_no_export(text: str) -> None:
    with pytest.raises(SourceUnreadable) as told:
        imported(text)
    assert len(str(told.value)) < 1000


@pytest.mark.django_db
def test_files_that_are_no_text(tmp_path: Path) -> None:
    for content in (b"\xff\xfe\0", b"", b"\0" * 1000, "\ufeff{}".encode("utf-16")):
        (tmp_path / "file").write_bytes(content)
        try:
            run("schedules", "import", str(tmp_path / "file"))
        except CommandError as error:
            assert len(str(error)) < 1000
        except SystemExit as ended:
            assert ended.code == 1  # something could not be imported, and it said so
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CommandError):
            run("schedules", "import", str(path))


@pytest.mark.django_db
def test_settings_of_beat(settings: Any) -> None:
    for key in ("task", "schedule", "args", "kwargs", "options", "relative", "nonsense"):
        entry = {"task": "tests.celery_app.plain", "schedule": 60}
        settings.CELERY_BEAT_SCHEDULE = {
            name: {**entry, key: make()} for name, make in everything().items() if name not in ("endless", "screaming")
        }
        report = importers.import_beat(using="default", dry_run=True)
        assert len(report.lines) == len(settings.CELERY_BEAT_SCHEDULE)
        assert max(map(len, report.as_text()), default=0) < 1500
    assert deep(2) == [[None]]
