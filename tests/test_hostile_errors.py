"""Exceptions of others, whatever their classes do: each is shown, and stored, somehow."""

import traceback
from typing import Any

import pytest

from pgwerk_django.exceptions import FunctionNotFound, class_path, exc_info_of, named, summary_of, text_of, traceback_of
from pgwerk_django.execution import Outcome
from pgwerk_django.jobs import enqueue
from pgwerk_django.models import Job, Schedule
from pgwerk_django.targets.base import found_at
from pgwerk_django.text import storable
from pgwerk_django.tick import tick
from tests import functions, hostile_errors
from tests.hostile_errors import HOSTILE
from tests.time_travel import make_due


def _raised(name: str) -> BaseException:
    try:
        hostile_errors.raise_hostile(name)
    except BaseException as error:  # noqa: BLE001  # that is what it is for
        return error
    raise AssertionError(name)


@pytest.mark.parametrize("name", HOSTILE)
def test_any_exception_has_a_text_a_summary_a_path_and_a_traceback(name: str) -> None:
    error = _raised(name)
    for show in (text_of, named, summary_of, class_path, traceback_of):
        assert type(show(error)) is str
    assert "\n" not in summary_of(error)
    assert traceback.format_exception(*exc_info_of(error))
    assert len(traceback_of(error)) > 10


def test_a_traceback_shows_its_lines_even_where_the_exception_cannot_be_asked() -> None:
    text = traceback_of(_raised("NothingCanBeAsked"))
    assert "raise HOSTILE[name]()" in text
    assert "tests.hostile_errors.NothingCanBeAsked" in text


@pytest.mark.parametrize("name", HOSTILE)
def test_any_exception_is_an_outcome_that_can_be_stored(name: str) -> None:
    outcome = Outcome.failure(Job(attempt=1), _raised(name))
    assert outcome.status == "FAILED"
    for text in (outcome.error, outcome.summary, outcome.exception):
        assert type(text) is str
        assert text
        assert text == storable(text)
    assert len(outcome.error) <= 50_000
    assert len(outcome.summary) <= 1000


def test_text_of_a_hostile_class_is_a_result_as_any_text() -> None:
    outcome = Outcome.success([hostile_errors.Shouting("loud")])
    assert (outcome.status, outcome.result) == ("SUCCESSFUL", '["loud"]')


@pytest.mark.parametrize(
    ("text", "limit", "stored"),
    [
        ("a\0b\ud800c", None, "a\\0b?c"),
        ("a\0b", 2, "a\\"),
        ("\0" * 5, 4, "\\0\\0"),
        ("", 0, ""),
    ],
)
def test_text_that_postgresql_cannot_store_is_made_storable(text: str, limit: int | None, stored: str) -> None:
    assert storable(text, limit) == stored


def test_storable_text_is_plain_text() -> None:
    assert type(storable(hostile_errors.Shouting("loud"), 2)) is str


def test_a_module_that_fails_with_a_hostile_exception_cannot_be_imported(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile_module.py").write_text("from tests.hostile_errors import HTTPFailed\nraise HTTPFailed()\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FunctionNotFound, match=r"'hostile_module\.f' cannot be imported: HTTPFailed: <exception str"):
        found_at("hostile_module.f")


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["HTTPFailed", "NothingCanBeAsked", "NUL and surrogates"])
def test_a_hostile_exception_of_a_target_is_written_and_told(name: str, caplog: pytest.LogCaptureFixture) -> None:
    from pgwerk_django.handover import Sender
    from pgwerk_django.outbox import Outbox

    job = enqueue(functions.noop)
    assert job is not None
    Job.objects.update(target="celery", lease_until=None)
    outbox = Outbox("test", using="default")
    from pgwerk_django import signals

    sender = Sender("celery", outbox, signals.send_now)
    jobs = outbox.claim("celery", 1)
    sender._put_back(jobs, _raised(name))
    job.refresh_from_db()
    assert job.error
    assert job.exception.startswith(("tests.hostile_errors.", "builtins."))
    (record,) = [each for each in caplog.records if "handover_failed" in each.getMessage()]
    assert record.exc_info is not None


@pytest.mark.django_db(transaction=True)
def test_a_schedule_that_cannot_be_planned_leaves_a_record_with_the_traceback(caplog: pytest.LogCaptureFixture) -> None:
    make_due(
        Schedule.objects.create(name="odd", function="tests.functions.noop", cron="* * * * *", timezone="No/Where")
    )
    tick(using="default", batch_size=1)
    (record,) = [each for each in caplog.records if "schedule_set_aside" in each.getMessage()]
    assert record.levelname == "ERROR"
    assert record.exc_info
    assert record.exc_info[0] is ValueError
