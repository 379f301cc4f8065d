"""A long snapshot keeps dead entries in the index of what is due: looks begin behind them, and miss nothing for it."""

import functools
import json
from typing import Any

import psycopg
import pytest
from django.db import connection, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from pgwerk_django.models import Job, Schedule
from pgwerk_django.scheduler import Floor, Scheduler, _Service
from pgwerk_django.tick import _claim
from tests import functions
from tests.time_travel import HOUR, MINUTE, SECOND, make, make_due, now

pytestmark = pytest.mark.django_db(transaction=True)


def pages_of(statement: str) -> int:
    """How many pages PostgreSQL reads for it: no clock is asked."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")  # as of a large table
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}")
        plan = cursor.fetchone()[0]
    top = (json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]
    return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])


def statement_of(ask: Any) -> str:
    with CaptureQueriesContext(connection) as asked:
        ask()
    return next(query["sql"] for query in asked if query["sql"].strip().startswith("SELECT"))


def test_what_a_snapshot_keeps_is_passed_over(new_tables: None, other_session: psycopg.Connection) -> None:
    make(functions.noop, interval=3600)
    Schedule.objects.update(next_run_at=now() - HOUR, replan=False)
    other_session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    other_session.execute("SELECT count(*) FROM _pgwerk_schedules")
    for _ in range(2000):
        Schedule.objects.update(next_run_at=F("next_run_at") + SECOND)
    found, asked_at, _ = Schedule.objects.look()
    assert found is not None
    floor = min(found, asked_at - MINUTE)
    look, claim = [], []
    for since in (None, floor):
        look.append(pages_of(statement_of(functools.partial(Schedule.objects.look, since))))
        with transaction.atomic():
            ask = functools.partial(_claim, 10, using="default", now=asked_at, since=since)
            claim.append(pages_of(statement_of(ask)))
    # A few pages lead to any entry, the more of them the deeper the index and the less of it is remembered.
    assert look[1] * 5 < look[0], look
    assert claim[1] * 5 < claim[0], claim
    assert Schedule.objects.look(floor)[0] == found
    other_session.execute("ROLLBACK")


def test_a_look_from_there_leads_the_index() -> None:
    since = now()
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {statement_of(functools.partial(Schedule.objects.look, since))}")
        assert "pgwerk_due" in "\n".join(line for (line,) in cursor.fetchall())


def test_a_scheduler_that_finds_looks_slow_fires_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Floor, "SLOW", -1)  # every look is
    monkeypatch.setattr(Floor, "SHARE", 1e9)
    service = _Service(Scheduler(on_unregistered="keep"), None)
    row = make(functions.noop, interval=60)
    try:
        service.step()
        assert service._floor.at is not None
        make_due(row, ago=SECOND)
        service.step()
        assert Job.objects.count() == 1
        # Only a due time from before may wait, until a look begins at the start again.
        early = make(functions.noop, ago=2 * HOUR, _name="early")
        service.step()
        assert not Job.objects.filter(schedule_name=early.name).exists()
        service._floor._lifted_at = 0
        service.step()
        assert Job.objects.filter(schedule_name=early.name).exists()
    finally:
        service.close()


def test_it_stands_only_after_a_look_that_was_slow() -> None:
    floor, instant = Floor(), now()
    floor.saw(instant, instant, seconds=Floor.SLOW / 2)
    assert floor.at is None
    floor.saw(instant + HOUR, instant, seconds=Floor.SLOW * 2)
    assert floor.at == instant - MINUTE
    floor.saw(instant - HOUR, instant, seconds=Floor.SLOW * 2)
    assert floor.at == instant - HOUR
