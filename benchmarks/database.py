"""A fresh database with our tables, and the schedules to fill it with."""

import contextlib
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import django
import psycopg
from django.core.management import call_command
from django.db import connection

from example_project.embedded import EmbeddedPostgres

ZONES = ("UTC", "Europe/Paris", "America/New_York", "Asia/Kolkata", "Australia/Sydney")


def expressions() -> list[str]:
    """200 cron expressions as sites have them: each few minutes, hourly, daily, working days, monthly."""
    found = [f"*/{n} * * * *" for n in range(1, 31)]
    found += [f"{n} * * * *" for n in range(30)]
    found += [f"{n} {n % 24} * * *" for n in range(10, 60)]
    found += [f"{n} {n % 12}-{12 + n % 11} * * 1-5" for n in range(50)]
    found += [f"{n} {n % 24} {1 + n % 28} */3 *" for n in range(40)]
    return found


TEMPLATE = "PGWERK_BENCH_TEMPLATE"  # a migrated database to copy
LOG = "PGWERK_BENCH_LOG"  # the embedded server's log, for who can read it


@contextlib.contextmanager
def server() -> Iterator[None]:
    """Have DATABASE_URL name a server: the one it names now, else an embedded one of our own."""
    if "DATABASE_URL" in os.environ:
        yield
        return
    options = {"shared_buffers": "512MB", "log_line_prefix": "%a ", "max_connections": 200}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pgwerk-bench-"))
        embedded = stack.enter_context(EmbeddedPostgres(folder, options=options))
        os.environ |= {"DATABASE_URL": embedded.url, LOG: str(embedded.log)}
        try:
            yield
        finally:
            del os.environ["DATABASE_URL"], os.environ[LOG]


@contextlib.contextmanager
def fresh_database(*, migrate: bool = False) -> Iterator[None]:
    """Have DATABASE_URL name a new, migrated database, and Django use it: once in a process.

    A copy of one that is migrated already, if there is one; `migrate` says that the settings have apps which that has not.
    """
    with server():
        url, name = os.environ["DATABASE_URL"], f"pgwerk_bench_{os.getpid()}"
        _execute(url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        template = os.environ.get(TEMPLATE)
        _execute(url, f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))
        try:
            os.environ["DATABASE_URL"] = urlsplit(url)._replace(path=f"/{name}").geturl()
            os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
            django.setup()
            if migrate or not template:
                call_command("migrate", verbosity=0)
            connection.close()
            yield
        finally:
            os.environ["DATABASE_URL"] = url
            connection.close()
            _execute(url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@contextlib.contextmanager
def template() -> Iterator[None]:
    """Have what asks for a fresh database get a copy of one that is migrated here, once."""
    url = os.environ["DATABASE_URL"]
    with fresh_database():
        os.environ |= {"DATABASE_URL": url, TEMPLATE: f"pgwerk_bench_{os.getpid()}"}
        try:
            yield
        finally:
            del os.environ[TEMPLATE]


def machine() -> dict[str, object]:
    """What the figures are of."""
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connected:
        names = ("server_version", "synchronous_commit", "fsync", "shared_buffers")
        found = {name: connected.execute("SELECT current_setting(%s)", [name]).fetchone() for name in names}
        flush = statistics.median(_seconds_of_a_commit(connected) for _ in range(30))
    return {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "django": django.get_version(),
        "postgresql": str(found["server_version"][0]).split()[0] if found["server_version"] else "",
        **{name: value[0] for name, value in found.items() if value and name != "server_version"},
        "commit_ms": round(flush * 1000, 2),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def _seconds_of_a_commit(connected: "psycopg.Connection[Any]") -> float:
    """One statement that must reach the disk: no job can be there for others sooner."""
    begun = time.perf_counter()
    connected.execute("SELECT txid_current(), pg_logical_emit_message(true, 'bench', '')")
    return time.perf_counter() - begun


def _execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(statement)


# Each pair of expression and zone once before any comes again: for a thousand schedules nothing is there twice.
_FILL = """
INSERT INTO _pgwerk_schedules (
    name, function, queue, args, kwargs, cron, interval, timezone, origin, anchor_at, next_run_at
)
SELECT
    'shop.tasks.report_' || lpad(n::text, 7, '0'), 'shop.tasks.report', 'default', '[42, "north"]', '{"days": 7}',
    CASE WHEN is_cron THEN (%(crons)s::text[])[1 + pair %% 200] ELSE '' END,
    CASE WHEN NOT is_cron THEN (array[60, 300, 900, 3600, 86400])[1 + n %% 5] END,
    CASE WHEN is_cron THEN (%(zones)s::text[])[1 + pair / 200] ELSE 'UTC' END,
    'api', first_run_at - interval '1 day', first_run_at
FROM (
    SELECT n, random() < %(cron_share)s AS is_cron, n * 617 %% 1000 AS pair,
        statement_timestamp() + make_interval(secs => %(earliest)s + random() * (%(newest)s - %(earliest)s))
            AS first_run_at
    FROM generate_series(1, %(count)s) AS n
) AS rows
"""


def fill(count: int, *, cron_share: float = 0.5, earliest: float = 3600, newest: float = 86400) -> None:
    """Have exactly `count` schedules, first due from `earliest` to `newest` seconds from now, and no jobs."""
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE _pgwerk_schedules, _pgwerk_jobs")
        cursor.execute(
            _FILL,
            {
                "count": count,
                "cron_share": cron_share,
                "earliest": earliest,
                "newest": newest,
                "crons": expressions(),
                "zones": list(ZONES),
            },
        )
        cursor.execute("VACUUM ANALYZE _pgwerk_schedules, _pgwerk_jobs")
