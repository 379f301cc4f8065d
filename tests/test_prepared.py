"""What a live scheduler repeats is prepared in its session, and in no session that is not its own."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext

from pgwerk_django import prepared
from pgwerk_django.models import Job, Schedule
from pgwerk_django.tick import MOST_FOR_A_KEPT_PLAN, tick
from tests.time_travel import SECOND, make

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def keeping() -> Iterator[None]:
    with prepared.keeping():
        yield
    connection.close()  # and with it what was prepared and set


def statements() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement FROM pg_prepared_statements ORDER BY prepare_time")
        return [row[0] for row in cursor]


def asked(ask: Any) -> list[str]:
    with CaptureQueriesContext(connection) as queries:
        ask()
    return [query["sql"].split(" ", 1)[0] for query in queries]


def due(count: int) -> None:
    for number in range(count):
        make(_name=f"n{number}", ago=SECOND)


@pytest.mark.usefixtures("keeping")
def test_a_repeated_tick_is_not_planned_again() -> None:
    due(3)
    assert tick(using="default", batch_size=1) == 1
    assert len(statements()) == 2  # the claim and the write
    repeated = asked(lambda: tick(using="default", batch_size=1))
    assert [word for word in repeated if word in ("SELECT", "WITH", "PREPARE", "EXECUTE")] == ["EXECUTE", "EXECUTE"]
    with connection.cursor() as cursor:
        cursor.execute("SELECT sum(custom_plans) FROM pg_prepared_statements")
        assert cursor.fetchone()[0] == 0
    assert Job.objects.count() == 2


@pytest.mark.usefixtures("keeping")
def test_a_look_is_not_planned_again() -> None:
    due(1)
    found = Schedule.objects.look()[0]
    assert asked(Schedule.objects.look) == ["EXECUTE"]
    assert Schedule.objects.look()[0] == found
    assert Schedule.objects.look(found)[0] == found
    assert Schedule.objects.look(found + SECOND)[0] is None
    assert len(statements()) == 1


@pytest.mark.usefixtures("keeping")
def test_a_plan_does_not_outlive_what_it_was_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some seconds later the tables may be another size."""
    Schedule.objects.look()
    assert asked(Schedule.objects.look) == ["EXECUTE"]
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 15)
    monkeypatch.setattr("pgwerk_django.prepared.time", later)
    assert asked(Schedule.objects.look) == ["SET", "EXECUTE"]
    assert asked(Schedule.objects.look) == ["EXECUTE"]


@pytest.mark.usefixtures("keeping")
def test_a_large_tick_has_a_plan_of_its_own() -> None:
    due(MOST_FOR_A_KEPT_PLAN + 1)
    assert tick(using="default") == MOST_FOR_A_KEPT_PLAN + 1
    assert len(statements()) == 1  # the claim
    assert Job.objects.count() == MOST_FOR_A_KEPT_PLAN + 1


@pytest.mark.usefixtures("keeping")
def test_another_connection_has_its_own() -> None:
    due(2)
    assert tick(using="default", batch_size=1) == 1
    connection.close()
    assert tick(using="default", batch_size=1) == 1
    assert len(statements()) == 2


@pytest.mark.usefixtures("keeping")
def test_where_they_do_not_stay_it_does_without() -> None:
    due(3)
    assert tick(using="default", batch_size=1) == 1
    with connection.cursor() as cursor:
        cursor.execute("DEALLOCATE ALL")
    with pytest.raises(OperationalError, match="of no use any more"):  # which a loop outlives
        tick(using="default", batch_size=1)
    assert tick(using="default", batch_size=1) == 1
    assert tick(using="default", batch_size=1) == 1
    assert statements() == []
    assert Job.objects.count() == 3


@pytest.mark.usefixtures("keeping")
def test_a_migration_that_changes_a_type_is_outlived() -> None:
    due(3)
    assert tick(using="default", batch_size=1) == 1
    try:
        retype("run_count", "numeric")
        with pytest.raises(OperationalError, match="of no use any more"):
            tick(using="default", batch_size=1)
        assert tick(using="default", batch_size=1) == 1
    finally:
        retype("run_count", Schedule._meta.get_field("run_count").db_type(connection))
    assert Job.objects.count() == 2


def retype(column: str, new: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE _pgwerk_schedules ALTER COLUMN {column} TYPE {new}")


@pytest.mark.usefixtures("keeping")
def test_what_a_rollback_takes_back_is_not_missed() -> None:
    due(2)
    with transaction.atomic():
        assert tick(using="default", batch_size=1) == 1
        transaction.set_rollback(True)
    assert tick(using="default", batch_size=1) == 1
    assert tick(using="default", batch_size=1) == 1
    assert Job.objects.count() == 2


def test_who_only_ticks_leaves_nothing_in_the_session() -> None:
    due(1)
    Schedule.objects.look()
    assert tick(using="default") == 1
    assert statements() == []
