"""What a person may name: points at which processes end or freeze, and guards that a broken build lacks. Imports nothing of ours."""

KILL, FREEZE = "kill", "freeze"

SCHEDULER_POINTS = (
    "sync: under its lock",
    "sync: before COMMIT",
    "tick: after claim",
    "tick: after insert",
    "tick: before COMMIT",
    "tick: after COMMIT",
    "hand-over: after claim",
    "hand-over: after sending",
    "hand-over: after marking",
)
WORKER_POINTS = ("worker: after claim", "worker: after a start", "worker: before an end", "worker: after an end")
BETWEEN = "between the two commits"  # of a build that has two

BREAKS = {
    "no-skip-locked": "schedulers wait for each other's rows, instead of passing over them",
    "no-row-lock": "schedulers lock no rows at all",
    "key-not-unique": "the database admits a job's key twice",
    "advance-before-insert": "schedules advance in one transaction, and their jobs come in the next",
    "insert-before-advance": "jobs come in one transaction, and their schedules advance in the next",
}
TWO_COMMITS = ("advance-before-insert", "insert-before-advance")
DROP_KEY = "ALTER TABLE _pgwerk_jobs DROP CONSTRAINT pgwerk_job_key"
