"""What PostgreSQL believes of the tables is often old: a statement still reads what it needs, and not the whole backlog."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, transaction

from pgwerk_django import alerts, outbox
from pgwerk_django.claims import Claims, recover_lost, unrenewed_leases
from pgwerk_django.execution import Outcome
from pgwerk_django.models import Job, Schedule
from pgwerk_django.outbox import Outbox
from pgwerk_django.tick import _claim

pytestmark = pytest.mark.django_db(transaction=True)

MANY = 1_000  # of each
QUIET = f"""
INSERT INTO _pgwerk_schedules (name, interval, next_run_at, replan)
SELECT 's' || n, 60, now() + interval '1 hour', false FROM generate_series(1, {MANY}) n;
INSERT INTO _pgwerk_jobs (key, schedule_name, status, finished_at)
SELECT name || '@' || n, name, 'SUCCESSFUL', now() FROM _pgwerk_schedules, generate_series(1, 3) n;
"""
BURST = """
UPDATE _pgwerk_schedules SET next_run_at = now() - interval '1 hour';
INSERT INTO _pgwerk_jobs (key, schedule_id, schedule_name, status, target, run_at, worker_id, claims)
SELECT name || '@' || state, id, name, status, states.target, now() - interval '1 hour', substr(name, 2)::int, 1
FROM _pgwerk_schedules, (VALUES
    ('waits', 'READY', 'worker'), ('outbox', 'READY', 'celery'), ('runs', 'RUNNING', 'worker')
) AS states (state, status, target);
"""
ENDED = """
INSERT INTO _pgwerk_jobs (key, schedule_id, schedule_name, status, reason, finished_at)
SELECT name || '@' || lower(status), id, name, status, '', now() - interval '{ago}'
FROM _pgwerk_schedules, (VALUES ('FAILED'), ('SKIPPED')) AS ended (status);
"""


@pytest.fixture(params=["none", "quiet", "quiet, all tables"])
def statistics(request: pytest.FixtureRequest, new_tables: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(QUIET)
        if request.param != "none":
            cursor.execute("ANALYZE _pgwerk_jobs, _pgwerk_schedules")
        if request.param == "quiet, all tables":
            cursor.execute("ANALYZE")


@pytest.fixture
def burst(statistics: None) -> None:
    """Much is due, waits, runs and has failed, of which the statistics say nothing."""
    with connection.cursor() as cursor:
        cursor.execute(BURST + ENDED.format(ago="1 second"))


@contextlib.contextmanager
def reading() -> Iterator[Callable[[], int]]:
    """How many rows and entries of indexes are read in here, and nothing is left of what is done."""
    count = """
        SELECT coalesce(sum(pg_stat_get_xact_tuples_returned(oid)), 0)::bigint FROM pg_class
        WHERE relkind IN ('r', 'i') AND (relname LIKE '%pgwerk%')
    """

    def read() -> int:
        cursor.execute(count)
        return int(cursor.fetchone()[0])

    with transaction.atomic(), connection.cursor() as cursor:
        before = read()
        yield lambda: read() - before
        transaction.set_rollback(True)


def claims() -> Claims:
    return Claims(7, "w", lease=60, using="default")


def running() -> tuple[Any, int]:
    return Job.objects.filter(key="s7@runs").values_list("pk", "claims").get()


def sent() -> list[Job]:
    return list(Job.objects.filter(key="s7@outbox"))


@pytest.mark.parametrize(
    ("action", "most"),
    [
        pytest.param(lambda given: Schedule.objects.look(), 20, id="look"),
        pytest.param(lambda given: _claim(10, using="default", now=None), 50, id="tick"),
        pytest.param(lambda given: claims().claim(5, []), 50, id="claim"),
        pytest.param(lambda given: claims().renew([given]), 10, id="renew"),
        pytest.param(lambda given: claims().begin({given: 0.0}), 10, id="begin"),
        pytest.param(lambda given: claims().finish([(given, Outcome.success(None))]), 10, id="finish"),
        pytest.param(lambda given: claims().hand_back([given]), 10, id="hand back"),
    ],
)
def test_of_a_worker_and_a_scheduler(burst: None, action: Callable[[Any], object], most: int) -> None:
    given = running()
    with reading() as read:
        action(given)
        assert read() <= most


@pytest.mark.parametrize(
    ("action", "most"),
    [
        pytest.param(lambda outbox, jobs: outbox.claim("celery", 5), 50, id="claim"),
        pytest.param(lambda outbox, jobs: outbox.forward([(jobs[0], "id")]), 10, id="forward"),
        pytest.param(lambda outbox, jobs: outbox.put_back(jobs, ValueError("no"), [1.0]), 10, id="put back"),
        pytest.param(lambda outbox, jobs: outbox.hand_back(jobs), 10, id="hand back"),
        pytest.param(lambda outbox, jobs: outbox.renew(jobs), 10, id="renew"),
    ],
)
def test_of_hand_over(burst: None, action: Callable[[Outbox, list[Job]], object], most: int) -> None:
    jobs = sent()
    with reading() as read:
        assert action(Outbox("x", using="default"), jobs)
        assert read() <= most


def test_of_looks_for_leases(burst: None) -> None:
    """Of all that runs, by the index of that; of what waits to be handed over, the first ones; and each job by its number."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE _pgwerk_jobs SET lease_until = now() - interval '1 hour' WHERE key LIKE 's7@%' AND claims = 1"
        )
    with reading() as read:
        running = unrenewed_leases(using="default", limit=10)
        assert read() < 5 * MANY  # nobody has renewed any of these
        assert len(running) == 10
    with reading() as read:
        leased = outbox.unrenewed_leases(using="default")
        assert read() < 5 * MANY
        assert len(leased) == 1
    with reading() as read:
        assert recover_lost(using="default", seen=running[:3]) == 3
        assert read() < 50
    with reading() as read:
        assert outbox.release(leased, using="default") == 1
        assert read() < 10


def test_of_a_look_for_alerts(burst: None) -> None:
    """For each schedule that is late a few rows, where each was compared with each."""
    with reading() as read:
        changes, _ = alerts.look(using="default")
        assert len(changes) >= MANY
        assert read() < 30 * MANY


def test_of_a_look_for_alerts_with_old_failures(statistics: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(ENDED.format(ago="1 hour"))
    with reading() as read:
        alerts.look(using="default")
        assert read() < 100


def test_of_a_delete(burst: None) -> None:
    names = [f"s{n}" for n in range(1, 501)]
    with reading() as read:
        Schedule.objects.filter(name__in=names).delete()
        assert read() < 50 * len(names)
        assert Job.objects.filter(status="CANCELLED").count() == 2 * len(names)


def test_after_a_burst_that_the_statistics_still_know(new_tables: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(QUIET + BURST)
        cursor.execute("ANALYZE _pgwerk_jobs, _pgwerk_schedules")
        cursor.execute("UPDATE _pgwerk_jobs SET status = 'SUCCESSFUL' WHERE key NOT LIKE 's7@%'")
        cursor.execute("UPDATE _pgwerk_jobs SET run_at = run_at + interval '1 day'")
        cursor.execute("UPDATE _pgwerk_schedules SET next_run_at = next_run_at + interval '1 day'")
        cursor.execute("VACUUM _pgwerk_jobs, _pgwerk_schedules")
    with reading() as read:
        assert Schedule.objects.look()[2] == []
        assert claims().claim(5, []) == []
        assert Outbox("x", using="default").claim("celery", 5) == []
        assert _claim(10, using="default", now=None) == []
        assert claims().renew([running()])
        assert read() < 50
