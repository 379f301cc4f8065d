"""The tables keep their promises whoever writes: plain SQL, `update()`, a stale instance."""

import datetime as dt
import uuid

import psycopg
import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.db.models.functions import Now

from pgwerk_django import claims, outbox
from pgwerk_django.models import _LOOK, Job, Misfire, Overlap, Process, Schedule, State
from pgwerk_django.scheduler import Scheduler
from tests.time_travel import HOUR, MINUTE, SECOND, make, make_due, now, reread

pytestmark = pytest.mark.django_db(transaction=True)

TABLES = ("_pgwerk_schedules", "_pgwerk_jobs", "_pgwerk_processes")


def sql(statement: str, parameters: object = None) -> list[tuple[object, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def test_models_and_migrations_agree() -> None:
    call_command("makemigrations", "pgwerk_django", check=True, dry_run=True, verbosity=0)


def test_rows_can_be_made_by_plain_sql(scheduler: Scheduler) -> None:
    sql("INSERT INTO _pgwerk_schedules (name, function, interval) VALUES ('by hand', 'tests.functions.noop', 60)")
    row = Schedule.objects.get()
    assert (row.timezone, row.queue, row.args, row.kwargs, row.overlap) == ("UTC", "default", [], {}, "BUFFER_ONE")
    assert row.replan
    assert scheduler.tick() == 1
    assert reread(row).next_run_at == row.anchor_at + MINUTE
    sql("INSERT INTO _pgwerk_jobs (function) VALUES ('tests.functions.noop')")
    job = Job.objects.get()
    assert (job.status, job.kind, job.max_attempts) == ("READY", "adhoc", 1)
    assert job.key


def test_python_and_database_defaults_are_the_same() -> None:
    """So that an unsaved instance is truthful. Instants are the database's, and the zone is the settings' in Python."""
    for model, minimal in ((Schedule, {"name": "x"}), (Job, {}), (Process, {})):
        unsaved = model(**minimal)
        columns = ", ".join(minimal) or "id"
        values = "'x'" if minimal else ("DEFAULT" if model is Process else "gen_random_uuid()")
        sql(f"INSERT INTO {model._meta.db_table} ({columns}) VALUES ({values})")
        stored = model.objects.get()
        for field in model._meta.fields:
            if field.get_internal_type() == "DateTimeField" or field.name in (
                "id",
                "key",
                "timezone",
                "replan",
                *minimal,
            ):
                continue
            assert getattr(unsaved, field.attname) == getattr(stored, field.attname), field.name
            assert field.null or field.has_default(), field.name


def test_every_column_has_a_default_or_takes_null() -> None:
    bare = sql(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_name = ANY(%s)"
        " AND is_nullable = 'NO' AND column_default IS NULL AND is_identity = 'NO'",
        [list(TABLES)],
    )
    assert bare == [("_pgwerk_schedules", "name")]


def test_names_of_indexes_and_constraints() -> None:
    names = [name for (name,) in sql("SELECT indexname FROM pg_indexes WHERE tablename = ANY(%s)", [list(TABLES)])]
    ours = [name for name in names if not name.endswith("_pkey")]
    assert {"pgwerk_due", "pgwerk_claim", "pgwerk_open", "pgwerk_running", "pgwerk_expiry", "pgwerk_failed"} <= set(
        ours
    )
    assert all(name.startswith("pgwerk_") and len(name) <= 30 for name in ours)


def test_no_foreign_key_constraints() -> None:
    assert (
        sql("SELECT 1 FROM pg_constraint WHERE contype = 'f' AND conrelid::regclass::text = ANY(%s)", [list(TABLES)])
        == []
    )


def test_autovacuum_wakes_early() -> None:
    for (options,) in sql("SELECT reloptions FROM pg_class WHERE relname = ANY(%s)", [list(TABLES[:2])]):
        assert "autovacuum_vacuum_scale_factor=0.01" in options


def test_job_ids_are_version_7_and_ordered_by_time() -> None:
    first = Job.objects.create()
    sql("SELECT pg_sleep(0.002)")
    second = Job.objects.create()
    assert first.pk.version == second.pk.version == 7
    assert first.pk.variant == uuid.RFC_4122
    assert first.pk < second.pk
    made = dt.datetime.fromtimestamp((first.pk.int >> 80) / 1000, dt.UTC)
    assert abs(made - now()) < MINUTE


@pytest.mark.parametrize(
    "columns",
    [
        {"cron": "* * * * *", "interval": 60},
        {"interval": 0},
        {"interval": 10 * 366 * 24 * 3600},
        {"name": ""},
        {"name": "two\nlines"},
        {"name": "bell\x07"},
        {"name": "next line\x85"},
    ],
)
def test_the_database_refuses(columns: dict[str, object]) -> None:
    with pytest.raises(IntegrityError):
        Schedule.objects.create(**{"name": "x", **columns})


@pytest.mark.parametrize("instant", ["infinity", "-infinity", "0044-03-15 BC", "20000-01-01"])
@pytest.mark.parametrize("column", ["next_run_at", "ends_at", "triggered_at"])
def test_an_instant_that_python_cannot_read_is_refused(column: str, instant: str) -> None:
    """It would stop the tick that reads it, and with it every other schedule."""
    make()
    with pytest.raises(IntegrityError, match="pgwerk_instants"):
        sql(f"UPDATE _pgwerk_schedules SET {column} = '{instant}'")


def test_one_schedule_a_name_and_one_job_a_key() -> None:
    make(_name="x")
    with pytest.raises(IntegrityError, match="pgwerk_schedule_name"):
        make(_name="x")
    Job.objects.create(key="k")
    with pytest.raises(IntegrityError, match="pgwerk_job_key"):
        Job.objects.create(key="k")


# -- plans -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def many_rows() -> None:
    sql(
        "INSERT INTO _pgwerk_schedules (name, interval, next_run_at, paused) SELECT 's' || n, 60,"
        " now() + n * interval '1 second', n %% 10 = 0 FROM generate_series(1, 5000) n",
        [],
    )
    sql("INSERT INTO _pgwerk_jobs (schedule_id, status) SELECT n, 'SUCCESSFUL' FROM generate_series(1, 5000) n")
    sql("ANALYZE _pgwerk_schedules, _pgwerk_jobs")


def test_what_is_due_is_found_by_its_index(many_rows: None) -> None:
    with transaction.atomic():
        plan = Schedule.objects.due().annotate(now=Now()).claim(100).values_list("pk", "now").explain()
    assert "pgwerk_due" in plan
    assert "Sort" not in plan


def test_the_idle_question_is_answered_by_the_index(many_rows: None, django_assert_num_queries: object) -> None:
    with django_assert_num_queries(1) as captured:  # type: ignore[operator]
        next_due_at, asked_at = Schedule.objects.next_due()
    assert next_due_at > asked_at - 30 * SECOND
    plan = "\n".join(line for (line,) in sql("EXPLAIN " + captured.captured_queries[0]["sql"]))  # type: ignore[misc]
    assert "pgwerk_due" in plan
    assert "pgwerk_outbox" in plan
    assert "Seq Scan" not in plan


def test_a_backlog_that_the_statistics_do_not_know_is_walked_by_its_own_indexes(many_rows: None) -> None:
    """With a long history it is hours before PostgreSQL looks again: to the planner nothing waits, and any index would do."""
    sql("INSERT INTO _pgwerk_jobs (schedule_id) SELECT n FROM generate_series(1, 5000) n")
    look = {"misfires": Misfire.values, "overlaps": Overlap.values, "since": None}
    worker = {"every": True, "queues": [], "limit": 5, "lease": MINUTE, "worker": 1, "worker_name": "w"}
    engine = {"target": "celery", "limit": 5, "lease": MINUTE, "name": "w"}
    for statement, parameters, index in (
        (_LOOK, look, "pgwerk_outbox"),
        (claims._CLAIM, worker, "pgwerk_claim"),
        (outbox._CLAIM, engine, "pgwerk_outbox"),
    ):
        plan = "\n".join(str(line) for (line,) in sql("EXPLAIN " + statement, parameters))
        assert index in plan, plan
        assert "pgwerk_open" not in plan, plan
        assert "Seq Scan on _pgwerk_jobs" not in plan, plan


def test_open_jobs_are_found_by_their_index(many_rows: None) -> None:
    assert "pgwerk_open" in Job.objects.open().filter(schedule=7).explain()
    assert "Seq Scan" not in Job.objects.open().explain()
    assert not Job.objects.open().filter(schedule__paused=True).exists()  # both tables have a target


# -- the re-plan trigger ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "cron = '1 1 * * *', interval = NULL",
        "interval = 61",
        "timezone = 'Asia/Tokyo'",
        "anchor_at = anchor_at + interval '1 second'",
        "starts_at = now()",
        "ends_at = now() + interval '1 day'",
    ],
)
def test_a_changed_planning_column_asks_for_a_new_plan(change: str) -> None:
    row = make(interval=60)
    make_due(row, ago=-HOUR)
    sql(f"UPDATE _pgwerk_schedules SET {change}")
    changed = reread(row)
    assert changed.replan
    assert changed.next_run_at is not None
    assert abs(changed.next_run_at - now()) < MINUTE


