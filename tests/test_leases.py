"""Leases: who has vanished is found, and nobody is taken for lost while he could not renew."""

import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from django.db import connection, connections

from pgwerk_django import housekeeping, outbox, signals
from pgwerk_django.claims import recover_lost
from pgwerk_django.handover import hand_over
from pgwerk_django.housekeeping import Housekeeping, Recovery, keep_house, recover_old
from pgwerk_django.models import Alert, Job, Process
from pgwerk_django.outbox import Outbox
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.worker import Worker
from tests import functions
from tests.processes import database_url
from tests.time_travel import HOUR, SECOND, now
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

LEASE = 0.6  # seconds, of those who look


def held(**columns: Any) -> Job:
    """A running job whose lease has expired."""
    given = {"status": "RUNNING", "attempt": 1, "claims": 1, "worker_id": 999, "lease_until": now() - SECOND, **columns}
    return Job.objects.create(**{"function": "tests.functions.noop", **given})


def leased(**columns: Any) -> Job:
    """One that some scheduler was to hand over, its lease expired."""
    given = {"target": "celery", "claims": 1, "lease_until": now() - SECOND, "worker_name": "scheduler h:1", **columns}
    return Job.objects.create(**{"function": "tests.functions.noop", **given})


def step(recovery: Recovery) -> None:
    if recovery.is_due:
        recovery.look()


def look_again(recovery: Recovery) -> None:
    """Wait for its next look."""
    before = recovery._seen
    wait_until(lambda: step(recovery) or recovery._seen is not before, 5)


def status(job: Job) -> str:
    job.refresh_from_db()
    return job.status


def is_free(job: Job) -> bool:
    job.refresh_from_db()
    return job.status == "READY" and job.lease_until is None


@pytest.fixture
def recovery(settings: Any) -> Recovery:
    settings.PGWERK = {"LEASE": LEASE}
    return Recovery(using="default")


