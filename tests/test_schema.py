"""The tables keep their promises whoever writes: plain SQL, `update()`, a stale instance."""

import datetime as dt
import threading
import uuid

import psycopg
import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection, connections, transaction
from django.db.models.deletion import Collector
from django.db.models.functions import Now

from pgwerk_django import claims, outbox, signals
from pgwerk_django.models import (
    _LOOK,
    DUE,
    Job,
    Misfire,
    Overlap,
    Process,
    Queue,
    Schedule,
    State,
    Status,
    due_at,
    wake_workers,
)
from pgwerk_django.scheduler import Scheduler
from tests.time_travel import HOUR, MINUTE, SECOND, make, make_due, now, reread
from tests.waiting import wait_until, waiting_for_a_lock

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


def test_all_that_asks_what_is_due_asks_what_the_index_knows() -> None:
    """One text, the ORM's expression, and the index: where they differ, a statement reads the whole table."""
    ((indexed,),) = sql(
        "SELECT pg_get_indexdef(indexrelid, 1, true) FROM pg_index WHERE indexrelid = 'pgwerk_due'::regclass"
    )
    for expression in (DUE, str(Schedule.objects.order_by(due_at()).query).partition("ORDER BY ")[2][: -len(" ASC")]):
        sql(
            f"CREATE TEMPORARY TABLE IF NOT EXISTS like_ours (LIKE _pgwerk_schedules); CREATE INDEX probe ON like_ours (({expression.replace('_pgwerk_schedules', 'like_ours')}))"
        )
        assert sql("SELECT pg_get_indexdef('probe'::regclass, 1, true)") == [(indexed,)]
        sql("DROP TABLE like_ours")


def test_a_look_takes_no_paused_row_for_due(many_rows: None) -> None:
    sql("UPDATE _pgwerk_schedules SET paused = true, triggered_at = now() + interval '1 day', next_run_at = now()")
    sql("UPDATE _pgwerk_schedules SET paused = false, next_run_at = now() + interval '1 hour' WHERE name = 's7'")
    due, at = Schedule.objects.next_due()
    assert due is not None
    assert HOUR - MINUTE < due - at < HOUR + MINUTE
    assert not Schedule.objects.due().exists()


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


INSERTED = "INSERT INTO _pgwerk_schedules (name, interval, {0}) VALUES ('x', 60, {1})"


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("error", "'ValueError: set aside'"),
        ("last_run_at", "now()"),
        ("run_count", "1"),
        ("error, cron", "'ValueError: set aside', '0 0 30 2 *'"),
    ],
)
def test_a_row_that_comes_from_a_backup_stays_as_it_is(columns: str, values: str) -> None:
    """One that has ended, or was set aside: a restore of the data alone inserts it with the triggers on."""
    statement = INSERTED.format(columns, values)
    sql(statement.replace("interval, ", "").replace("60, ", "") if "cron" in columns else statement)
    row = Schedule.objects.get()
    assert (row.next_run_at, row.replan) == (None, False)
    assert row.error == ("ValueError: set aside" if "error" in columns else "")


def test_a_one_off_from_a_backup_that_was_set_aside_is_tried_again(scheduler: Scheduler) -> None:
    sql("INSERT INTO _pgwerk_schedules (name, function, error) VALUES ('once', 'tests.functions.noop', 'full disk')")
    assert Schedule.objects.retry_set_aside() == 1
    assert scheduler.tick() == 1
    assert [job.schedule_name for job in Job.objects.all()] == ["once"]


def test_a_pause_by_sql_is_kept_like_one_by_a_person() -> None:
    make(_name="x")
    sql("UPDATE _pgwerk_schedules SET paused = true, paused_by = 'ada'")
    row = Schedule.objects.get()
    assert row.paused_at is not None
    assert abs(row.paused_at - now()) < MINUTE
    sql("UPDATE _pgwerk_schedules SET paused = false")
    row = Schedule.objects.get()
    assert (row.paused_at, row.paused_by, row.pause_reason) == (None, "", "")


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
    Job.objects.bulk_create(
        [Job(queue=queue) for queue in ("a", "b", "a")]
        + [
            Job(queue="c", status="SKIPPED"),
            Job(queue="d", target="celery"),  # a scheduler hands it over
        ]
    )
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


