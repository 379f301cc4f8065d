"""What the auditor judges by: logs that triggers of the harness write, the tables at the end, the ledger, and the faults."""

import datetime as dt
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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

# Each change of a job's status or claim, by PostgreSQL's clock, and the session that made it. A deleted row is kept whole.
JOB_LOG = """
CREATE TABLE chaos_jobs (
    n bigserial PRIMARY KEY, at timestamptz, job text, name text, was text, status text, claims integer, attempt integer,
    attempt_before integer, worker_name text, prefetched boolean, run_at timestamptz, session text, gone jsonb
);
CREATE FUNCTION chaos_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO chaos_jobs (at, job, name, status, claims, attempt, worker_name, run_at, session)
        VALUES (clock_timestamp(), NEW.id, NEW.schedule_name, NEW.status, NEW.claims, NEW.attempt, NEW.worker_name,
            NEW.run_at, current_setting('application_name'));
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO chaos_jobs (at, job, name, was, status, claims, attempt, attempt_before, worker_name, prefetched,
            run_at, session)
        VALUES (clock_timestamp(), NEW.id, NEW.schedule_name, OLD.status, NEW.status, NEW.claims, NEW.attempt, OLD.attempt,
            NEW.worker_name, OLD.prefetched, NEW.run_at, current_setting('application_name'));
    ELSE
        INSERT INTO chaos_jobs (at, job, name, was, claims, attempt, worker_name, session, gone)
        VALUES (clock_timestamp(), OLD.id, OLD.schedule_name, OLD.status, OLD.claims, OLD.attempt, OLD.worker_name,
            current_setting('application_name'), to_jsonb(OLD));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_jobs_rows AFTER INSERT OR DELETE ON _pgwerk_jobs FOR EACH ROW EXECUTE FUNCTION chaos_jobs();
CREATE TRIGGER chaos_jobs_changes AFTER UPDATE ON _pgwerk_jobs FOR EACH ROW
WHEN ((OLD.status, OLD.claims) IS DISTINCT FROM (NEW.status, NEW.claims)) EXECUTE FUNCTION chaos_jobs();
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
    finished_at: dt.datetime | None = None
    expires_at: dt.datetime | None = None
    deleted_at: dt.datetime | None = None  # by clean-up: the row is as it was then


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
class Change:
    """One entry of the record of a job: it was inserted, claimed, ended, retried or deleted."""

    at: dt.datetime
    job: str
    status: str | None  # None: the row was deleted
    was: str | None = None  # None: the row was inserted
    claims: int = 0
    attempt: int = 0
    attempt_before: int | None = None
    worker: int | None = None  # the process id in `worker_name`: the holder of the claim, or its last one
    prefetched: bool = False  # before this change
    run_at: dt.datetime | None = None
    by: int | None = None  # the process id of the session; None: no scheduler or worker
    name: str = ""


@dataclass(frozen=True)
class Run:
    """A job's function began, in a process of the worker `worker`, under the claim number `claims`."""

    job: str
    claims: int
    worker: int
    began: dt.datetime
    ended: dt.datetime | None = None


@dataclass(frozen=True)
class Send:
    """A job was handed to the other engine by the process `by`."""

    job: str
    by: int
    at: dt.datetime


@dataclass(frozen=True)
class Hit:
    """A fault, from `began` to `ended`; with `pid` one that hit this process and no other."""

    kind: str
    began: dt.datetime
    ended: dt.datetime
    pid: int | None = None


@dataclass(frozen=True)
class Act:
    """What a person did to a job, and from when on it may have taken effect."""

    did: str  # cancel, force, retry
    job: str
    at: dt.datetime


@dataclass(frozen=True)
class Evidence:
    ended_at: dt.datetime  # from then on no fault: what was due by then must be accounted for
    events: list[Event]
    rows: list[Row]
    standing: list[Standing]
    began: Mapping[str, int] = field(default_factory=Counter)  # by job
    done: Mapping[str, int] = field(default_factory=Counter)
    sent: Mapping[str, int] = field(default_factory=Counter)
    changes: Sequence[Change] = ()  # in the order in which they were made; empty: there is no such record
    runs: Sequence[Run] = ()
    sends: Sequence[Send] = ()
    hits: Sequence[Hit] = ()
    acts: Sequence[Act] = ()
    patience: float = (
        1  # by which the bounds of lateness and of waiting are multiplied, on a machine that is known to be slow
    )


