"""A time limit of the database costs a tick its size, and never its work."""

import datetime as dt
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from django.db import OperationalError, connection, transaction

from pgwerk_django import pace, signals
from pgwerk_django.models import Job, Schedule
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.tick import tick
from tests.time_travel import SECOND, jobs, make, reread
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

MANY = 64
SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE INSERT ON _pgwerk_jobs FOR EACH ROW WHEN (NEW.schedule_name LIKE '{names}')
EXECUTE FUNCTION slow();
"""


@pytest.fixture
def slow() -> Iterator[Callable[..., None]]:
    """Have the jobs of some schedules take so long to insert: as large arguments do, and a site's own triggers."""

    def make_slow(names: str = "%", seconds: float = 0.01) -> None:
        with connection.cursor() as cursor:
            cursor.execute(SLOW.format(names=names, seconds=seconds))

    yield make_slow
    with connection.cursor() as cursor:
        cursor.execute("DROP FUNCTION IF EXISTS slow() CASCADE")


@pytest.fixture
def limit() -> Iterator[Callable[[str, str], None]]:
    """A time limit of the database, for each connection from then on."""
    name = connection.settings_dict["NAME"]

    def set_limit(setting: str, value: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER DATABASE \"{name}\" SET {setting} = '{value}'")
        connection.close()

    yield set_limit
    connection.close()
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")
        cursor.execute(f'ALTER DATABASE "{name}" RESET ALL')
    connection.close()


@pytest.fixture
def heard() -> Iterator[list[tuple[str, Any]]]:
    found: list[tuple[str, Any]] = []
    told = {"cut": signals.tick_cut_short, "left": signals.schedule_left_alone}
    for what, signal in told.items():
        signal.connect(
            lambda what=what, **event: found.append((what, event.get("schedules", event.get("name")))),
            weak=False, dispatch_uid="test",
        )  # fmt: skip
    yield found
    for signal in told.values():
        signal.disconnect(dispatch_uid="test")


@pytest.mark.parametrize(
    ("setting", "milliseconds"),
    [("statement_timeout", 250), ("transaction_timeout", 250)],
)
def test_a_batch_that_takes_too_long_is_halved_until_it_fits(
    scheduler: Scheduler, slow: Any, limit: Any, heard: Any, setting: str, milliseconds: int
) -> None:
    if setting == "transaction_timeout" and connection.pg_version < 170000:
        pytest.skip("PostgreSQL has it from 17 on")
    for number in range(MANY):
        make(ago=SECOND, _name=f"s{number}")
    slow()
    limit(setting, f"{milliseconds}ms")
    handled = []
    while count := scheduler.tick():
        handled.append(count)
    assert sum(handled) == MANY
    assert Job.objects.count() == MANY
    assert not Schedule.objects.exclude(error="").exists()
    assert heard[:2] == [("cut", 64), ("cut", 32)]  # and 16 at 10 ms fit
    assert len(heard) <= 4


def test_a_tick_that_thinks_for_too_long_between_its_statements_takes_less(
    scheduler: Scheduler, limit: Any, heard: Any
) -> None:
    """`idle_in_transaction_session_timeout` ends the session, and the connection with it."""
    for number in range(1000):
        make(cron=f"{number % 60} {number % 24} * * {number % 7}", _name=f"s{number}")
    Schedule.objects.update(next_run_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC), replan=False)
    limit("idle_in_transaction_session_timeout", "15ms")
    while scheduler.tick():
        pass
    assert heard[0] == ("cut", 1000)
    assert {each.schedule_name for each in Job.objects.all()} == {f"s{number}" for number in range(1000)}