@pytest.mark.parametrize(
    ("before", "change", "wakes"),
    [
        ("paused = true", "triggered_at = now() + interval '1 hour'", True),
        ("paused = true, triggered_at = now()", "next_run_at = now() - interval '1 hour'", False),
        ("paused = true", "next_run_at = now() - interval '1 hour'", False),
        ("paused = true, next_run_at = now()", "paused = false", True),
        ("paused = false", "paused = true", False),
        ("triggered_at = now()", "paused = true", False),
    ],
)
def test_what_wakes_schedulers_is_what_becomes_due(
    listener: psycopg.Connection, before: str, change: str, wakes: bool
) -> None:
    make(ago=-HOUR, _name="x")
    sql(f"UPDATE _pgwerk_schedules SET {before}")
    heard(listener)
    sql(f"UPDATE _pgwerk_schedules SET {change}")
    assert heard(listener) == ([("pgwerk_schedules", "")] if wakes else [])


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


@pytest.mark.parametrize(
    "statement", ["DELETE FROM _pgwerk_schedules WHERE name LIKE 'gone%%'", "TRUNCATE _pgwerk_schedules"]
)
def test_deleting_by_sql_cancels_what_waits(statement: str) -> None:
    make(_name="stays"), make(_name="gone"), make(_name="gone, too")
    jobs = {
        f"{row.name} {status} {lease}": Job.objects.create(
            key=f"{row.name} {status} {lease}", schedule=row, schedule_name=row.name, status=status, failure_ttl=ttl,
            lease_until=now() + HOUR if lease else None,
        )
        for row in Schedule.objects.all()
        for status in Status
        for lease, ttl in ((False, 100), (True, None))
    }  # fmt: skip
    adhoc = Job.objects.create()
    sql(statement, [])
    for label, before in jobs.items():
        job = Job.objects.get(pk=before.pk)
        if before.status == Status.READY and (before.schedule_name != "stays" or "TRUNCATE" in statement):
            assert (job.status, job.reason) == ("CANCELLED", "schedule deleted"), label
            assert job.expires_at - job.finished_at == dt.timedelta(seconds=before.failure_ttl or 30 * 24 * 3600)
            assert abs(job.finished_at - now()) < MINUTE
        else:
            assert (job.status, job.finished_at, job.expires_at) == (before.status, None, None), label
    adhoc.refresh_from_db()
    assert adhoc.status == "READY"


def test_the_jobs_of_a_deleted_schedule_are_kept_as_long_as_failures(settings: object) -> None:
    settings.PGWERK = {"FAILURE_TTL": 7200, "RESULT_TTL": 60}  # type: ignore[attr-defined]
    row = make(_name="gone")
    for key, ttl in (("own", 100), ("none", None)):
        Job.objects.create(key=key, schedule=row, schedule_name=row.name, failure_ttl=ttl, result_ttl=9)
    row.delete()
    kept = {job.key: job.expires_at - job.finished_at for job in Job.objects.all()}
    assert kept == {"own": 100 * SECOND, "none": 2 * HOUR}


def test_deleting_by_djangos_collector_cancels_what_waits() -> None:
    """As it does for a model of the site that cascades to schedules: without our queryset."""
    row = make(_name="gone")
    waiting = Job.objects.create(schedule=row, schedule_name=row.name)
    collector = Collector(using="default")
    collector.collect([row])
    collector.delete()
    waiting.refresh_from_db()
    assert (waiting.status, waiting.reason) == ("CANCELLED", "schedule deleted")


def test_deleting_passes_over_a_job_that_a_worker_takes_meanwhile(other_session: psycopg.Connection) -> None:
    row = make(_name="gone")
    job = Job.objects.create(schedule=row, schedule_name=row.name)
    with other_session.transaction():
        other_session.execute("UPDATE _pgwerk_jobs SET status = 'RUNNING' WHERE id = %s", [job.pk])
        deleting = threading.Thread(target=lambda: (sql("DELETE FROM _pgwerk_schedules"), connection.close()))
        deleting.start()
        wait_until(waiting_for_a_lock)
    deleting.join()
    job.refresh_from_db()
    assert (job.status, job.expires_at) == ("RUNNING", None)


# -- clean-up --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", Status)
def test_clean_up_deletes_finished_jobs_alone(status: Status) -> None:
    """Also where the constraint that keeps the others from expiring is gone."""
    sql("ALTER TABLE _pgwerk_jobs DROP CONSTRAINT pgwerk_open_stays")
    try:
        job = Job.objects.create(status=status, expires_at=now() - SECOND)
        later = Job.objects.create(status=status, expires_at=now() + HOUR)
        is_open = status in (Status.READY, Status.RUNNING)
        assert Job.objects.all().delete_expired(10) == (0 if is_open else 1)
        assert set(Job.objects.values_list("pk", flat=True)) == {later.pk, *([job.pk] if is_open else [])}
    finally:
        sql("DELETE FROM _pgwerk_jobs")
        (check,) = (each for each in Job._meta.constraints if each.name == "pgwerk_open_stays")
        with connection.schema_editor() as editor:
            editor.add_constraint(Job, check)


