import datetime

import django.core.validators
import django.db.models.deletion
import django.db.models.functions.comparison
import django.db.models.functions.datetime
from django.db import migrations, models

import pgwerk_django.models

# Each tick moves a row in the index, so its update is never HOT: vacuum early, a little at a time.
AUTOVACUUM = """
ALTER TABLE _pgwerk_schedules SET (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0
);
ALTER TABLE _pgwerk_jobs SET (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0
);
"""

# When a schedule is due, as in `models.due_at`; `{0}` is NEW or OLD. Its next run does not count during a pause.
DUE = "least(CASE WHEN NOT {0}.paused THEN {0}.next_run_at END, {0}.triggered_at)"

# Re-plan: whoever changes when a schedule is due, in whatever way, and does not say when it is due next, has the next tick
# plan it from now. An edit of a row that was set aside with an error gives it another chance. A pause that ends keeps a
# next run that is still to come, and plans anew one that passed meanwhile. A one-off has no rule to be planned by: it keeps
# the next run it was given, and gets it back when it was set aside.
# An inserted row that has run, or was set aside, comes from a backup: it stays as it is.
# A next run set by hand is a due time: it is not to be passed over because of a change made before it, nor because of a last
# run that lies ahead of the clock. A last run in the past stays, and a tick still drops what is not newer.
# `clock_timestamp()`, not the statement's: an UPDATE may have waited for the row.
# A tick names none of the columns of the first trigger, so it does not pay for it.
# All functions have a fixed search_path: whoever may create functions in a schema on the caller's path could have theirs
# called instead of PostgreSQL's, by whoever writes to the tables (CVE-2018-1058).
REPLAN = """
CREATE FUNCTION _pgwerk_replan() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.next_run_at IS NULL AND NEW.error = '' AND NEW.last_run_at IS NULL AND NEW.run_count = 0 THEN
            NEW.replan := true;
            NEW.next_run_at := clock_timestamp();
        END IF;
        RETURN NEW;
    END IF;
    IF OLD.paused AND NOT NEW.paused THEN
        NEW.paused_at := NULL;
        NEW.paused_by := '';
        NEW.pause_reason := '';
        -- A clock that was ahead has left this: else the schedule would wait until then.
        NEW.last_run_at := least(NEW.last_run_at, clock_timestamp());
    ELSIF NEW.paused AND NOT OLD.paused AND NEW.paused_at IS NULL THEN
        NEW.paused_at := clock_timestamp();
    END IF;
    IF OLD.error <> '' AND NEW.error = OLD.error AND NEW IS DISTINCT FROM OLD
        AND NEW.next_run_at IS NOT DISTINCT FROM OLD.next_run_at AND NEW.cron = '' AND NEW.interval IS NULL
    THEN
        NEW.next_run_at := NEW.anchor_at;
        NEW.error := '';
    ELSIF NEW.next_run_at IS NOT DISTINCT FROM OLD.next_run_at AND (
        (NEW.cron, NEW.interval, NEW.timezone, NEW.anchor_at, NEW.starts_at, NEW.ends_at)
            IS DISTINCT FROM (OLD.cron, OLD.interval, OLD.timezone, OLD.anchor_at, OLD.starts_at, OLD.ends_at)
            AND (NEW.cron <> '' OR NEW.interval IS NOT NULL OR OLD.cron <> '' OR OLD.interval IS NOT NULL)
        OR OLD.paused AND NOT NEW.paused
            AND (OLD.next_run_at IS NULL OR OLD.next_run_at <= clock_timestamp() OR OLD.last_run_at > clock_timestamp())
        OR NEW.max_runs IS DISTINCT FROM OLD.max_runs AND OLD.next_run_at IS NULL
        OR OLD.error <> '' AND NEW.error = OLD.error AND NEW IS DISTINCT FROM OLD
    ) THEN
        NEW.replan := true;
        NEW.next_run_at := clock_timestamp();
        NEW.error := '';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER pgwerk_replan BEFORE INSERT OR UPDATE OF
    name, function, target, queue, args, kwargs, cron, interval, timezone, anchor_at, starts_at, ends_at, max_runs,
    jitter, priority, overlap, misfire, misfire_grace, max_attempts, backoff, timeout, result_ttl, failure_ttl, meta,
    start_within, paused
ON _pgwerk_schedules FOR EACH ROW EXECUTE FUNCTION _pgwerk_replan();

CREATE FUNCTION _pgwerk_planned_by_hand() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.replan := NEW.replan AND NOT OLD.replan;
    IF NEW.last_run_at > clock_timestamp() AND NEW.next_run_at <= NEW.last_run_at THEN
        NEW.last_run_at := NULL;
    END IF;
    RETURN NEW;
END $$;

-- A tick plans after the last run, so it never meets the second condition.
CREATE TRIGGER pgwerk_planned_by_hand BEFORE UPDATE OF next_run_at ON _pgwerk_schedules FOR EACH ROW
WHEN (
    NEW.next_run_at IS DISTINCT FROM OLD.next_run_at
    AND (OLD.replan AND NEW.replan OR NEW.next_run_at <= OLD.last_run_at AND NEW.last_run_at = OLD.last_run_at)
)
EXECUTE FUNCTION _pgwerk_planned_by_hand();
"""