def test_what_does_not_fit_alone_rests_while_the_others_go_on(
    scheduler: Scheduler, slow: Any, limit: Any, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = make(ago=10 * SECOND, _name="huge")
    others = [make(ago=SECOND, _name=f"s{number}") for number in range(7)]
    slow("huge", 0.3)
    limit("statement_timeout", "100ms")
    while scheduler.tick():
        pass
    assert [len(jobs(row)) for row in others] == [1] * 7
    assert heard == [("cut", 8), ("cut", 4), ("cut", 2), ("left", "huge")]
    assert (reread(huge).error, reread(huge).next_run_at) == ("", huge.next_run_at)
    scheduler.trigger("s1")
    assert scheduler.tick() == 1  # at once, and in one batch again
    limit("statement_timeout", "10s")
    wait_until(scheduler.tick)  # no restart is needed
    assert len(jobs(huge)) == 1
    assert scheduler.tick() == 0


def test_a_time_limit_sets_nothing_aside(scheduler: Scheduler, slow: Any, limit: Any) -> None:
    """Also not where a row that the database refuses has the batch halved by savepoints."""
    bad = make(ago=SECOND, _name="bad")
    Schedule.objects.filter(pk=bad.pk).update(run_count=2**31 - 1)
    for number in range(30):
        make(ago=SECOND, _name=f"s{number}")
    slow("s%", 0.01)
    limit("statement_timeout", "150ms")
    while scheduler.tick():
        pass
    assert list(Schedule.objects.exclude(error="").values_list("name", flat=True)) == ["bad"]
    assert Job.objects.count() == 30


def test_a_lock_that_a_statement_waits_for_too_long_sets_nothing_aside(
    scheduler: Scheduler, other_session: psycopg.Connection, heard: Any
) -> None:
    """Somebody writes a job with the key that a tick is to write, and does not commit."""
    row, free = make(ago=SECOND, _name="held"), make(ago=SECOND, _name="free")
    key = f"held@{row.next_run_at.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    with other_session.transaction(force_rollback=True):
        other_session.execute("INSERT INTO _pgwerk_jobs (key) VALUES (%s)", [key])
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '50ms'")
        while scheduler.tick():
            pass
        assert (len(jobs(row)), len(jobs(free))) == (0, 1)
        assert (reread(row).error, reread(row).next_run_at) == ("", row.next_run_at)
        assert heard[-1] == ("left", "held")
    wait_until(scheduler.tick)
    assert len(jobs(row)) == 1


def test_a_tick_that_a_person_cancels_comes_again(
    scheduler: Scheduler, slow: Any, other_session: psycopg.Connection, heard: Any
) -> None:
    row = make(ago=SECOND)
    slow("%", 0.5)
    pid = connection.ensure_connection() or connection.connection.info.backend_pid
    cancelled = threading.Thread(
        target=lambda: (
            wait_until(
                lambda: other_session.execute(
                    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'",
                    [pid],
                ).fetchone()
            ),
            connection.close(),
        )
    )
    cancelled.start()
    assert scheduler.tick() == 0
    cancelled.join()
    assert heard == [("left", row.name)]
    wait_until(scheduler.tick)
    assert len(jobs(row)) == 1


def test_where_not_even_a_look_comes_to_its_end_there_is_a_pause(scheduler: Scheduler, limit: Any, heard: Any) -> None:
    make(ago=SECOND)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE _pgwerk_schedules RENAME TO hidden")
        cursor.execute("CREATE VIEW _pgwerk_schedules AS SELECT hidden.* FROM hidden, pg_sleep(0.2)")
    try:
        limit("statement_timeout", "50ms")
        assert [scheduler.tick() for _ in range(50)] == [0] * 50
    finally:
        limit("statement_timeout", "10s")
        with connection.cursor() as cursor:
            cursor.execute("DROP VIEW _pgwerk_schedules")
            cursor.execute("ALTER TABLE hidden RENAME TO _pgwerk_schedules")
    assert len(heard) < 15  # 1000, 500, ... 1, and then a rest
    wait_until(scheduler.tick)


def test_in_a_transaction_of_the_callers_it_raises(scheduler: Scheduler, slow: Any) -> None:
    """Nothing can be tried again there."""
    make(ago=SECOND)
    slow("%", 0.3)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL statement_timeout = '50ms'")
        with pytest.raises(OperationalError, match="statement timeout"):
            scheduler.tick()
        transaction.set_rollback(True)


def test_a_tick_alone_raises(slow: Any, limit: Any) -> None:
    make(ago=SECOND)
    slow("%", 0.3)
    limit("statement_timeout", "50ms")
    with pytest.raises(OperationalError, match="statement timeout"):
        tick(using="default")


# -- the rule itself, with a clock of the test's own


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    at = [1000.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: at[0])
    yield at
    monkeypatch.undo()


def taking(given: pace.Pace, pks: tuple[int, ...], batch_size: int = 100) -> pace.Batch:
    batch = given.next_batch(batch_size)
    assert batch is not None
    batch.pks = tuple(pk for pk in pks if pk not in batch.without and batch.only in (None, pk))[: batch.limit]
    return batch


def test_a_batch_grows_again_once_a_minute(clock: list[float]) -> None:
    given, rows = pace.Pace(), tuple(range(100))
    given.cut(taking(given, rows))
    given.cut(taking(given, rows))
    sizes = []
    for _ in range(5):
        batch = taking(given, rows)
        given.fitted(batch)
        sizes.append(batch.limit)
        clock[0] += pace.GROW_AFTER / 2
    assert sizes == [25, 25, 50, 50, 100]


def test_a_rest_doubles_up_to_its_longest_and_is_over_with_a_success(clock: list[float]) -> None:
    given, rests = pace.Pace(), []
    for _ in range(12):
        batch = taking(given, (7,))
        rests.append(given.cut(batch))
        assert taking(given, (7,)).pks == ()
        given.fitted(taking(given, ()))
        clock[0] += rests[-1]
    assert rests == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]
    batch = taking(given, (7,))
    assert batch.only == 7
    given.fitted(batch)
    assert given.next_batch(100).without == ()  # type: ignore[union-attr]


def test_what_takes_long_to_fail_rests_for_longer(clock: list[float]) -> None:
    """A process gives it a tenth of its time at most."""
    given = pace.Pace()
    batch = taking(given, (7,))
    clock[0] += 30
    assert given.cut(batch) == 300


def test_what_rests_is_tried_by_turns_with_the_others(clock: list[float]) -> None:
    given = pace.Pace()
    for pk in range(5):
        given.cut(taking(given, (pk,)))
    clock[0] += 10
    assert [taking(given, (8, 9)).only is None for _ in range(6)].count(True) == 3


def test_one_that_is_no_longer_due_is_forgotten(clock: list[float]) -> None:
    given = pace.Pace()
    given.cut(taking(given, (7,)))
    for _ in range(30):
        clock[0] += pace.LONGEST_REST
        given.fitted(taking(given, ()))
    assert given.next_batch(100).without == ()  # type: ignore[union-attr]