@pytest.mark.parametrize("status", Status)
def test_what_has_not_finished_has_no_end_of_its_life(status: Status) -> None:
    if status in (Status.READY, Status.RUNNING):
        with pytest.raises(IntegrityError, match="pgwerk_open_stays"):
            Job.objects.create(status=status, expires_at=now())
    else:
        Job.objects.create(status=status, expires_at=now())


# -- jobs, by hand -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", Status)
def test_cancelling_ends_what_waits_asks_what_runs_and_changes_nothing_else(status: Status, settings: object) -> None:
    settings.PGWERK = {"FAILURE_TTL": 7200, "RESULT_TTL": 60}  # type: ignore[attr-defined]
    before = Job.objects.create(status=status)
    own = Job.objects.create(status=status, failure_ttl=100, result_ttl=50)
    is_open = status in (Status.READY, Status.RUNNING)
    assert Job.objects.all().cancel(by="ada", reason="why") == (2 if is_open else 0)
    job = Job.objects.get(pk=before.pk)
    own.refresh_from_db()
    if status == Status.READY:
        assert (job.status, job.reason) == ("CANCELLED", "cancelled by ada: why")
        assert abs(job.finished_at - now()) < MINUTE
        assert job.expires_at - job.finished_at == 2 * HOUR
        assert own.expires_at - own.finished_at == 100 * SECOND
    else:
        assert (job.status, job.finished_at, job.expires_at) == (status, None, None)
        assert (job.cancel_requested_at is not None, job.reason != "") == (is_open, is_open)


@pytest.mark.parametrize("status", Status)
def test_a_retry_is_of_what_failed_or_was_cancelled_alone(status: Status) -> None:
    job = Job.objects.create(status=status, attempt=1)
    may = status in (Status.FAILED, Status.CANCELLED)
    assert Job.objects.all().retry() == may
    job.refresh_from_db()
    assert job.status == ("READY" if may else status)


@pytest.mark.parametrize(("attempt", "most", "becomes"), [(1, 5, 5), (3, 3, 4), (0, 1, 1)])
def test_a_retried_job_is_as_good_as_new(attempt: int, most: int, becomes: int) -> None:
    job = Job.objects.create(
        status="FAILED", attempt=attempt, max_attempts=most, error="ValueError: no", exception="ValueError",
        errors=[{"attempt": 0, "error": "older"}], run_at=now() + HOUR, start_by=now() - HOUR,
        started_at=now() - HOUR, finished_at=now() - MINUTE, expires_at=now() + MINUTE, progress={"done": 9},
        cancel_requested_at=now(), cancel_forced=True, worker_name="w",
    )  # fmt: skip
    assert job.retry(by="ada")
    job.refresh_from_db()
    assert (job.status, job.reason, job.attempt, job.max_attempts) == ("READY", "retried by ada", attempt, becomes)
    assert job.run_at <= now()
    assert (job.start_by, job.started_at, job.finished_at, job.expires_at, job.progress) == (None,) * 5
    assert (job.cancel_requested_at, job.cancel_forced, job.error, job.exception) == (None, False, "", "")
    assert [error["error"] for error in job.errors] == ["older", "ValueError: no"]
    assert Job.objects.all().skip_not_started(10) == Job.objects.all().delete_expired(10) == 0


def test_what_a_person_sets_free_wakes_the_workers(listener: psycopg.Connection) -> None:
    job = Job.objects.create(status="FAILED", attempt=1)
    running = Job.objects.create(status="RUNNING")
    queues = Queue.objects.bulk_create([Queue(name="a"), Queue(name="b", paused=True)])
    heard(listener)
    assert job.retry()
    assert heard(listener) == [("pgwerk_jobs", "")]
    assert running.cancel()
    assert heard(listener) == [("pgwerk_jobs", "")]  # its worker is to stop it
    assert Queue.objects.filter(name__in=[queue.name for queue in queues]).resume() == 1
    assert heard(listener) == [("pgwerk_jobs", "")]
    assert not job.retry()
    assert heard(listener) == []


@pytest.mark.parametrize("status", Status)
def test_only_what_waits_and_nobody_holds_is_skipped_for_its_time_to_start(status: Status) -> None:
    late, held = (
        Job.objects.create(status=status, start_by=now() - SECOND, lease_until=lease) for lease in (None, now() + HOUR)
    )
    Job.objects.create(status=status, start_by=now() + HOUR)
    Job.objects.create(status=status)
    assert Job.objects.all().skip_not_started(10) == (status == Status.READY)
    late.refresh_from_db(), held.refresh_from_db()
    assert (late.status, held.status) == ("SKIPPED" if status == Status.READY else status, status)


