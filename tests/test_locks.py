"""Somebody's lock on one row delays that row only; a batch that PostgreSQL refuses shrinks, and is not called a lost database."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, connection, connections, transaction

from pgwerk_django import housekeeping
from pgwerk_django import worker as workers
from pgwerk_django.claims import Claim, Claims
from pgwerk_django.execution import Outcome
from pgwerk_django.guarded import Size, Written
from pgwerk_django.housekeeping import Housekeeping
from pgwerk_django.jobs import enqueue
from pgwerk_django.models import Job, Process
from pgwerk_django.sqlstates import Refusal, refusal_of
from pgwerk_django.worker import Worker
from tests import functions
from tests.time_travel import SECOND, make, now
from tests.waiting import wait_until

pytestmark = [pytest.mark.process, pytest.mark.django_db(transaction=True)]

WRITES: dict[str, Callable[[Claims, Sequence[Claim]], Written]] = {
    "renew": lambda claims, held: claims.renew(held),
    "begin": lambda claims, held: claims.begin(dict.fromkeys(held, 0.0)),
    "progress": lambda claims, held: claims.progress(dict.fromkeys(held, '{"done": 1}')),
    "finish": lambda claims, held: claims.finish([(each, Outcome.success(1)) for each in held]),
    "hand back": lambda claims, held: claims.hand_back(held),
    "release": lambda claims, held: claims.release(dict.fromkeys(held)),
}


@pytest.fixture(params=[False, True], ids=["", "server-side binding"])
def using(request: pytest.FixtureRequest, transactional_db: None) -> Iterator[str]:
    """The test's database; once with a connection whose messages hold one statement each."""
    if not request.param:
        yield "default"
        return
    given = {**connections.databases["default"], **connection.settings_dict}
    connections.databases["bound"] = {**given, "OPTIONS": {**given.get("OPTIONS", {}), "server_side_binding": True}}
    connections["bound"].connect()
    yield "bound"
    connections["bound"].close()
    del connections["bound"]
    del connections.databases["bound"]


def claimed(number: int, using: str = "default") -> tuple[Claims, list[Claim]]:
    for n in range(number):
        Job.objects.create(key=f"{n}", function="tests.functions.noop")
    claims = Claims(1, "w", lease=60, using=using)
    rows = claims.claim(number, [])
    return claims, sorted(
        Job.objects.order_by("key").values_list("pk", "claims")[: len(rows)], key=lambda held: held[0]
    )


def locking(session: psycopg.Connection, pk: Any) -> contextlib.AbstractContextManager[Any]:
    """Somebody's transaction that stays open, as `Job.cancel()` in one leaves it."""
    stack = contextlib.ExitStack()
    stack.enter_context(session.transaction())
    session.execute("UPDATE _pgwerk_jobs SET reason = 'cancelled' WHERE id = %s", [pk])
    return stack


# -- the statements of a worker --------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_locked_row_is_busy_and_the_others_are_written(
    write: Callable[[Claims, Sequence[Claim]], Written], using: str, other_session: psycopg.Connection
) -> None:
    claims, held = claimed(3, using)
    Job.objects.filter(pk=held[2][0]).update(claims=7)  # another has taken that one
    with locking(other_session, held[1][0]):
        started = time.monotonic()
        written = write(claims, held)
        assert time.monotonic() - started < 5
    assert (set(written), written.busy, written.refused) == ({held[0][0]}, {held[1][0]}, {})
    again = write(claims, held[1:])
    assert (set(again), again.busy) == ({held[1][0]}, set())
    with connections[using].cursor() as cursor:
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone()[0] != "100ms"  # it leaves nothing behind in the session


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_while_the_table_is_locked_all_are_busy(
    write: Callable[[Claims, Sequence[Claim]], Written], other_session: psycopg.Connection
) -> None:
    """By VACUUM FULL, or a migration."""
    claims, held = claimed(2)
    with other_session.transaction():
        other_session.execute("LOCK TABLE _pgwerk_jobs")
        written = write(claims, held)
        assert (dict(written), written.busy) == ({}, {pk for pk, _ in held})
        for statement in (lambda: claims.claim(1, []), claims.to_stop):
            with pytest.raises(DatabaseError) as caught:
                statement()
            assert refusal_of(caught.value) is Refusal.BUSY
    assert len(write(claims, held)) == 2


