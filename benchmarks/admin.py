"""Server time and queries of each page of the admin, with 100,000 schedules and 1,000,000 jobs of the last week.

Each page is asked for once to warm up, then several times; what counts is the median.
"""

import statistics
import time
from typing import Any

from django.db import connection
from django.test.utils import CaptureQueriesContext

from benchmarks.database import fill, fresh_database
from benchmarks.results import Given, Result, Row

SIZES: dict[str, dict[str, int]] = {
    "full": {"schedules": 100_000, "jobs": 1_000_000, "rounds": 5},
    "quick": {"schedules": 20_000, "jobs": 200_000, "rounds": 3},
    "tiny": {"schedules": 100, "jobs": 1_000, "rounds": 1},
}
MOST_MILLISECONDS, MOST_QUERIES = 300, 15

# Each job belongs to one of the schedules: a tenth of the schedules have nine tenths of the jobs. Of a schedule in fifty
# every third job fails; few jobs wait or run.
JOBS = """
INSERT INTO _pgwerk_jobs (
    id, key, schedule_id, schedule_name, due_at, kind, function, queue, status, reason, attempt, claims, enqueued_at,
    run_at, started_at, finished_at, error, result, expires_at
)
SELECT
    (lpad(to_hex((extract(epoch FROM due_at) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8'
        || substr(md5(n::text), 4, 15))::uuid,
    name || '@' || to_char(due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), schedule_id, name, due_at,
    CASE WHEN n %% 50 = 0 THEN 'trigger' ELSE 'scheduled' END, 'shop.tasks.report', queue, status,
    CASE status WHEN 'SKIPPED' THEN 'overlap: an earlier job is running (SKIP)' ELSE '' END, 1, 1, due_at, due_at,
    CASE WHEN status NOT IN ('READY', 'SKIPPED') THEN due_at + interval '50 ms' END,
    CASE WHEN status NOT IN ('READY', 'RUNNING') THEN due_at + random() * interval '9 s' END,
    CASE status WHEN 'FAILED' THEN repeat('Traceback: a line of the stack', 40) ELSE '' END,
    CASE status WHEN 'SUCCESSFUL' THEN to_jsonb(n) END,
    CASE WHEN status NOT IN ('READY', 'RUNNING') THEN due_at + interval '7 days' END
FROM (
    SELECT n, schedule.id AS schedule_id, schedule.name, schedule.queue, due_at,
        CASE
            WHEN n > %(jobs)s * 0.998 THEN 'READY'
            WHEN n > %(jobs)s * 0.9978 THEN 'RUNNING'
            WHEN schedule.id %% 50 = 0 AND n %% 3 = 0 THEN 'FAILED'
            WHEN n %% 97 = 0 THEN 'SKIPPED'
            ELSE 'SUCCESSFUL'
        END AS status
    FROM (
        SELECT n, statement_timestamp() - (%(jobs)s - n) * (interval '7 days' / %(jobs)s) AS due_at,
            lower + CASE WHEN n %% 10 = 0 THEN (n / 10) %% span ELSE n %% greatest(span / 10, 1) END AS schedule_id
        FROM generate_series(1, %(jobs)s) AS n,
            (SELECT min(id) AS lower, count(*) AS span FROM _pgwerk_schedules) AS schedules
    ) AS drawn JOIN _pgwerk_schedules schedule ON schedule.id = drawn.schedule_id
) AS jobs ORDER BY n
"""


