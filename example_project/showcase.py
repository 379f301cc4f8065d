"""A shop that has been running for a week, written into the tables at once: for screenshots and for tests that look."""

import datetime as dt
import random
import time

from django.db import connection
from django.db.models import F
from django.db.models.functions import Now

from example_project.shop.tasks import restock
from pgwerk_django.models import Job, Kind, Origin, Process, Schedule, Status
from pgwerk_django.scheduler import Scheduler

MINUTE = dt.timedelta(minutes=1)
DAY = dt.timedelta(days=1)

# Name, function, rule, queue, seconds that a run takes, of a hundred runs how many fail and how many are skipped
MORE = (
    ("billing.invoices", "*/10 8-18 * * mon-fri", "Europe/Berlin", "billing", 4.0, 3, 0),
    ("billing.reminders", "30 7 * * mon,thu", "Europe/Berlin", "billing", 12.0, 0, 0),
    ("catalogue.import", "*/30 * * * *", "UTC", "imports", 95.0, 0, 9),
    ("catalogue.prices", "5 * * * *", "UTC", "imports", 20.0, 40, 0),
    ("reports.month-end", "0 6 1 * *", "America/New_York", "reports", 240.0, 0, 0),
    ("search.reindex", "0 */4 * * *", "UTC", "default", 130.0, 0, 4),
    ("stock.count", "15 2 * * *", "Europe/Paris", "reports", 75.0, 0, 0),
    ("sync.warehouse", "*/5 * * * *", "UTC", "default", 2.5, 6, 3),
)
TRACEBACK = """Traceback (most recent call last):
  File "shop/prices.py", line 41, in update_prices
    rates = exchange.fetch_rates(timeout=10)
  File "shop/exchange.py", line 17, in fetch_rates
    response.raise_for_status()
exchange.RateServerError: 503 Service Unavailable from rates.example.com
"""


def fill() -> None:
    chance = random.Random(4)  # noqa: S311  the same week each time
    scheduler = Scheduler()
    scheduler.sync()
    for name, cron, zone, queue, *_rest in MORE:
        scheduler.cron(cron, restock, "Acme", up_to=20, _name=name, _queue=queue, _timezone=zone, _overlap="SKIP")
    scheduler.interval(86400, restock, "Acme", up_to=50, _name="restock.acme", _meta={"token": "s3cr3t"})
    Schedule.objects.filter(name="catalogue.import").update(origin=Origin.ADMIN, description="The suppliers' lists.")
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        now = cursor.fetchone()[0]
    # Every few minutes will do: a picture needs no hundred thousand jobs.
    Schedule.objects.filter(interval__lt=60).update(interval=F("interval") * 60)
    Schedule.objects.filter(cron="").update(created_at=now - 7 * DAY, anchor_at=now - 7 * DAY)
    while scheduler.tick():
        pass
    Job.objects.all().delete()
    for row in Schedule.objects.all():
        seconds, failing, skipping = next((more[4:] for more in MORE if more[0] == row.name), (1.2, 0, 0))
        fill_history(row, now, chance, seconds, failing, skipping)
    states(scheduler, now)
    processes()


def fill_history(
    row: Schedule, now: dt.datetime, chance: random.Random, seconds: float, failing: int, skipping: int
) -> None:
    after = now - 7 * DAY
    jobs: list[Job] = []
    due = row.recurrence.next_after(after)
    while due is not None and due < now:
        jobs.append(past_job(row, due, chance, seconds * (0.9 + len(jobs) / 3000), failing, skipping))
        due = row.recurrence.next_after(due)
    Job.objects.bulk_create(jobs)
    Schedule.objects.filter(pk=row.pk).update(run_count=len(jobs), last_run_at=jobs[-1].due_at if jobs else None)