# Wake: schedulers and workers that LISTEN need not wait for their next poll. A schedule wakes only when it became due
# earlier, so a tick wakes nobody; jobs wake once for a statement and a queue. `pgwerk.notify` is local to a transaction.
WAKE_SCHEDULERS = f"""
CREATE FUNCTION _pgwerk_wake_schedulers() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('pgwerk.notify', true) IS DISTINCT FROM 'off' THEN
        PERFORM pg_notify('pgwerk_schedules', '');
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER pgwerk_wake_inserted AFTER INSERT ON _pgwerk_schedules FOR EACH ROW
WHEN ({DUE.format("NEW")} IS NOT NULL)
EXECUTE FUNCTION _pgwerk_wake_schedulers();

CREATE TRIGGER pgwerk_wake_updated AFTER UPDATE ON _pgwerk_schedules FOR EACH ROW
WHEN ({DUE.format("NEW")} < coalesce({DUE.format("OLD")}, 'infinity'))
EXECUTE FUNCTION _pgwerk_wake_schedulers();
"""
WAKE_WORKERS = """
CREATE FUNCTION _pgwerk_wake_workers() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('pgwerk.notify', true) IS DISTINCT FROM 'off' THEN
        PERFORM pg_catalog.pg_notify('pgwerk_jobs', queue::text)
        FROM (SELECT DISTINCT queue FROM inserted WHERE status = 'READY' AND target = 'worker') AS queues;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER pgwerk_wake_jobs AFTER INSERT ON _pgwerk_jobs REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION _pgwerk_wake_workers();
"""

# Waiting jobs of a schedule that is deleted are cancelled, however it is deleted. A role may delete schedules without the
# right to change jobs, so the function runs as its owner; hence nobody else may make a trigger that calls it.
# The tables may be in any schema. A job without a ttl of its own stays for 30 days: the setting is not known here.
DELETED = """
CREATE FUNCTION _pgwerk_cancel_jobs_of_deleted() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format(
        'UPDATE %I._pgwerk_jobs SET status = ''CANCELLED'', reason = ''schedule deleted'', finished_at = $1,'
        ' expires_at = $1 + coalesce(failure_ttl, 2592000) * interval ''1 second'''
        ' WHERE status = ''READY'' AND ' || CASE TG_OP WHEN 'TRUNCATE' THEN 'schedule_id IS NOT NULL'
            ELSE 'schedule_id = ANY (ARRAY(SELECT id FROM deleted))' END,
        TG_TABLE_SCHEMA
    ) USING clock_timestamp();
    RETURN NULL;
END $$;

REVOKE ALL ON FUNCTION _pgwerk_cancel_jobs_of_deleted() FROM PUBLIC;

CREATE TRIGGER pgwerk_cancel_deleted AFTER DELETE ON _pgwerk_schedules REFERENCING OLD TABLE AS deleted
FOR EACH STATEMENT EXECUTE FUNCTION _pgwerk_cancel_jobs_of_deleted();

CREATE TRIGGER pgwerk_cancel_truncated AFTER TRUNCATE ON _pgwerk_schedules
FOR EACH STATEMENT EXECUTE FUNCTION _pgwerk_cancel_jobs_of_deleted();
"""