def run(given: Given) -> Result:
    size = SIZES[given.size]
    with fresh_database():
        fill(size["schedules"], earliest=1)
        with connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = off")
            cursor.execute(JOBS, {"jobs": size["jobs"]})
            cursor.execute("UPDATE _pgwerk_schedules SET last_run_at = statement_timestamp() WHERE id % 10 > 0")
            cursor.execute(
                "UPDATE _pgwerk_schedules SET paused = true, pause_reason = 'stocktaking' WHERE id % 1000 = 7"
            )
            cursor.execute("INSERT INTO _pgwerk_processes (role, host) VALUES ('scheduler', 'a'), ('worker', 'a')")
            cursor.execute("VACUUM ANALYZE _pgwerk_schedules, _pgwerk_jobs")
        pages = measure(size["rounds"])
    slowest, busiest = (max(pages.items(), key=lambda page: page[1][what]) for what in ("median", "queries"))
    beside = f"with {size['schedules']:,} schedules and {size['jobs']:,} jobs"
    rows = [
        Row(
            f"the admin's slowest page, {beside}",
            "ms",
            slowest[1]["median"],
            more_is_better=False,
            target=f"at most {MOST_MILLISECONDS} ms",
            met=slowest[1]["median"] <= MOST_MILLISECONDS,
            how=f"Of {len(pages)} pages, server time, median of {size['rounds']}: {slowest[0]}.",
        ),
        Row(
            f"the admin's page with most queries, {beside}",
            "queries",
            busiest[1]["queries"],
            more_is_better=False,
            target=f"at most {MOST_QUERIES}",
            met=busiest[1]["queries"] <= MOST_QUERIES,
            how=f"{busiest[0]}.".capitalize(),
        ),
    ]
    return Result(rows, pages)


def measure(rounds: int) -> dict[str, dict[str, Any]]:
    from django.contrib.auth.models import User
    from django.test import Client

    from pgwerk_django.models import Job, Schedule

    client = Client()
    client.force_login(User.objects.create_superuser("anna"))
    busy = Schedule.objects.order_by("pk")[50]
    failed = Job.objects.filter(status="FAILED").first()
    assert failed is not None
    base = "/admin/pgwerk_django"
    urls = {
        "overview": f"{base}/overview/",
        "overview, 1 h": f"{base}/overview/?span=1h",
        "overview, 7 d": f"{base}/overview/?span=7d",
        "schedules": f"{base}/schedule/",
        "schedules, last page": f"{base}/schedule/?p={Schedule.objects.count() // 50}",
        "schedules, failing": f"{base}/schedule/?state=FAILING",
        "schedules, OK": f"{base}/schedule/?state=OK",
        "schedules, failed": f"{base}/schedule/?outcome=failed",
        "schedules, running": f"{base}/schedule/?outcome=running",
        "schedules, search": f"{base}/schedule/?q=report_00500",
        "schedule": f"{base}/schedule/{busy.pk}/change/",
        "jobs": f"{base}/job/",
        "jobs, failed": f"{base}/job/?status__exact=FAILED",
        "jobs, skipped": f"{base}/job/?status__exact=SKIPPED",
        "jobs, queue": f"{base}/job/?queue=default",
        "jobs, of a schedule": f"{base}/job/?schedule={busy.name}",
        "jobs, search": f"{base}/job/?q={busy.name}",
        "job": f"{base}/job/{failed.pk}/change/",
        "processes": f"{base}/process/",
    }
    pages = {}
    print(f"{'page':<24} {'median':>9} {'slowest':>9} {'queries':>8} {'in SQL':>9} {'size':>8}")
    for name, url in urls.items():
        client.get(url)
        taken = []
        for _ in range(rounds):
            started = time.perf_counter()
            response = client.get(url)
            taken.append((time.perf_counter() - started) * 1000)
            assert response.status_code == 200, (url, response.status_code)
        with CaptureQueriesContext(connection) as captured:
            client.get(url)
        sql = sum(float(query["time"]) for query in captured.captured_queries) * 1000
        median = statistics.median(taken)
        print(
            f"{name:<24} {median:6.0f} ms {max(taken):6.0f} ms {len(captured):8} {sql:6.0f} ms {len(response.content) // 1024:5} kB",
            flush=True,
        )
        pages[name] = {"median": median, "slowest": max(taken), "queries": len(captured), "sql": sql}
    return pages
