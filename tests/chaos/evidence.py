"""What the auditor judges by: a log that a trigger of the harness's own writes, the tables at the end, and the ledger."""

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import dict_row

# Every change of a schedule but a tick's advance: who declared what from when to when, independent of what ours believes.
LOG = """
CREATE TABLE chaos_log (
    n bigserial PRIMARY KEY, at timestamptz, began timestamptz, what text, name text, cron text, interval integer,
    timezone text, anchor_at timestamptz, created_at timestamptz, misfire text, misfire_grace integer, overlap text,
    paused boolean, replan boolean, error text, next_run_at timestamptz, before timestamptz, triggered_at timestamptz
);
CREATE FUNCTION chaos_log() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE seen record;
BEGIN
    IF TG_OP = 'DELETE' THEN seen := OLD; ELSE seen := NEW; END IF;
    INSERT INTO chaos_log (
        at, began, what, name, cron, interval, timezone, anchor_at, created_at, misfire, misfire_grace, overlap,
        paused, replan, error, next_run_at, before, triggered_at
    ) VALUES (
        clock_timestamp(), transaction_timestamp(), lower(TG_OP), seen.name, seen.cron, seen.interval, seen.timezone,
        seen.anchor_at, seen.created_at, seen.misfire, seen.misfire_grace, seen.overlap, seen.paused, seen.replan,
        seen.error, seen.next_run_at, CASE WHEN TG_OP <> 'INSERT' THEN OLD.next_run_at END, seen.triggered_at
    );
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_log_rows AFTER INSERT OR DELETE ON _pgwerk_schedules FOR EACH ROW EXECUTE FUNCTION chaos_log();
CREATE TRIGGER chaos_log_changes AFTER UPDATE ON _pgwerk_schedules FOR EACH ROW WHEN (
    (OLD.cron, OLD.interval, OLD.timezone, OLD.anchor_at, OLD.misfire, OLD.misfire_grace, OLD.overlap, OLD.paused,
        OLD.replan, OLD.error)
    IS DISTINCT FROM
    (NEW.cron, NEW.interval, NEW.timezone, NEW.anchor_at, NEW.misfire, NEW.misfire_grace, NEW.overlap, NEW.paused,
        NEW.replan, NEW.error)
    OR NEW.triggered_at IS DISTINCT FROM OLD.triggered_at AND NEW.triggered_at IS NOT NULL
) EXECUTE FUNCTION chaos_log();
"""


@dataclass(frozen=True)
class Event:
    """A schedule came, went or changed: what it says from then on. `before` is its `next_run_at` until then."""

    at: dt.datetime
    began: dt.datetime  # the transaction that did it
    what: str  # insert, update, delete
    name: str
    cron: str = ""
    interval: int | None = None
    timezone: str = "UTC"
    anchor_at: dt.datetime | None = None
    created_at: dt.datetime | None = None
    misfire: str = "ALL"
    misfire_grace: int = 60
    overlap: str = "ALLOW"
    paused: bool = False
    replan: bool = False
    error: str = ""
    next_run_at: dt.datetime | None = None
    before: dt.datetime | None = None
    triggered_at: dt.datetime | None = None

    @property
    def fires(self) -> bool:
        return not (self.what == "delete" or self.paused or self.replan or self.error)

    @property
    def rule(self) -> tuple[Any, ...]:
        return (self.cron, self.interval, self.timezone, self.anchor_at, self.created_at)


@dataclass(frozen=True)
class Row:
    """A job, as the table has it at the end."""

    key: str
    name: str
    due_at: dt.datetime | None
    kind: str = "scheduled"
    id: str = ""
    status: str = "SUCCESSFUL"
    reason: str = ""
    attempt: int = 1
    max_attempts: int = 5
    claims: int = 1
    enqueued_at: dt.datetime | None = None
    until: dt.datetime | None = None  # of a row that stands for a run of misfires: the last


@dataclass(frozen=True)
class Standing:
    """A schedule, as the table has it at the end."""

    name: str
    next_run_at: dt.datetime | None
    paused: bool = False
    replan: bool = False
    error: str = ""
    triggered_at: dt.datetime | None = None


@dataclass(frozen=True)
class Evidence:
    ended_at: dt.datetime  # from then on no fault: what was due by then must be accounted for
    events: list[Event]
    rows: list[Row]
    standing: list[Standing]
    began: Mapping[str, int] = field(default_factory=Counter)  # by job
    done: Mapping[str, int] = field(default_factory=Counter)
    sent: Mapping[str, int] = field(default_factory=Counter)


def gather(session: psycopg.Connection[Any], ledger: Iterable[Mapping[str, Any]], ended_at: dt.datetime) -> Evidence:
    notes = list(ledger)
    counts = {
        what: Counter(note["job"] for note in notes if note["what"] == what) for what in ("began", "done", "sent")
    }
    with session.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SET timezone = 'UTC'")
        columns = (
            "at, began, what, name, cron, interval, timezone, anchor_at, created_at, misfire, misfire_grace, overlap"
        )
        more = "paused, replan, error, next_run_at, before, triggered_at"
        events = [Event(**row) for row in cursor.execute(f"SELECT {columns}, {more} FROM chaos_log ORDER BY n")]
        rows = [
            Row(**row)
            for row in cursor.execute(
                "SELECT id::text, key, schedule_name AS name, due_at, kind, status, reason, attempt, max_attempts, claims,"
                " enqueued_at, CASE WHEN kind = 'scheduled' AND status = 'SKIPPED'"
                " THEN (result->>'last_due_at')::timestamptz END AS until FROM _pgwerk_jobs"
            )
        ]
        standing = [
            Standing(**row)
            for row in cursor.execute(
                "SELECT name, next_run_at, paused, replan, error, triggered_at FROM _pgwerk_schedules"
            )
        ]
    return Evidence(ended_at, events, rows, standing, **counts)