# The triggers go with their tables.
DROP_FUNCTIONS = """
DROP FUNCTION _pgwerk_replan() CASCADE;
DROP FUNCTION _pgwerk_planned_by_hand() CASCADE;
DROP FUNCTION _pgwerk_wake_schedulers() CASCADE;
DROP FUNCTION _pgwerk_wake_workers() CASCADE;
DROP FUNCTION _pgwerk_cancel_jobs_of_deleted() CASCADE;
"""


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Alert",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("schedule_name", models.CharField(db_default="", default="", max_length=200)),
                ("kind", models.CharField(db_default="", default="", max_length=10)),
                ("job_key", models.CharField(db_default="", default="", max_length=255)),
                ("why", models.TextField(db_default="", default="")),
                ("since", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("noticed_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("ended_at", models.DateTimeField(null=True)),
                ("news", models.BooleanField(db_default=False, default=False)),
                ("mailed_at", models.DateTimeField(null=True)),
            ],
            options={
                "db_table": "_pgwerk_alerts",
                "default_permissions": (),
                "indexes": [
                    models.Index(condition=models.Q(("news", True)), fields=["id"], name="pgwerk_alert_news"),
                    models.Index(
                        condition=models.Q(("mailed_at__isnull", False)),
                        fields=["mailed_at"],
                        name="pgwerk_alert_mailed",
                    ),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("ended_at", None)),
                        fields=("schedule_name", "kind"),
                        name="pgwerk_alert_open",
                    ),
                    models.UniqueConstraint(
                        condition=models.Q(("kind", "missed")), fields=("job_key",), name="pgwerk_alert_missed"
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Process",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("role", models.CharField(db_default="", default="", max_length=20, verbose_name="role")),
                ("host", models.CharField(db_default="", default="", max_length=255, verbose_name="host")),
                ("pid", models.IntegerField(db_default=0, default=0, verbose_name="pid")),
                ("version", models.CharField(db_default="", default="", max_length=50, verbose_name="version")),
                (
                    "queues",
                    models.JSONField(
                        db_default=models.Value([], models.JSONField()), default=list, verbose_name="queues"
                    ),
                ),
                (
                    "started_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), verbose_name="started at"
                    ),
                ),
                (
                    "heartbeat_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), verbose_name="heartbeat at"
                    ),
                ),
                ("last_tick_at", models.DateTimeField(blank=True, null=True, verbose_name="last tick at")),
                (
                    "stats",
                    models.JSONField(
                        db_default=models.Value({}, models.JSONField()), default=dict, verbose_name="stats"
                    ),
                ),
            ],
            options={
                "verbose_name": "process",
                "verbose_name_plural": "processes",
                "db_table": "_pgwerk_processes",
            },
        ),
        migrations.CreateModel(
            name="Queue",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "name",
                    models.CharField(
                        max_length=100,
                        validators=[
                            django.core.validators.RegexValidator(
                                "[\\x01-\\x1f\\x7f\\u0080-\\u009f\\u2028-\\u202e\\u2066-\\u2069]",
                                "A name may not contain control characters.",
                                inverse_match=True,
                            )
                        ],
                        verbose_name="name",
                    ),
                ),
                (
                    "paused",
                    models.BooleanField(db_default=False, default=False, editable=False, verbose_name="paused"),
                ),
                ("paused_at", models.DateTimeField(editable=False, null=True, verbose_name="paused at")),
                (
                    "paused_by",
                    models.CharField(
                        db_default="", default="", editable=False, max_length=200, verbose_name="paused by"
                    ),
                ),
                (
                    "pause_reason",
                    models.TextField(db_default="", default="", editable=False, verbose_name="pause reason"),
                ),
            ],
            options={
                "verbose_name": "queue",
                "verbose_name_plural": "queues",
                "db_table": "_pgwerk_queues",
                "permissions": [("pause_queue", "Can pause and resume queues")],
                "constraints": [models.UniqueConstraint(fields=("name",), name="pgwerk_queue_name")],
            },
        ),
        migrations.CreateModel(
            name="Schedule",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "name",
                    models.CharField(
                        max_length=200,
                        validators=[
                            django.core.validators.RegexValidator(
                                "[\\x01-\\x1f\\x7f\\u0080-\\u009f\\u2028-\\u202e\\u2066-\\u2069]",
                                "A name may not contain control characters.",
                                inverse_match=True,
                            )
                        ],
                        verbose_name="name",
                    ),
                ),
                ("function", models.CharField(db_default="", default="", max_length=500, verbose_name="function")),
                (
                    "target",
                    models.CharField(db_default="worker", default="worker", max_length=50, verbose_name="target"),
                ),
                (
                    "queue",
                    models.CharField(db_default="default", default="default", max_length=100, verbose_name="queue"),
                ),
                (
                    "args",
                    models.JSONField(
                        blank=True,
                        db_default=models.Value([], models.JSONField()),
                        default=list,
                        verbose_name="arguments",
                    ),
                ),
                (
                    "kwargs",
                    models.JSONField(
                        blank=True,
                        db_default=models.Value({}, models.JSONField()),
                        default=dict,
                        verbose_name="keyword arguments",
                    ),
                ),
                ("cron", models.CharField(blank=True, db_default="", default="", max_length=200, verbose_name="cron")),
                ("interval", models.IntegerField(blank=True, help_text="seconds", null=True, verbose_name="interval")),
                (
                    "timezone",
                    models.CharField(
                        db_default="UTC",
                        default=pgwerk_django.models.default_timezone,
                        max_length=100,
                        verbose_name="time zone",
                    ),
                ),
                ("starts_at", models.DateTimeField(blank=True, null=True, verbose_name="starts at")),
                ("ends_at", models.DateTimeField(blank=True, null=True, verbose_name="ends at")),
                (
                    "max_runs",
                    models.IntegerField(
                        blank=True,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(1)],
                        verbose_name="maximum runs",
                    ),
                ),
                (
                    "jitter",
                    models.IntegerField(
                        db_default=0,
                        default=0,
                        validators=[
                            django.core.validators.MinValueValidator(0),
                            django.core.validators.MaxValueValidator(2147483647),
                        ],
                        verbose_name="jitter",
                    ),
                ),
                ("priority", models.IntegerField(db_default=0, default=0, verbose_name="priority")),
                (
                    "overlap",
                    models.CharField(
                        choices=[
                            ("BUFFER_ONE", "skip while one is waiting"),
                            ("SKIP", "skip while one is waiting or running"),
                            ("ALLOW", "always start another"),
                        ],
                        db_default="BUFFER_ONE",
                        default="BUFFER_ONE",
                        max_length=20,
                        verbose_name="overlap",
                    ),
                ),
                (
                    "misfire",
                    models.CharField(
                        choices=[
                            ("LATEST", "fire once, for the latest due time"),
                            ("ALL", "fire each missed due time, oldest first"),
                            ("SKIP", "skip what is older than the grace"),
                        ],
                        db_default="LATEST",
                        default="LATEST",
                        max_length=20,
                        verbose_name="misfire",
                    ),
                ),
                (
                    "misfire_grace",
                    models.IntegerField(
                        db_default=60,
                        default=60,
                        validators=[
                            django.core.validators.MinValueValidator(0),
                            django.core.validators.MaxValueValidator(2147483647),
                        ],
                        verbose_name="misfire grace",
                    ),
                ),
                (
                    "max_attempts",
                    models.IntegerField(
                        db_default=1,
                        default=1,
                        validators=[django.core.validators.MinValueValidator(1)],
                        verbose_name="maximum attempts",
                    ),
                ),
                ("backoff", models.JSONField(blank=True, null=True, verbose_name="backoff")),
                (
                    "timeout",
                    models.IntegerField(
                        blank=True,
                        null=True,
                        validators=[
                            django.core.validators.MinValueValidator(1),
                            django.core.validators.MaxValueValidator(2147483647),
                        ],
                        verbose_name="timeout",
                    ),
                ),
                (
                    "result_ttl",
                    models.IntegerField(
                        blank=True,
                        null=True,
                        validators=[
                            django.core.validators.MinValueValidator(0),
                            django.core.validators.MaxValueValidator(2147483647),
                        ],
                        verbose_name="result TTL",
                    ),
                ),
                (
                    "failure_ttl",
                    models.IntegerField(
                        blank=True,
                        null=True,
                        validators=[
                            django.core.validators.MinValueValidator(0),
                            django.core.validators.MaxValueValidator(2147483647),
                        ],
                        verbose_name="failure TTL",
                    ),
                ),
                (
                    "start_within",
                    models.IntegerField(
                        blank=True,
                        null=True,
                        validators=[
                            django.core.validators.MinValueValidator(0),
                            django.core.validators.MaxValueValidator(2147483647),
                        ],
                        verbose_name="start within",
                    ),
                ),
                (
                    "meta",
                    models.JSONField(
                        blank=True, db_default=models.Value({}, models.JSONField()), default=dict, verbose_name="meta"
                    ),
                ),
                ("description", models.TextField(blank=True, db_default="", default="", verbose_name="description")),
                (
                    "origin",
                    models.CharField(
                        choices=[("code", "code"), ("api", "API"), ("admin", "admin")],
                        db_default="code",
                        default="code",
                        max_length=10,
                        verbose_name="origin",
                    ),
                ),
                (
                    "last_registered_at",
                    models.DateTimeField(editable=False, null=True, verbose_name="last registered at"),
                ),
                (
                    "created_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), editable=False, verbose_name="created at"
                    ),
                ),
                ("next_run_at", models.DateTimeField(blank=True, null=True, verbose_name="next run")),
                (
                    "anchor_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), editable=False, verbose_name="anchor"
                    ),
                ),
                ("replan", models.BooleanField(db_default=False, default=False, editable=False)),
                ("triggered_at", models.DateTimeField(editable=False, null=True, verbose_name="triggered at")),
                (
                    "triggered_by",
                    models.CharField(
                        db_default="", default="", editable=False, max_length=200, verbose_name="triggered by"
                    ),
                ),
                ("paused", models.BooleanField(db_default=False, default=False, editable=False, verbose_name="paused")),
                ("paused_at", models.DateTimeField(editable=False, null=True, verbose_name="paused at")),
                (
                    "paused_by",
                    models.CharField(
                        db_default="", default="", editable=False, max_length=200, verbose_name="paused by"
                    ),
                ),
                (
                    "pause_reason",
                    models.TextField(db_default="", default="", editable=False, verbose_name="pause reason"),
                ),
                ("run_count", models.IntegerField(db_default=0, default=0, editable=False, verbose_name="runs")),
                ("last_run_at", models.DateTimeField(editable=False, null=True, verbose_name="last run")),
                ("error", models.TextField(db_default="", default="", editable=False, verbose_name="error")),
            ],
            options={
                "verbose_name": "schedule",
                "verbose_name_plural": "schedules",
                "db_table": "_pgwerk_schedules",
                "permissions": [
                    ("pause_schedule", "Can pause and resume schedules"),
                    ("trigger_schedule", "Can trigger schedules"),
                ],
                "indexes": [
                    models.Index(
                        django.db.models.functions.comparison.Least(
                            models.Case(models.When(paused=False, then="next_run_at")), "triggered_at"
                        ),
                        condition=models.Q(("paused", False), ("triggered_at__isnull", False), _connector="OR"),
                        name="pgwerk_due",
                    ),
                    models.Index(
                        condition=models.Q(("error", ""), _negated=True), fields=["id"], name="pgwerk_set_aside"
                    ),
                    models.Index(condition=models.Q(("paused", True)), fields=["id"], name="pgwerk_paused"),
                ],
                "constraints": [
                    models.UniqueConstraint(fields=("name",), name="pgwerk_schedule_name"),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("name", ""), _negated=True),
                            models.Q(
                                ("name__regex", "[\\x01-\\x1f\\x7f\\u0080-\\u009f\\u2028-\\u202e\\u2066-\\u2069]"),
                                _negated=True,
                            ),
                        ),
                        name="pgwerk_schedule_name_text",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("cron", ""), ("interval__isnull", True), _connector="OR"),
                        name="pgwerk_one_recurrence",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            (
                                "anchor_at__range",
                                (
                                    datetime.datetime(1900, 1, 1, 0, 0, tzinfo=datetime.UTC),
                                    datetime.datetime(9000, 1, 1, 0, 0, tzinfo=datetime.UTC),
                                ),
                            ),
                            (
                                "ends_at__range",
                                (
                                    datetime.datetime(1900, 1, 1, 0, 0, tzinfo=datetime.UTC),
                                    datetime.datetime(9000, 1, 1, 0, 0, tzinfo=datetime.UTC),
                                ),
                            ),
                            (
                                "last_run_at__range",
                                (
                                    datetime.datetime(1900, 1, 1, 0, 0, tzinfo=datetime.UTC),
                                    datetime.datetime(9000, 1, 1, 0, 0, tzinfo=datetime.UTC),
                                ),
                            ),
                            (
                                "next_run_at__range",
                                (
                                    datetime.datetime(1900, 1, 1, 0, 0, tzinfo=datetime.UTC),
                                    datetime.datetime(9000, 1, 1, 0, 0, tzinfo=datetime.UTC),
                                ),
                            ),
                            (
                                "starts_at__range",
                                (
                                    datetime.datetime(1900, 1, 1, 0, 0, tzinfo=datetime.UTC),
                                    datetime.datetime(9000, 1, 1, 0, 0, tzinfo=datetime.UTC),
                                ),
                            ),
                            (
                                "triggered_at__range",
                                (
                                    datetime.datetime(1900, 1, 1, 0, 0, tzinfo=datetime.UTC),
                                    datetime.datetime(9000, 1, 1, 0, 0, tzinfo=datetime.UTC),
                                ),
                            ),
                        ),
                        name="pgwerk_instants",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("interval__isnull", True),
                            models.Q(("interval__gte", 1), ("interval__lte", 315360000)),
                            _connector="OR",
                        ),
                        name="pgwerk_interval_range",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Job",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        db_default=pgwerk_django.models.UUIDv7(), editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "key",
                    models.CharField(
                        db_default=pgwerk_django.models.RandomKey(),
                        default=pgwerk_django.models.random_key,
                        max_length=255,
                        verbose_name="key",
                    ),
                ),
                (
                    "schedule_name",
                    models.CharField(
                        blank=True, db_default="", default="", max_length=200, verbose_name="schedule name"
                    ),
                ),
                ("due_at", models.DateTimeField(blank=True, null=True, verbose_name="due at")),
                (
                    "kind",
                    models.CharField(
                        choices=[("scheduled", "scheduled"), ("trigger", "trigger"), ("adhoc", "ad hoc")],
                        db_default="adhoc",
                        default="adhoc",
                        max_length=10,
                        verbose_name="kind",
                    ),
                ),
                ("function", models.CharField(db_default="", default="", max_length=500, verbose_name="function")),
                (
                    "target",
                    models.CharField(db_default="worker", default="worker", max_length=50, verbose_name="target"),
                ),
                (
                    "queue",
                    models.CharField(db_default="default", default="default", max_length=100, verbose_name="queue"),
                ),
                ("priority", models.IntegerField(db_default=0, default=0, verbose_name="priority")),
                (
                    "args",
                    models.JSONField(
                        db_default=models.Value([], models.JSONField()), default=list, verbose_name="arguments"
                    ),
                ),
                (
                    "kwargs",
                    models.JSONField(
                        db_default=models.Value({}, models.JSONField()), default=dict, verbose_name="keyword arguments"
                    ),
                ),
                (
                    "meta",
                    models.JSONField(
                        db_default=models.Value({}, models.JSONField()), default=dict, verbose_name="meta"
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("READY", "Ready"),
                            ("RUNNING", "Running"),
                            ("SUCCESSFUL", "Successful"),
                            ("FAILED", "Failed"),
                            ("SKIPPED", "Skipped"),
                            ("FORWARDED", "Forwarded"),
                            ("CANCELLED", "Cancelled"),
                        ],
                        db_default="READY",
                        default="READY",
                        max_length=10,
                        verbose_name="status",
                    ),
                ),
                ("reason", models.TextField(blank=True, db_default="", default="", verbose_name="reason")),
                ("attempt", models.IntegerField(db_default=0, default=0, verbose_name="attempt")),
                ("max_attempts", models.IntegerField(db_default=1, default=1, verbose_name="maximum attempts")),
                ("backoff", models.JSONField(blank=True, null=True, verbose_name="backoff")),
                ("claims", models.IntegerField(db_default=0, default=0, verbose_name="claims")),
                ("timeout", models.IntegerField(blank=True, null=True, verbose_name="timeout")),
                ("result_ttl", models.IntegerField(blank=True, null=True, verbose_name="result TTL")),
                ("failure_ttl", models.IntegerField(blank=True, null=True, verbose_name="failure TTL")),
                (
                    "enqueued_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), verbose_name="enqueued at"
                    ),
                ),
                (
                    "run_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), verbose_name="run at"),
                ),
                ("start_by", models.DateTimeField(blank=True, null=True, verbose_name="start by")),
                ("started_at", models.DateTimeField(blank=True, null=True, verbose_name="started at")),
                ("finished_at", models.DateTimeField(blank=True, null=True, verbose_name="finished at")),
                ("lease_until", models.DateTimeField(blank=True, null=True, verbose_name="lease until")),
                ("prefetched", models.BooleanField(db_default=False, default=False, verbose_name="prefetched")),
                ("unknown_since", models.DateTimeField(blank=True, null=True, verbose_name="unknown since")),
                ("releases", models.IntegerField(db_default=0, default=0, verbose_name="releases")),
                (
                    "worker_name",
                    models.CharField(blank=True, db_default="", default="", max_length=300, verbose_name="worker name"),
                ),
                (
                    "external_id",
                    models.CharField(blank=True, db_default="", default="", max_length=255, verbose_name="external id"),
                ),
                ("result", models.JSONField(blank=True, null=True, verbose_name="result")),
                ("error", models.TextField(blank=True, db_default="", default="", verbose_name="error")),
                ("exception", models.TextField(blank=True, db_default="", default="", verbose_name="exception")),
                (
                    "errors",
                    models.JSONField(
                        db_default=models.Value([], models.JSONField()),
                        default=list,
                        verbose_name="errors of earlier attempts",
                    ),
                ),
                ("progress", models.JSONField(blank=True, null=True, verbose_name="progress")),
                (
                    "cancel_requested_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="cancel requested at"),
                ),
                (
                    "cancel_forced",
                    models.BooleanField(db_default=False, default=False, verbose_name="cancel forced"),
                ),
                ("expires_at", models.DateTimeField(blank=True, null=True, verbose_name="expires at")),
                (
                    "traceparent",
                    models.CharField(blank=True, db_default="", default="", editable=False, max_length=100),
                ),
                (
                    "worker",
                    models.ForeignKey(
                        blank=True,
                        db_constraint=False,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="jobs",
                        to="pgwerk_django.process",
                        verbose_name="worker",
                    ),
                ),
                (
                    "schedule",
                    models.ForeignKey(
                        blank=True,
                        db_constraint=False,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="jobs",
                        to="pgwerk_django.schedule",
                        verbose_name="schedule",
                    ),
                ),
            ],
            options={
                "verbose_name": "job",
                "verbose_name_plural": "jobs",
                "db_table": "_pgwerk_jobs",
                "permissions": [("retry_job", "Can retry jobs"), ("cancel_job", "Can cancel jobs")],
                "indexes": [
                    models.Index(
                        condition=models.Q(("status", "READY"), ("target", "worker")),
                        fields=["queue", "-priority", "run_at"],
                        name="pgwerk_claim",
                    ),
                    models.Index(
                        condition=models.Q(("status", "READY"), models.Q(("target", "worker"), _negated=True)),
                        fields=["target", "run_at"],
                        name="pgwerk_outbox",
                    ),
                    models.Index(
                        condition=models.Q(("start_by__isnull", False), ("status", "READY")),
                        fields=["start_by"],
                        name="pgwerk_start_by",
                    ),
                    models.Index(
                        condition=models.Q(("schedule__isnull", False), ("status__in", ["READY", "RUNNING"])),
                        fields=["schedule"],
                        name="pgwerk_open",
                    ),
                    models.Index(condition=models.Q(("status", "RUNNING")), fields=["worker"], name="pgwerk_running"),
                    models.Index(
                        condition=models.Q(("status", "READY"), ("unknown_since__isnull", False)),
                        fields=["queue", "function"],
                        name="pgwerk_unknown",
                    ),
                    models.Index(
                        condition=models.Q(("expires_at__isnull", False)), fields=["expires_at"], name="pgwerk_expiry"
                    ),
                    models.Index(
                        condition=models.Q(("status", "FAILED")),
                        fields=["id"],
                        include=["schedule_name"],
                        name="pgwerk_failed",
                    ),
                    models.Index(
                        condition=models.Q(
                            models.Q(("schedule_name", ""), _negated=True),
                            models.Q(
                                ("status", "FAILED"),
                                models.Q(
                                    ("status", "SKIPPED"), models.Q(("reason__startswith", "overlap:"), _negated=True)
                                ),
                                _connector="OR",
                            ),
                        ),
                        fields=["finished_at"],
                        name="pgwerk_ended_badly",
                    ),
                ],
                "constraints": [
                    models.UniqueConstraint(fields=("key",), name="pgwerk_job_key"),
                    models.CheckConstraint(
                        condition=models.Q(
                            (
                                "due_at__range",
                                (
                                    datetime.datetime(1900, 1, 1, 0, 0, tzinfo=datetime.UTC),
                                    datetime.datetime(9000, 1, 1, 0, 0, tzinfo=datetime.UTC),
                                ),
                            ),
                            (
                                "run_at__range",
                                (
                                    datetime.datetime(1900, 1, 1, 0, 0, tzinfo=datetime.UTC),
                                    datetime.datetime(9000, 1, 1, 0, 0, tzinfo=datetime.UTC),
                                ),
                            ),
                            (
                                "start_by__range",
                                (
                                    datetime.datetime(1900, 1, 1, 0, 0, tzinfo=datetime.UTC),
                                    datetime.datetime(9000, 1, 1, 0, 0, tzinfo=datetime.UTC),
                                ),
                            ),
                        ),
                        name="pgwerk_job_instants",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("expires_at__isnull", True),
                            models.Q(("status__in", ["READY", "RUNNING"]), _negated=True),
                            _connector="OR",
                        ),
                        name="pgwerk_open_stays",
                    ),
                ],
            },
        ),
        migrations.RunSQL(AUTOVACUUM, migrations.RunSQL.noop),
        migrations.RunSQL(REPLAN + WAKE_SCHEDULERS + WAKE_WORKERS + DELETED, DROP_FUNCTIONS),
    ]