KINDS: dict[str, tuple[Callable[..., Job], Callable[[Job], bool]]] = {
    "running": (held, lambda job: status(job) == "FAILED"),
    "to hand over": (leased, is_free),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_second_look_takes_what_nobody_renewed(recovery: Recovery, kind: Any) -> None:
    make, is_taken = kind
    job = make()
    recovery.look()
    recovery.look()  # too early
    assert not is_taken(job)
    wait_until(lambda: step(recovery) or is_taken(job), 5)


def test_a_lease_that_moves_is_never_taken(recovery: Recovery, kind: Any) -> None:
    make, is_taken = kind
    job = make()
    for _ in range(3):
        recovery.look()
        Job.objects.update(lease_until=now() - SECOND)
        look_again(recovery)
        assert not is_taken(job)


def test_what_somebody_locks_is_first_seen_once_the_lock_is_gone(
    recovery: Recovery, kind: Any, other_session: psycopg.Connection
) -> None:
    """Its worker could not renew it either."""
    make, is_taken = kind
    job = make()
    with other_session.transaction():
        other_session.execute("SELECT FROM _pgwerk_jobs FOR NO KEY UPDATE")
        recovery.look()
        look_again(recovery)
    recovery.look()
    assert not is_taken(job)
    wait_until(lambda: step(recovery) or is_taken(job), 5)


def test_who_was_away_himself_begins_anew(recovery: Recovery, kind: Any) -> None:
    make, is_taken = kind
    job = make()
    recovery.look()
    connection.close()  # as the loop does after an outage
    look_again(recovery)
    assert not is_taken(job)
    assert recovery._seen is not None
    recovery._seen = recovery._seen._replace(at=recovery._seen.at - 2 * LEASE)  # frozen for so long
    recovery.look()
    assert not is_taken(job)
    wait_until(lambda: step(recovery) or is_taken(job), 5)


def test_a_claim_between_two_looks_is_anothers(recovery: Recovery) -> None:
    job = held()
    recovery.look()
    Job.objects.update(claims=2)
    look_again(recovery)
    assert status(job) == "RUNNING"


@pytest.mark.parametrize("until", [None, "infinity", "20000-01-01"])
def test_leases_that_python_cannot_express(recovery: Recovery, until: str | None) -> None:
    """As another program wrote them; of a worker that does not live."""
    job = held()
    with connection.cursor() as cursor:
        cursor.execute("UPDATE _pgwerk_jobs SET lease_until = %s::timestamptz", [until])
    wait_until(lambda: step(recovery) or Job.objects.values_list("status", flat=True).get(pk=job.pk) == "FAILED", 5)


@pytest.mark.parametrize("heartbeat", [dt.timedelta(), HOUR, -HOUR])
def test_a_lease_far_ahead_is_taken_from_a_silent_worker_only(
    recovery: Recovery, kind: Any, heartbeat: dt.timedelta
) -> None:
    """It was given while PostgreSQL's clock was ahead."""
    make, is_taken = kind
    role = "worker" if make is held else "scheduler"
    process = Process.objects.create(role=role, host="h", pid=1, heartbeat_at=now() + heartbeat)
    job = make(lease_until=now() + HOUR, worker_name=str(process), worker_id=process.pk)
    ordinary = make(lease_until=now() + SECOND)
    if heartbeat:
        wait_until(lambda: step(recovery) or is_taken(job), 5)
    else:
        recovery.look()
        look_again(recovery)
        assert not is_taken(job)
    assert not is_taken(ordinary)


def test_runs_without_a_second_look_take_what_has_been_expired_for_a_whole_lease(kind: Any, settings: Any) -> None:
    settings.PGWERK = {"LEASE": 30}
    make, is_taken = kind
    fresh, old = make(lease_until=now() - 20 * SECOND), make(lease_until=now() - 31 * SECOND)
    recover_old(using="default")
    assert (is_taken(fresh), is_taken(old)) == (False, True)
    assert recover_lost(using="default") == 0


def test_once_recovers_and_hands_over_what_is_old() -> None:
    job = held(lease_until=now() - HOUR)
    sent = leased(lease_until=now() - HOUR, target="django_tasks", function="tests.django_tasks.database")
    Scheduler(on_unregistered="keep").run_once()
    assert (status(job), status(sent)) == ("FAILED", "FORWARDED")


def test_an_expired_lease_is_not_handed_over_at_once() -> None:
    """Whoever held it may have sent it, and could not say so yet."""
    job = leased(target="django_tasks", function="tests.django_tasks.database")
    assert Outbox("h", using="default").claim("django_tasks", 10) == []
    assert Job.objects.all().waiting_targets() == []
    assert hand_over("h", using="default") == 0
    assert outbox.unrenewed_leases(using="default")
    assert status(job) == "READY"


def test_what_is_being_handed_over_is_not_skipped() -> None:
    """It may run already."""
    leased(start_by=now() - SECOND)
    waits = leased(start_by=now() - SECOND, lease_until=None)
    assert Job.objects.all().skip_not_started(10) == 1
    assert status(waits) == "SKIPPED"


def test_many_lost_jobs_are_found_in_two_looks(recovery: Recovery) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO _pgwerk_jobs (status, claims, attempt, worker_id, lease_until)"
            " SELECT 'RUNNING', 1, 1, n, now() - interval '1 second' FROM generate_series(1, 2500) n"
        )
    recovery.look()
    look_again(recovery)
    assert set(Job.objects.values_list("status", flat=True)) == {"FAILED"}


# -- housekeeping ----------------------------------------------------------------------------------------------------


def test_a_live_process_deletes_and_skips_batch_by_batch_until_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, other_session: psycopg.Connection
) -> None:
    monkeypatch.setattr(housekeeping, "BATCH", 2)
    for _ in range(5):
        Job.objects.create(status="SUCCESSFUL", expires_at=now() - SECOND)
    locked = Job.objects.create(status="SUCCESSFUL", expires_at=now() - HOUR)
    kept = Job.objects.create(status="SUCCESSFUL", expires_at=now() + HOUR)
    late = Job.objects.create(start_by=now() - SECOND)
    dead = Process.objects.create(role="worker", heartbeat_at=now() - 24 * HOUR)
    Alert.objects.create(kind="late", ended_at=now() - 9999 * HOUR)
    with other_session.transaction():
        other_session.execute("SELECT FROM _pgwerk_jobs WHERE id = %s FOR UPDATE", [locked.pk])
        other_session.execute("SELECT FROM _pgwerk_processes FOR UPDATE")
        house = Housekeeping(using="default", more_in=0)
        wait_until(lambda: house.step() or Job.objects.filter(status="SUCCESSFUL").count() == 2, 5)
        assert Process.objects.exists()
    assert status(late) == "SKIPPED"
    assert not Alert.objects.exists()
    house.clean_up()
    assert set(Job.objects.filter(status="SUCCESSFUL")) == {kept}
    assert not Process.objects.filter(pk=dead.pk).exists()


