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
    "claims-unlocked": "workers claim jobs without a lock on them",
    "unbegun-attempts": "a job that a lost worker had only claimed spends an attempt",
    "recovery-in-one-look": "a job is lost as soon as its lease has expired",
}
TWO_COMMITS = ("advance-before-insert", "insert-before-advance")
DROP_KEY = "ALTER TABLE _pgwerk_jobs DROP CONSTRAINT pgwerk_job_key"

ODD_JOBS = (  # functions of tests/chaos/odd.py
    "forks_and_exits", "forks_and_returns", "forks_and_raises", "exits", "ends_its_process", "kills_its_process",
    "raises_what_cannot_be_shown", "raises_a_surrogate", "returns_what_cannot_be_stored", "recurses", "prints",
    "leaves_a_thread", "runs_out_its_time",
)  # fmt: skip
TIMED_JOB = "runs_out_its_time"