def test_a_queue_keeps_its_first_pause() -> None:
    Queue.objects.create(name="mail")
    assert Queue.objects.all().pause(by="ada", reason="first") == 1
    assert Queue.objects.all().pause(by="bob", reason="second") == 0
    row = Queue.objects.get()
    assert (row.paused_by, row.pause_reason) == ("ada", "first")


# -- schedules, by hand ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["pause", "resume", "trigger", "delete"])
def test_people_lock_schedules_in_the_order_of_their_names(other_session: psycopg.Connection, act: str) -> None:
    """As a sync does: two in different orders would wait for each other for ever."""
    for name in ("b", "a", "c"):
        make(ago=-HOUR, _name=name)
    if act == "resume":
        Schedule.objects.all().pause()
    with other_session.transaction(force_rollback=True):
        other_session.execute("SELECT FROM _pgwerk_schedules WHERE name = 'a' FOR UPDATE")
        thread = threading.Thread(target=lambda: (getattr(Schedule.objects.all(), act)(), connections.close_all()))
        thread.start()
        wait_until(waiting_for_a_lock)
        # It holds none of the later names while it waits for the first.
        other_session.execute("SELECT FROM _pgwerk_schedules WHERE name IN ('b', 'c') FOR UPDATE NOWAIT")
    thread.join()


def test_nothing_is_said_of_a_resume_that_resumes_nothing() -> None:
    row, paused = make(ago=-HOUR, _name="runs"), make(ago=-HOUR, _name="paused")
    paused_too = Schedule.objects.filter(pk=paused.pk)
    paused_too.pause()
    told: list[list[str]] = []
    signals.schedules_resumed.connect(lambda **event: told.append(event["names"]), weak=False, dispatch_uid="test")
    try:
        assert Schedule.objects.filter(pk=row.pk).resume() == 0
        assert Schedule.objects.all().resume() == 1
    finally:
        signals.schedules_resumed.disconnect(dispatch_uid="test")
    assert told == [["paused"]]


def test_no_more_runs_are_shown_than_are_left() -> None:
    row = make(ago=-HOUR, interval=60, _max_runs=5)
    row.run_count = 3
    assert row.upcoming(10, now()) == [row.next_run_at, row.next_run_at + MINUTE]
    row.run_count = 7
    assert row.upcoming(10, now()) == []


# -- functions of the schema -----------------------------------------------------------------------------------------


def test_no_function_of_ours_goes_by_the_callers_search_path() -> None:
    functions = sql(
        "SELECT proname, proconfig, prosecdef, has_function_privilege('public', oid, 'EXECUTE') FROM pg_proc"
        " WHERE proname LIKE '%%pgwerk%%' ORDER BY proname",
        [],
    )
    assert len(functions) == 5
    for name, configuration, is_definer, anybodys in functions:
        assert configuration == ["search_path=pg_catalog, pg_temp"], name
        assert not (is_definer and anybodys), name


CAPTURES = """
CREATE FUNCTION public.pg_notify({0}) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'captured'; END $$;
CREATE FUNCTION public.clock_timestamp(VARIADIC integer[]) RETURNS timestamptz LANGUAGE plpgsql AS
    $$ BEGIN RAISE 'captured'; END $$;
CREATE FUNCTION public.is_equal(varchar, varchar) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'captured'; END $$;
CREATE OPERATOR public.= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = public.is_equal);
"""


@pytest.mark.parametrize("arguments", ["text, varchar", "varchar, varchar"])
def test_what_writes_to_our_tables_runs_nobodys_function(arguments: str) -> None:
    """Where PUBLIC may create in `public`, an exact match for the types beats PostgreSQL's own."""
    row = make(_name="x")
    with transaction.atomic():
        sql(CAPTURES.format(arguments))
        sql("INSERT INTO _pgwerk_jobs (function, schedule_id) VALUES ('x', %s)", [row.pk])
        sql("UPDATE _pgwerk_schedules SET cron = '* * * * *', interval = NULL")
        sql("UPDATE _pgwerk_schedules SET paused = true, triggered_at = now()")
        sql("UPDATE _pgwerk_schedules SET paused = false, triggered_at = NULL, next_run_at = now()")
        sql("DELETE FROM _pgwerk_schedules")
        wake_workers("default")
        transaction.set_rollback(True)


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