def test_a_run_that_does_not_look_twice_skips_what_was_to_start_by_now() -> None:
    job = Job.objects.create(start_by=now() - SECOND)
    keep_house(using="default")
    assert status(job) == "SKIPPED"


# -- real processes --------------------------------------------------------------------------------------------------


@pytest.fixture
def door() -> Iterator[Callable[[bool], None]]:
    """Shuts (False) and opens (True) the test's database: sessions are ended, new ones refused."""
    name = connection.settings_dict["NAME"]
    address = database_url().rpartition("/")[0] + "/postgres"
    with psycopg.connect(address, autocommit=True) as admin:

        def door(is_open: bool) -> None:
            connection.close()
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {is_open}')
            if not is_open:
                admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

        yield door
        door(True)


@pytest.mark.process
def test_results_and_progress_outlive_an_outage(door: Any, notes: Any) -> None:
    jobs = [Job.objects.create(function=f"tests.functions.{name}") for name in ("wait_for_gate", "say_after_gate")]
    worker = Worker(concurrency=2)
    thread = threading.Thread(target=lambda: (worker.run(), connections.close_all()))
    thread.start()
    lost = threading.Event()
    signals.database_lost.connect(lambda **event: lost.set(), weak=False, dispatch_uid="test")
    try:
        wait_until(lambda: Job.objects.filter(started_at__isnull=False).count() == 2)
        door(False)
        assert lost.wait(10)
        # One after the other: while the database is away, only the first statement of a pass is tried.
        for gate, word in (("gate", "leaving"), ("second gate", "said")):
            (notes / gate).touch()
            wait_until(lambda: [word] in functions.read())  # noqa: B023
            heard = time.monotonic() + 0.5  # it tries at once, in vain
            wait_until(lambda: time.monotonic() > heard)  # noqa: B023
        door(True)
        wait_until(lambda: Job.objects.get(pk=jobs[1].pk).progress is not None)
        wait_until(lambda: status(jobs[0]) == "SUCCESSFUL")
        assert status(jobs[1]) == "RUNNING"
        assert jobs[1].progress["note"] == "half"
    finally:
        (notes / "third gate").touch()
        signals.database_lost.disconnect(dispatch_uid="test")
        worker.stop()
        thread.join(20)
    assert set(Job.objects.values_list("status", "claims")) == {("SUCCESSFUL", 1)}


def test_an_outage_longer_than_a_lease_costs_no_live_worker_its_job(manage: Any, door: Any, notes: Any) -> None:
    """Whoever is back first, be it a scheduler that was not there before."""
    options = {"PGWERK_LEASE": "2"}
    workers = [manage("runworker", "--concurrency=1", **options) for _ in range(2)]
    jobs = [Job.objects.create(function="tests.functions.wait_for_gate") for _ in workers]
    wait_until(lambda: Job.objects.filter(started_at__isnull=False).count() == 2, 60)
    scheduler = manage("runscheduler", "--on-unregistered=keep", **options)
    wait_until(lambda: Process.objects.filter(role="scheduler").exists(), 60)
    ends = max(job.lease_until for job in Job.objects.all()) + SECOND
    door(False)
    with psycopg.connect(database_url().rpartition("/")[0] + "/postgres", autocommit=True) as clock:
        wait_until(lambda: clock.execute("SELECT now() > %s", [ends]).fetchone() == (True,))  # type: ignore[comparison-overlap]
    door(True)
    late = manage("runscheduler", "--on-unregistered=keep", **options)
    wait_until(lambda: Process.objects.filter(role="scheduler").count() == 2, 60)
    # Everybody has looked twice by the time that each lease was renewed twice.
    for _ in range(2):
        since = now()
        wait_until(lambda: Job.objects.filter(lease_until__gt=since + 2 * SECOND).count() == 2)  # noqa: B023
    (notes / "gate").touch()
    wait_until(lambda: Job.objects.filter(status="RUNNING").count() == 0)
    assert [status(job) for job in jobs] == ["SUCCESSFUL"] * 2
    assert set(Job.objects.values_list("claims", "attempt")) == {(1, 1)}
    for process in [*workers, scheduler, late]:
        assert process.stop() == 0, process.text()
        assert "jobs_recovered" not in process.text()