@pytest.mark.parametrize("change", ["interval = interval", "timezone = timezone, paused = paused", "queue = 'x'"])
def test_what_changes_no_planning_column_plans_nothing(change: str) -> None:
    row = make(interval=60)
    make_due(row, ago=-HOUR)
    before = reread(row).next_run_at
    sql(f"UPDATE _pgwerk_schedules SET {change}")
    assert (reread(row).replan, reread(row).next_run_at) == (False, before)


def test_who_sets_the_next_run_plans_for_himself() -> None:
    row = make(interval=60)
    Schedule.objects.filter(pk=row.pk).update(interval=90, next_run_at=now() + HOUR, replan=False)
    assert not reread(row).replan


def test_a_pause_that_ends_plans_anew_what_passed_meanwhile() -> None:
    row = make(interval=60)
    make_due(row)
    sql("UPDATE _pgwerk_schedules SET paused = true")
    assert not reread(row).replan
    sql("UPDATE _pgwerk_schedules SET paused = false")
    assert reread(row).replan


# -- wake-ups --------------------------------------------------------------------------------------------------------


def heard(session: psycopg.Connection) -> list[tuple[str, str]]:
    return [(notify.channel, notify.payload) for notify in session.notifies(timeout=0.2)]


@pytest.fixture
def listener(other_session: psycopg.Connection) -> psycopg.Connection:
    other_session.execute("LISTEN pgwerk_schedules")
    other_session.execute("LISTEN pgwerk_jobs")
    return other_session