def past_job(
    row: Schedule, due: dt.datetime, chance: random.Random, seconds: float, failing: int, skipping: int, kind: str = ""
) -> Job:
    lot, started = chance.randrange(100), due + dt.timedelta(seconds=chance.uniform(0.02, 0.6))
    ended = started + dt.timedelta(seconds=seconds * chance.lognormvariate(0, 0.35))
    job = Job(
        pk=uuid7(due, chance), key=f"{row.name}@{due:%Y-%m-%dT%H:%M:%S.%fZ}", schedule=row, schedule_name=row.name, due_at=due,
        kind=kind or Kind.SCHEDULED, function=row.function, queue=row.queue, args=row.args, kwargs=row.kwargs,
        status=Status.SUCCESSFUL, enqueued_at=due, run_at=due, started_at=started, finished_at=ended, attempt=1, claims=1,
        worker_name="worker web-1:4127", result=chance.randrange(40),
    )  # fmt: skip
    if lot < failing:
        job.status, job.error, job.result = Status.FAILED, TRACEBACK, None
    elif lot < failing + skipping:
        job.status, job.started_at, job.finished_at, job.result, job.claims = Status.SKIPPED, None, due, None, 0
        job.reason = "overlap: an earlier job is running (SKIP)"
    return job


def uuid7(instant: dt.datetime, chance: random.Random) -> str:
    return f"{int(instant.timestamp() * 1000):012x}7{chance.getrandbits(12):03x}8{chance.getrandbits(60):015x}"


def states(scheduler: Scheduler, now: dt.datetime) -> None:
    """One of each that wants a person: failing, paused, in error; and jobs that wait and run."""
    chance = random.Random(7)  # noqa: S311
    scheduler.pause("newsletter", reason="The texts are not ready yet", by="anna")
    prices = Schedule.objects.get(name="catalogue.prices")
    last = Job.objects.filter(schedule_name=prices.name).latest("due_at")
    Job.objects.filter(pk=last.pk).update(status=Status.FAILED, error=TRACEBACK, result=None, attempt=3, max_attempts=3,
        errors=[{"attempt": n, "at": f"{now - (4 - n) * MINUTE:%Y-%m-%dT%H:%M:%SZ}", "error": TRACEBACK} for n in (1, 2)])  # fmt: skip
    Schedule.objects.filter(name="stock.count").update(
        error="ValueError: cron day of month must exist in the month, got '30' in month '2' in '0 2 30 2 *'",
        next_run_at=None,
    )
    Schedule.objects.filter(name="search.reindex").update(next_run_at=now - 3 * MINUTE)
    warehouse = Schedule.objects.get(name="sync.warehouse")
    Job.objects.bulk_create(
        [past_job(warehouse, now - 9 * MINUTE + n * MINUTE, chance, 2, 0, 0, kind=Kind.TRIGGER) for n in (0, 2)]
    )
    running = past_job(Schedule.objects.get(name="catalogue.import"), now - MINUTE, chance, 60, 0, 0)
    running.status, running.finished_at, running.result = Status.RUNNING, None, None
    running.progress = {"done": 1840, "total": 2600, "note": "Leaf Ltd"}
    waiting = [past_job(prices, now - n * MINUTE / 3, chance, 1, 0, 0) for n in range(1, 5)]
    for number, job in enumerate(waiting):
        job.key, job.kind, job.status, job.schedule_name = f"adhoc-{number}", Kind.ADHOC, Status.READY, ""
        job.schedule, job.due_at, job.queue = None, None, "letters"  # no worker serves it
        job.started_at = job.finished_at = job.result = None
    Job.objects.bulk_create([running, *waiting])


def processes() -> None:
    """Two machines, whose hearts beat now."""
    Process.objects.all().delete()
    for host, offset in (("web-1", 0.012), ("web-2", -4.3)):
        for role, queues in (("scheduler", []), ("worker", ["default", "billing", "imports", "reports"])):
            Process.objects.create(
                role=role, host=host, pid=4126 + (role == "worker"), version="0.1.0", queues=queues, started_at=Now() - 2 * DAY,
                last_tick_at=Now() if role == "scheduler" else None,
                stats={"clock": time.time() + offset, "running": 1 if role == "worker" else 0},
            )  # fmt: skip