REFUSES = """
CREATE FUNCTION refuses() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF {condition} THEN {action}; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuses BEFORE UPDATE ON _pgwerk_jobs FOR EACH ROW EXECUTE FUNCTION refuses()
"""


@pytest.fixture
def trigger(transactional_db: None) -> Iterator[Callable[[str, str], None]]:
    """Somebody's trigger, which does something amid our updates."""

    def make(condition: str, action: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(REFUSES.format(condition=condition, action=action))

    yield make
    with connection.cursor() as cursor:
        cursor.execute("DROP TRIGGER IF EXISTS refuses ON _pgwerk_jobs; DROP FUNCTION IF EXISTS refuses")


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_the_job_whose_row_is_refused_is_found_and_the_others_are_written(
    write: Callable[[Claims, Sequence[Claim]], Written], trigger: Any
) -> None:
    claims, held = claimed(9)
    bad = Job.objects.get(key="4").pk
    trigger("NEW.key = '4'", "RAISE EXCEPTION 'not this one'")
    written = write(claims, held)
    assert (len(written), set(written.refused), written.busy) == (8, {bad}, set())


def test_each_job_gets_its_own_values_where_others_are_refused_or_locked(
    trigger: Any, other_session: psycopg.Connection
) -> None:
    claims, held = claimed(9)
    keys = dict(Job.objects.values_list("pk", "key"))
    trigger("NEW.key = '4'", "RAISE EXCEPTION 'not this one'")
    locked = next(pk for pk, key in keys.items() if key == "1")
    with locking(other_session, locked):
        written = claims.finish([(each, Outcome.success(keys[each[0]])) for each in held])
    assert len(written) == 7
    results = Job.objects.filter(status="SUCCESSFUL").values_list("key", "result")
    assert sorted(results) == [(key, key) for key in "0235678"]


def test_a_transaction_of_the_callers_keeps_its_own_lock_timeout() -> None:
    claims, held = claimed(1)
    with transaction.atomic(), connection.cursor() as cursor:
        claims.renew(held)
        claims.claim(1, [])
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone()[0] != "100ms"


@pytest.mark.parametrize("sqlstate", ["40P01", "40001"])
def test_a_deadlock_is_tried_again(sqlstate: str, trigger: Any) -> None:
    claims, held = claimed(3)
    trigger("true", f"RAISE SQLSTATE '{sqlstate}'")
    assert claims.renew(held).busy == {pk for pk, _ in held}


def test_sizes_shrink_and_grow_again() -> None:
    size = Size(1000)
    size.shrink(300)
    assert size.most == 150
    size.grow(3)  # not a full one
    assert size.most == 150
    for _ in range(5):
        size.grow(size.most)
    assert size.most == 1000
    size.shrink(1)
    assert size.most == 1


# -- a worker --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def working(**options: Any) -> Iterator[Worker]:
    worker = Worker(**{"concurrency": 2, **options})
    thread = threading.Thread(target=lambda: (worker.run(), connections.close_all()))
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(40)
        assert not thread.is_alive()


def status(key: str) -> str:
    return str(Job.objects.values_list("status", flat=True).get(key=key))


def ended(*keys: str) -> bool:
    return not Job.objects.filter(key__in=keys, status__in=["READY", "RUNNING"]).exists()


def test_only_the_locked_job_waits_and_it_ends_as_it_ended(
    other_session: psycopg.Connection, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.PGWERK = {"LEASE": 1.5, "POLL_INTERVAL": 0.1}
    locked = enqueue(functions.wait_for_gate, _key="locked")
    assert locked is not None
    with working():
        wait_until(lambda: Job.objects.filter(key="locked", started_at__isnull=False).exists())
        with locking(other_session, locked.pk):
            functions.gate.set()
            ends = Job.objects.get(key="locked").lease_until + SECOND
            for n in range(5):
                enqueue(functions.add, n, _key=f"{n}")
            wait_until(lambda: ended(*"01234"))
            wait_until(lambda: now() > ends)  # so that its lease is long over
        wait_until(lambda: ended("locked"))
    assert set(Job.objects.values_list("status", "claims")) == {("SUCCESSFUL", 1)}
    assert "lease_lost" not in caplog.text
    assert "database_lost" not in caplog.text


@pytest.mark.parametrize("lock", ["rows", "table"])
def test_a_lock_longer_than_a_lease_beside_workers_that_recover_has_no_job_run_twice(
    lock: str, manage: Any, other_session: psycopg.Connection, notes: Any
) -> None:
    """Each of the four looks for what is lost while none can renew, and in the moment that the lock goes."""
    members = [manage("runworker", "--concurrency=1", PGWERK_LEASE="2") for _ in range(4)]
    for n in range(4):
        enqueue(functions.wait_for_gate, _key=f"{n}", _max_attempts=3)
    wait_until(lambda: Job.objects.filter(started_at__isnull=False).count() == 4, 60)
    ends = max(job.lease_until for job in Job.objects.all()) + SECOND
    with other_session.transaction():
        if lock == "table":
            other_session.execute("LOCK TABLE _pgwerk_jobs")
        else:
            other_session.execute("SELECT FROM _pgwerk_jobs FOR NO KEY UPDATE")
        wait_until(lambda: now() > ends)
    released = now()
    # Everybody has looked twice by the time that each lease was renewed twice.
    for seconds in (1, 2):
        wait_until(lambda: Job.objects.filter(lease_until__gt=released + (2 + seconds / 2) * SECOND).count() == 4)  # noqa: B023
    functions.gate.set()
    wait_until(lambda: ended(*"0123"))
    assert set(Job.objects.values_list("status", "claims", "attempt")) == {("SUCCESSFUL", 1, 1)}
    assert len([note for note in functions.read() if note[0] == "waiting"]) == 4
    for member in members:
        assert member.stop() == 0, member.text()
        assert "lease_lost" not in member.text()


def test_a_lock_at_the_end_is_waited_for_then_told_and_the_exit_code_is_1(
    manage: Any, other_session: psycopg.Connection
) -> None:
    locked = enqueue(functions.wait_for_gate, _key="locked")
    assert locked is not None
    worker = manage("runworker", "--concurrency=1", "--shutdown-timeout=1.5")
    wait_until(lambda: Job.objects.filter(started_at__isnull=False).exists(), 60)
    with locking(other_session, locked.pk):
        functions.gate.set()
        assert worker.stop() == 1, worker.text()
    assert "jobs_unsettled jobs=locked" in worker.text()
    assert status("locked") == "RUNNING"  # its lease runs out


def test_a_lock_that_goes_before_the_end_costs_nothing(manage: Any, other_session: psycopg.Connection) -> None:
    locked = enqueue(functions.wait_for_gate, _key="locked")
    assert locked is not None
    worker = manage("runworker", "--concurrency=1")
    wait_until(lambda: Job.objects.filter(started_at__isnull=False).exists(), 60)
    with locking(other_session, locked.pk):
        functions.gate.set()
        wait_until(lambda: ["leaving"] in functions.read())
        worker.process.terminate()
        make(_name="meanwhile")
    assert worker.process.wait(30) == 0, worker.text()
    assert status("locked") == "SUCCESSFUL"


def test_a_lock_that_keeps_a_running_job_from_being_handed_back_is_told(other_session: psycopg.Connection) -> None:
    locked = enqueue(functions.wait_for_gate, _key="locked")
    assert locked is not None
    with working(concurrency=1, shutdown_timeout=0) as worker:
        wait_until(lambda: Job.objects.filter(started_at__isnull=False).exists())
        with locking(other_session, locked.pk):
            worker.stop()
            wait_until(lambda: not Process.objects.exists())
            wait_until(lambda: worker.unsettled == ["locked"], 5)
    assert status("locked") == "RUNNING"  # its lease runs out


def test_a_locked_job_that_waits_for_its_turn_is_handed_back_after_the_lock(
    other_session: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other job that waits behind the long one is handed back during the lock."""
    monkeypatch.setattr(workers, "LONGEST_AHEAD", 60)
    Job.objects.bulk_create([Job(function="tests.functions.noop") for _ in range(100)])
    with working(concurrency=1):
        wait_until(lambda: Job.objects.filter(status="SUCCESSFUL").count() == 100)  # so it claims ahead
        long = Job(function="tests.functions.wait_for_gate", key="long", priority=1)
        Job.objects.bulk_create([long, *(Job(function="tests.functions.noop", key=f"{n}") for n in range(2))])
        wait_until(lambda: Job.objects.filter(status="RUNNING").count() == 3)
        with locking(other_session, Job.objects.get(key="1").pk):
            monkeypatch.setattr(workers, "LONGEST_AHEAD", 0.5)
            wait_until(lambda: status("0") == "READY")
            assert status("1") == "RUNNING"
        wait_until(lambda: status("1") == "READY", 10)
        assert status("long") == "RUNNING"
        functions.gate.set()
        wait_until(lambda: ended("0", "1", "long"))
    assert set(Job.objects.values_list("status", "attempt")) == {("SUCCESSFUL", 1)}


def count_busy(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Written]:
    """What this method of `Claims` answers from now on, when it found a row locked."""
    found: list[Written] = []
    method = getattr(Claims, name)

    def counted(self: Claims, *args: Any, **options: Any) -> Any:
        written = method(self, *args, **options)
        if written.busy:
            found.append(written)
        return written

    monkeypatch.setattr(Claims, name, counted)
    return found


def drop_trigger() -> None:
    with connection.cursor() as cursor:
        cursor.execute("DROP TRIGGER refuses ON _pgwerk_jobs")


def test_a_job_of_an_unknown_function_is_released_after_a_lock(trigger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = count_busy(monkeypatch, "release")
    trigger("NEW.unknown_since IS NOT NULL", "RAISE SQLSTATE '55P03'")  # as if its row were locked
    job = Job.objects.create(function="tests.older_code.added", key="new")
    with working(concurrency=1):
        wait_until(lambda: found)
        drop_trigger()
        wait_until(lambda: Job.objects.exclude(status="RUNNING").exists())
    job.refresh_from_db()
    assert (job.status, job.attempt, job.error, job.unknown_since is None) == ("READY", 0, "", False)


def test_the_start_of_a_job_is_written_after_a_lock(trigger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the job would spend no attempt when its worker is killed."""
    found = count_busy(monkeypatch, "begin")
    trigger("NEW.started_at IS NOT NULL AND NEW.status = 'RUNNING'", "RAISE SQLSTATE '55P03'")  # as if it were locked
    enqueue(functions.wait_for_gate, _key="long")
    with working(concurrency=1):
        wait_until(lambda: found)
        drop_trigger()
        wait_until(lambda: Job.objects.filter(prefetched=False, started_at__isnull=False).exists(), 10)
        assert status("long") == "RUNNING"
        functions.gate.set()
    assert status("long") == "SUCCESSFUL"


def test_the_last_try_of_a_worker_that_stops_waits_for_no_pause(trigger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "FIRST_AGAIN", 60)
    monkeypatch.setattr(workers, "LONGEST_AGAIN", 60)
    found = count_busy(monkeypatch, "finish")
    trigger("NEW.status = 'SUCCESSFUL'", "RAISE SQLSTATE '55P03'")  # as if its row were locked
    enqueue(functions.noop, _key="locked")
    with working(concurrency=1, shutdown_timeout=0) as worker:
        wait_until(lambda: found)
        drop_trigger()
    assert (status("locked"), worker.unsettled) == ("SUCCESSFUL", [])


def test_a_locked_job_delays_no_schedule_of_a_scheduler_with_a_worker(
    manage: Any, other_session: psycopg.Connection
) -> None:
    row = make("tests.functions.noop", interval=1, _name="each second", _misfire="ALL")
    locked = enqueue(functions.wait_for_gate, _key="locked")
    assert locked is not None
    scheduler = manage("runscheduler", "--with-worker", "--on-unregistered=keep", "--concurrency=2")
    wait_until(lambda: Job.objects.filter(key="locked", started_at__isnull=False).exists(), 60)
    with locking(other_session, locked.pk):
        functions.gate.set()
        wait_until(lambda: ["leaving"] in functions.read())
        ran = Job.objects.filter(schedule=row, status="SUCCESSFUL").count()
        wait_until(lambda: Job.objects.filter(schedule=row, status="SUCCESSFUL").count() >= ran + 2, 10)
    wait_until(lambda: ended("locked"))
    assert scheduler.stop() == 0, scheduler.text()


def test_a_lock_on_its_own_row_does_not_stop_a_worker(other_session: psycopg.Connection, monkeypatch: Any) -> None:
    monkeypatch.setattr(workers, "HEARTBEAT", SECOND / 10)
    with working(), contextlib.suppress(psycopg.Rollback):
        wait_until(Process.objects.exists)
        with other_session.transaction():
            other_session.execute("SELECT FROM _pgwerk_processes FOR UPDATE")
            before = Process.objects.get().heartbeat_at
            enqueue(functions.noop, _key="one")
            wait_until(lambda: ended("one"))
            assert Process.objects.get().heartbeat_at == before
        wait_until(lambda: Process.objects.get().heartbeat_at > before)


# -- what takes too long, or is refused ------------------------------------------------------------------------------


@pytest.fixture
def limited(transactional_db: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """Sessions from now on have a time limit, which may also end them."""
    setting = getattr(request, "param", "statement_timeout")
    name = connection.settings_dict["NAME"]
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_settings WHERE name = %s", [setting])
        if cursor.fetchone() is None:
            pytest.skip(f"this PostgreSQL has no {setting}")
        cursor.execute(f'ALTER DATABASE "{name}" SET {setting} = 300')
        yield
        cursor.execute(f'ALTER DATABASE "{name}" RESET {setting}')


SLOW = "PERFORM pg_sleep(5)"


@pytest.mark.parametrize("limited", ["statement_timeout", "transaction_timeout"], indirect=True)
def test_an_outcome_that_is_cancelled_each_time_fails_and_the_others_are_written(
    limited: None, trigger: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "LONGEST_AGAIN", 0.3)
    trigger("NEW.key = 'large' AND NEW.result IS NOT NULL", SLOW)
    with working(concurrency=1):
        for key in ("0", "1", "large", "2", "3"):
            enqueue(functions.add, 1, _key=key)
        wait_until(lambda: ended("0", "1", "2", "3", "large"))
        enqueue(functions.add, 1, _key="after")
        wait_until(lambda: ended("after"))
    large = Job.objects.get(key="large")
    assert (large.status, large.result) == ("FAILED", None)
    assert large.error.startswith("the outcome cannot be stored: its result of 0.0 kB could not be stored within")
    assert set(Job.objects.exclude(key="large").values_list("status", flat=True)) == {"SUCCESSFUL"}
    assert "statement_refused" in caplog.text
    assert "database_lost" not in caplog.text


def test_while_the_server_is_slow_no_outcome_is_blamed(
    limited: None, trigger: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its row cannot be written to at all: that is not the fault of its result."""
    monkeypatch.setattr(workers, "LONGEST_AGAIN", 0.05)
    tried: list[Any] = []
    finish = Claims.finish

    def counted(self: Claims, *args: Any, **options: Any) -> Any:
        tried.append(1)
        return finish(self, *args, **options)

    monkeypatch.setattr(Claims, "finish", counted)
    job = enqueue(functions.wait_for_gate, _key="one")
    assert job is not None
    with working(concurrency=1):
        wait_until(lambda: Job.objects.filter(started_at__isnull=False).exists())
        trigger("true", SLOW)
        functions.gate.set()
        wait_until(lambda: len(tried) > 2 * workers.MOST_CANCELLED)
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER refuses ON _pgwerk_jobs")
        wait_until(lambda: ended("one"))
    assert status("one") == "SUCCESSFUL"


def test_progress_that_is_refused_or_cancelled_blocks_no_outcome(limited: None, trigger: Any) -> None:
    trigger("NEW.progress::text LIKE '%bad%'", "RAISE EXCEPTION 'no'")
    trigger_slow = REFUSES.replace("refuses", "slows").format(condition="NEW.progress::text LIKE '%slow%'", action=SLOW)
    with connection.cursor() as cursor:
        cursor.execute(trigger_slow)
    try:
        with working():
            for key, value in (("bad", "bad"), ("slow", "slow"), ("good", "good")):
                enqueue(functions.tell_progress, value, _key=key)
            wait_until(lambda: ended("bad", "slow", "good"))
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER slows ON _pgwerk_jobs; DROP FUNCTION slows")
    assert dict(Job.objects.values_list("key", "status")) == dict.fromkeys(("bad", "slow", "good"), "SUCCESSFUL")
    assert Job.objects.get(key="good").progress["note"] == "good"


@pytest.mark.parametrize(
    ("condition", "error"),
    [
        ("NEW.result IS NOT NULL", "the outcome cannot be stored: not this one"),
        ("NEW.status = 'SUCCESSFUL' OR NEW.error LIKE '%: not this one%'", "the outcome cannot be stored"),
    ],
)
def test_an_outcome_that_is_refused_fails_with_as_much_as_can_be_said(condition: str, error: str, trigger: Any) -> None:
    trigger(f"NEW.key = 'bad' AND ({condition})", "RAISE EXCEPTION 'not this one'")
    with working(concurrency=1):
        for key in ("0", "bad", "1"):
            enqueue(functions.add, 1, _key=key)
        wait_until(lambda: ended("0", "bad", "1"))
    bad = Job.objects.get(key="bad")
    assert (bad.status, bad.error.splitlines()[0]) == ("FAILED", error)
    assert (status("0"), status("1")) == ("SUCCESSFUL", "SUCCESSFUL")


def test_a_job_that_cannot_be_written_at_all_stops_nothing_and_is_told_at_the_end(trigger: Any, manage: Any) -> None:
    worker = manage("runworker", "--concurrency=1", "--shutdown-timeout=0.5")
    enqueue(functions.wait_for_gate, _key="bad")
    wait_until(lambda: Job.objects.filter(started_at__isnull=False).exists(), 60)
    trigger("NEW.key = 'bad' AND NEW.status <> 'RUNNING'", "RAISE EXCEPTION 'never'")
    functions.gate.set()
    enqueue(functions.add, 1, _key="good")
    wait_until(lambda: ended("good"))
    assert worker.stop() == 1
    assert "jobs_unsettled jobs=bad" in worker.text()


def test_a_full_disk_is_an_outage_that_costs_no_outcome(trigger: Any, caplog: pytest.LogCaptureFixture) -> None:
    """And is called by its name."""
    enqueue(functions.wait_for_gate, _key="one")
    with working(concurrency=1):
        wait_until(lambda: Job.objects.filter(started_at__isnull=False).exists())
        trigger("NEW.status <> 'RUNNING'", "RAISE SQLSTATE '53100' USING MESSAGE = 'no space left on device'")
        functions.gate.set()
        wait_until(lambda: "DiskFull (53100): no space left on device" in caplog.text)
        assert status("one") == "RUNNING"
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER refuses ON _pgwerk_jobs")
        wait_until(lambda: ended("one"))
    assert status("one") == "SUCCESSFUL"


def test_claims_of_large_rows_shrink_until_they_fit(limited: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each row took a tenth of a second."""
    limits: list[int] = []
    claim = Claims.claim

    def slow(self: Claims, limit: int, queues: Sequence[str], **options: Any) -> Any:
        limits.append(limit)
        if limit > 2:
            with connections["default"].cursor() as cursor:
                cursor.execute("SELECT pg_sleep(%s)", [limit / 10])
        return claim(self, limit, queues, **options)

    monkeypatch.setattr(Claims, "claim", slow)
    monkeypatch.setattr(workers, "FIRST_AGAIN", 0.01)
    for n in range(20):
        enqueue(functions.noop, _key=f"{n}")
    with working(concurrency=1, threads=20):
        wait_until(lambda: ended(*map(str, range(20))))
    assert limits[0] > limits[-1]


def clean_up(times: int) -> None:
    house = Housekeeping(using="default")
    for _ in range(times):
        house.clean_up()


def test_a_clean_up_that_is_cancelled_is_tried_with_fewer(limited: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "BATCH", 8)
    for _ in range(8):
        Job.objects.create(status="SUCCESSFUL", expires_at=now() - SECOND)
    with connection.cursor() as cursor:
        cursor.execute(
            """
            CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.05); RETURN OLD; END $$;
            CREATE TRIGGER slow BEFORE DELETE ON _pgwerk_jobs FOR EACH ROW EXECUTE FUNCTION slow()
            """
        )
    try:
        thread = threading.Thread(target=lambda: (clean_up(times=6), connections.close_all()))
        thread.start()
        thread.join(20)
        assert not Job.objects.exists()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER slow ON _pgwerk_jobs; DROP FUNCTION slow")


def test_results_that_are_too_large_together_go_in_several_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    finish = Claims.finish

    def counted(self: Claims, outcomes: Any, **options: Any) -> Any:
        sent.append(sum(len(outcome.result) for _, outcome in outcomes))
        return finish(self, outcomes, **options)

    monkeypatch.setattr(Claims, "finish", counted)
    monkeypatch.setattr(workers, "LARGEST_MESSAGE", 200)
    monkeypatch.setattr(workers, "LINGER", 0.3)  # so that they end together
    for n, length in enumerate((10, 90, 90, 150, 300)):
        enqueue(functions.long_text, length, _key=f"{n}")
    Worker(burst=True, concurrency=1, threads=5).run()
    assert Job.objects.filter(status="SUCCESSFUL").count() == 5
    assert all(size <= 200 or size == 302 for size in sent)