def test_a_schedule_wakes_only_when_it_became_due_earlier(listener: psycopg.Connection, scheduler: Scheduler) -> None:
    row = make(ago=SECOND)
    assert ("pgwerk_schedules", "") in heard(listener)
    scheduler.tick()
    assert heard(listener) == [("pgwerk_jobs", "default")]
    Schedule.objects.filter(pk=row.pk).update(next_run_at=now() + HOUR)
    assert heard(listener) == []
    Schedule.objects.filter(pk=row.pk).update(next_run_at=now() + MINUTE)
    assert heard(listener) == [("pgwerk_schedules", "")]
    scheduler.pause(row.name)
    assert heard(listener) == []
    scheduler.trigger(row.name)
    assert heard(listener) == [("pgwerk_schedules", "")]


def test_jobs_wake_once_for_a_statement_and_a_queue(listener: psycopg.Connection) -> None:
    Job.objects.bulk_create([Job(queue=queue) for queue in ("a", "b", "a")] + [Job(queue="c", status="SKIPPED")])
    assert sorted(heard(listener)) == [("pgwerk_jobs", "a"), ("pgwerk_jobs", "b")]


def test_wake_ups_can_be_turned_off(listener: psycopg.Connection, scheduler: Scheduler, settings: object) -> None:
    settings.PGWERK = {"NOTIFY": False}  # type: ignore[attr-defined]
    row = make(_name="x")
    heard(listener)
    scheduler.trigger(row.name)
    scheduler.tick()
    assert heard(listener) == []
    settings.PGWERK = {}  # type: ignore[attr-defined]
    scheduler.trigger(row.name)
    assert heard(listener) == [("pgwerk_schedules", "")]


# -- machine columns -------------------------------------------------------------------------------------------------


def test_a_stale_instance_undoes_neither_a_tick_nor_a_person(scheduler: Scheduler) -> None:
    stale = make(ago=SECOND)
    scheduler.tick()
    scheduler.pause(stale.name, by="ada")
    stale.description = "edited"
    stale.save()
    fresh = reread(stale)
    assert fresh.description == "edited"
    assert (fresh.paused, fresh.paused_by, fresh.run_count) == (True, "ada", 1)
    assert fresh.next_run_at == stale.next_run_at + MINUTE


def test_update_fields_may_name_a_machine_column() -> None:
    row = make(interval=60)
    row.next_run_at = now() + HOUR
    row.save(update_fields=["next_run_at"])
    assert reread(row).next_run_at == row.next_run_at


def test_deferred_columns_are_not_written() -> None:
    row = make(interval=60, _description="kept")
    partial = Schedule.objects.defer("description").get(pk=row.pk)
    partial.queue = "other"
    partial.save()
    assert (reread(row).queue, reread(row).description) == ("other", "kept")


# -- deleting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["instance", "queryset", "api"])
def test_deleting_cancels_what_waits_and_keeps_the_history(scheduler: Scheduler, how: str) -> None:
    row, other = make(_name="gone"), make(_name="stays")
    waiting = Job.objects.create(schedule=row, schedule_name=row.name)
    elsewhere = Job.objects.create(schedule=other, schedule_name=other.name)
    running = Job.objects.create(schedule=row, schedule_name=row.name, status="RUNNING")
    done = Job.objects.create(schedule=row, schedule_name=row.name, status="SUCCESSFUL")
    if how == "instance":
        row.delete()
    elif how == "queryset":
        Schedule.objects.filter(name="gone").delete()
    else:
        assert scheduler.delete("gone") is True
        assert scheduler.delete("gone") is False
    assert not Schedule.objects.filter(name="gone").exists()
    by_pk = Job.objects.in_bulk()
    assert (by_pk[waiting.pk].status, by_pk[waiting.pk].reason) == ("CANCELLED", "schedule deleted")
    assert by_pk[waiting.pk].finished_at is not None
    assert by_pk[waiting.pk].expires_at is not None
    assert [by_pk[job.pk].status for job in (running, done, elsewhere)] == ["RUNNING", "SUCCESSFUL", "READY"]


# -- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "state"),
    [
        ({}, State.OK),
        ({"error": "x"}, State.ERROR),
        ({"paused": True}, State.PAUSED),
        ({"next_run_at": None}, State.ENDED),
        ({"next_run_at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC)}, State.LATE),
        ({"next_run_at": dt.datetime.max.replace(tzinfo=dt.UTC)}, State.OK),
    ],
)
def test_state(columns: dict[str, object], state: State) -> None:
    at = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
    assert Schedule(**{"next_run_at": at + HOUR, **columns}).state(at) == state
