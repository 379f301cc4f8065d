"""What Celery's signals write on a job's row, whatever text, results and ids come from there."""

import uuid
from types import SimpleNamespace
from typing import Any

import pytest

from pgwerk_django.exceptions import PgwerkError
from pgwerk_django.execution import Outcome, backoff_before
from pgwerk_django.handover import retry_delay
from pgwerk_django.models import Job
from pgwerk_django.outbox import Outbox
from pgwerk_django.targets import celery
from pgwerk_django.text import LONGEST_ERROR

pytestmark = pytest.mark.django_db(transaction=True)

TEXTS = {
    "half a surrogate pair": "no such file: '\udce9'",
    "NUL": "a\0b",
    "20 MB": "x" * 20_000_000 + "the end",
    "all of them": "\udce9\0" * 5_000_000 + "the end",
    "empty": "",
}


def forwarded() -> Job:
    job = Job(target="celery", function="shop.tasks.report", status="FORWARDED", key=str(uuid.uuid4()))
    job.save(force_insert=True)
    return job


def reread(job: Job) -> Job:
    return Job.objects.get(pk=job.pk)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("told", ["einfo", "exception"])
def test_a_failure_reaches_the_row_whatever_its_text(text: str, told: str) -> None:
    job = forwarded()
    celery._failed(task_id=job.key, exception=OSError(text), einfo=_info(text, told))
    row = reread(job)
    assert (row.status, row.exception) == ("FAILED", "builtins.OSError")
    assert len(row.error) <= LONGEST_ERROR
    if told == "einfo" and text.endswith("the end"):
        assert row.error.endswith("the end")
    assert "surrogate" not in row.error
    ours = Outcome.failure(Job(max_attempts=1, attempt=1), OSError(text))
    assert len(ours.error) <= LONGEST_ERROR


class _Info:
    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return f"Traceback\n{self.text}"


def _info(text: str, told: str) -> _Info | None:
    return _Info(text) if told == "einfo" else None


class Screams:
    def __repr__(self) -> str:
        raise RuntimeError("no")


RESULTS: dict[str, Any] = {
    "half a surrogate pair": "\udce9",
    "NUL": {"a": ["\0"]},
    "NaN": [float("nan")],
    "no JSON": {1, 2},
    "keys": {1: "a", "1": "b"},
    "repr raises": Screams(),
    "large": "x" * (17 * 2**20),
}


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
def test_a_success_reaches_the_row_whatever_its_result(result: Any) -> None:
    job = forwarded()
    celery._succeeded(sender=SimpleNamespace(request=SimpleNamespace(id=job.key)), result=result)
    row = reread(job)
    assert row.status == "SUCCESSFUL"
    assert isinstance(row.result, str)
    assert len(row.result) <= celery.LONGEST_REPR


def test_a_start_reaches_the_row_whatever_its_worker_is_named() -> None:
    job = forwarded()
    celery._started(task_id=job.key, task=SimpleNamespace(request=SimpleNamespace(hostname="\udce9\0" * 300)))
    assert reread(job).started_at is not None


@pytest.mark.parametrize("external_id", [7, uuid.UUID(int=1), "\udce9\0" * 300, None, Screams()])
def test_an_id_from_an_engine_is_noted_whatever_it_is(external_id: Any) -> None:
    job = Job(target="celery", function="shop.tasks.report")
    job.save(force_insert=True)
    outbox = Outbox("me", using="default")
    (claimed,) = outbox.claim("celery", 1)
    assert outbox.forward([(claimed, external_id)]) == {claimed.pk}
    row = reread(job)
    assert row.status == "FORWARDED"
    if isinstance(external_id, int | uuid.UUID):
        assert row.external_id == str(external_id)


def test_a_failed_hand_over_keeps_the_end_of_a_long_error() -> None:
    job = Job(target="celery", function="shop.tasks.report")
    job.save(force_insert=True)
    outbox = Outbox("me", using="default")
    (claimed,) = outbox.claim("celery", 1)
    outbox.put_back([claimed], PgwerkError("\udce9" * 20_000_000 + "the end"), [0])
    row = reread(job)
    assert len(row.error) == LONGEST_ERROR
    assert row.error.endswith("the end\n")


@pytest.mark.parametrize("attempt", [1, 2, 5, 30, 10_000])
def test_both_back_offs_double_from_their_first_to_their_longest(attempt: int) -> None:
    for delay, first, longest in ((backoff_before(attempt, None), 10, 3600), (retry_delay(attempt - 1), 1, 60)):
        ceiling = min(first * 2 ** min(attempt - 1, 20), longest)
        assert ceiling / 2 <= delay <= ceiling