def gather(
    session: psycopg.Connection[Any],
    ledger: Iterable[Mapping[str, Any]],
    ended_at: dt.datetime,
    hits: Sequence[Hit] = (),
    patience: float = 1,
) -> Evidence:
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
        rows = [Row(**row) for row in cursor.execute(f"SELECT {ROW}, NULL AS deleted_at FROM _pgwerk_jobs job")]
        rows += [
            Row(**row)
            for row in cursor.execute(
                f"SELECT {ROW}, log.at AS deleted_at FROM chaos_jobs log"
                " CROSS JOIN LATERAL jsonb_populate_record(NULL::_pgwerk_jobs, log.gone) job WHERE gone IS NOT NULL"
            )
        ]
        standing = [
            Standing(**row)
            for row in cursor.execute(
                "SELECT name, next_run_at, paused, replan, error, triggered_at FROM _pgwerk_schedules"
            )
        ]
        changes = [
            Change(**{**row, "worker": pid_in(row["worker"]), "by": pid_in(row["by"])})
            for row in cursor.execute(
                "SELECT at, job, name, was, status, claims, attempt, attempt_before, worker_name AS worker,"
                " coalesce(prefetched, false) AS prefetched, run_at, session AS by FROM chaos_jobs ORDER BY n"
            )
        ]
    return Evidence(
        ended_at,
        events,
        rows,
        standing,
        **counts,
        changes=changes,
        runs=_runs(notes),
        sends=[Send(note["job"], note["by"], _instant(note)) for note in notes if note["what"] == "sent"],
        hits=[*hits, *_hits_on_children(notes, changes)],
        patience=patience,
        acts=[Act(note["did"], note["job"], _instant(note)) for note in notes if note["what"] == "person"],
    )


ROW = """
    job.id::text, job.key, job.schedule_name AS name, job.due_at, job.kind, job.status, job.reason, job.attempt,
    job.max_attempts, job.claims, job.enqueued_at, job.finished_at, job.expires_at,
    CASE WHEN job.kind = 'scheduled' AND job.status = 'SKIPPED' THEN (job.result->>'last_due_at')::timestamptz END AS until
"""
# A forced cancel ends the process that runs the job, once the jobs beside it are done or this long after.
FORCE_ENDS_WITHIN = dt.timedelta(seconds=30)


def pid_in(text: str | None) -> int | None:
    """The process id at the end of a worker's name, or of the name of a session."""
    found = re.search(r"[-:](\d+)$", text or "")
    return int(found[1]) if found else None


def _instant(note: Mapping[str, Any]) -> dt.datetime:
    return dt.datetime.fromtimestamp(note["at"], dt.UTC)


def _runs(notes: Iterable[Mapping[str, Any]]) -> list[Run]:
    runs: dict[tuple[str, int, float], Run] = {}
    latest: dict[tuple[str, int, int], tuple[str, int, float]] = {}  # by the process in which it runs
    for note in notes:
        if note["what"] == "began":
            key = (note["job"], note["claims"], note["at"])
            latest[note["job"], note["claims"], note["pid"]] = key
            runs[key] = Run(note["job"], note["claims"], note["worker"], _instant(note))
        elif note["what"] == "done":
            key = latest[note["job"], note["claims"], note["pid"]]
            run = runs[key]
            runs[key] = Run(run.job, run.claims, run.worker, run.began, _instant(note))
    return list(runs.values())


def _hits_on_children(notes: Iterable[Mapping[str, Any]], changes: Sequence[Change]) -> list[Hit]:
    """A job that ends its process, and a forced cancel, hit the jobs beside it."""
    hits = []
    for note in notes:
        at = _instant(note) if "at" in note else None
        if at is None:
            continue
        if note["what"] == "exits":
            hits.append(Hit("child", at, at, note["worker"]))
        elif note["what"] == "person" and note["did"] == "force":
            holders = {each.worker for each in changes if each.job == note["job"] and each.status == "RUNNING"}
            hits += [Hit("child", at, at + FORCE_ENDS_WITHIN, pid) for pid in holders if pid is not None]
    return hits
