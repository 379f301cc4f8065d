"""`manage.py schedules health`: green, red, and what is told; with figures that the indexes lead to."""

import json
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from pgwerk_django import alerts, health, signals
from pgwerk_django.claims import recover_lost
from pgwerk_django.models import Alert, Job, Process, Queue, Schedule
from tests.processes import Started
from tests.time_travel import HOUR, MINUTE, SECOND, make, now
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def process(role: str, *, ago: Any = SECOND, tick: Any = None, host: str = "", **columns: Any) -> Process:
    """One that said `ago` that it lives, and ticked, if it is a scheduler, `tick` ago."""
    at = now()
    return Process.objects.create(
        role=role,
        host=host or socket.gethostname(),
        pid=columns.pop("pid", 1),
        started_at=at - HOUR,
        heartbeat_at=at - ago,
        last_tick_at=at - (tick or ago) if role == "scheduler" else None,
        stats={"poll": 10, "clock": time.time() - ago.total_seconds(), **columns.pop("stats", {})},
        **columns,
    )


def judged(**options: Any) -> health.Health:
    return health.judge(using="default", **options)


def checks(findings: list[health.Finding]) -> list[str]:
    return sorted(finding.check for finding in findings)


def test_it_is_green_where_all_is_well() -> None:
    process("scheduler")
    process("worker")
    make(_name="x", ago=-HOUR)
    found = judged()
    assert (found.status, found.problems, found.warnings) == ("green", [], [])


# -- schedulers


def test_it_is_red_without_a_scheduler() -> None:
    process("worker")
    found = judged()
    assert (found.status, checks(found.problems)) == ("red", ["ticks"])
    assert "none has said that it lives" in found.problems[0].message
    assert judged(role="worker").status == "green"


def test_a_tick_may_be_as_old_as_a_heartbeat_and_three_polls() -> None:
    slow = process("scheduler", ago=25 * SECOND)
    assert judged().status == "green"
    Process.objects.filter(pk=slow.pk).update(stats={"poll": 1})
    assert checks(judged().problems) == ["ticks"]


def test_one_that_ticks_is_enough() -> None:
    process("scheduler", ago=MINUTE)
    process("scheduler")
    found = judged()
    assert (found.status, checks(found.warnings)) == ("green", ["silent"])


def test_it_is_red_where_a_loop_lives_but_does_not_tick() -> None:
    process("scheduler", ago=2 * SECOND)
    stuck = process("scheduler", tick=HOUR, pid=77)
    found = judged()
    assert (found.status, checks(found.problems)) == ("red", ["stuck"])
    assert f"scheduler {socket.gethostname()}:77 (heartbeat " in found.problems[0].message
    # One that was killed a while ago is not stuck.
    Process.objects.filter(pk=stuck.pk).update(heartbeat_at=now() - 20 * SECOND, last_tick_at=now() - 21 * SECOND)
    assert judged().status == "green"


def test_it_is_red_where_what_is_due_is_not_taken() -> None:
    process("scheduler")
    process("worker")
    make(_name="patient", ago=HOUR, _misfire_grace=7200)
    make(_name="just due", ago=SECOND)
    assert judged().status == "green"
    make(_name="late", ago=2 * MINUTE)
    found = judged()
    assert (found.status, checks(found.problems)) == ("red", ["late"])
    assert "no scheduler: late; the first for 1" in found.problems[0].message
    assert found.figures["schedules"]["late_names"] == ["late"]
    assert judged(late_after=600).status == "green"
    assert judged(role="worker").status == "green"


# -- jobs


def test_it_is_red_where_jobs_wait_and_nobody_serves_their_queue() -> None:
    process("scheduler")
    process("worker", queues=["mail"])
    Job.objects.create(queue="reports", run_at=now() - 2 * MINUTE)
    found = judged()
    assert (found.status, checks(found.warnings)) == ("green", ["workers"])
    Job.objects.create(queue="reports", run_at=now() - HOUR, priority=-1)
    assert checks(judged().problems) == ["unserved"]
    Queue.objects.create(name="reports", paused=True)
    assert (judged().status, judged().warnings) == ("green", [])
    Queue.objects.all().resume()
    process("worker")
    found = judged()
    assert (found.status, checks(found.warnings)) == ("green", ["waiting"])
    assert judged(longest_wait=7200).warnings == []


def test_a_role_of_which_none_lives_is_red() -> None:
    process("scheduler")
    process("worker", ago=MINUTE)
    assert checks(judged(role="worker").problems) == ["workers"]
    assert judged(role="scheduler").status == "green"


def test_what_is_told_without_turning_it_red() -> None:
    process("scheduler", stats={"clock": time.time() - 30})
    make(_name="aside", ago=-HOUR)
    Schedule.objects.filter(name="aside").update(error="no such zone")
    Alert.objects.create(schedule_name="failing", kind="failing", job_key="failing@…")
    Job.objects.create(target="celery", run_at=now() + SECOND, enqueued_at=now() - HOUR, attempt=9)
    found = judged()
    assert (found.status, checks(found.warnings)) == ("green", ["clock", "failing", "handover", "set_aside"])
    assert "set aside with an error: aside" in [each.message for each in found.warnings]
    assert "failing: failing" in [each.message for each in found.warnings]


def test_a_snapshot_that_is_held_open_is_told(
    other_session: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    process("scheduler")
    with other_session.transaction():
        other_session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other_session.execute("SELECT 1")
        pid = other_session.info.backend_pid
        held = judged()
        assert f"session {pid} of " in held.figures["snapshot"]["holder"]
        assert held.warnings == []
        monkeypatch.setattr(health, "LONGEST_SNAPSHOT", -1)
        (warning,) = judged().warnings
        assert (warning.check, f"session {pid} of " in warning.message) == ("snapshot", True)
    assert judged().figures["snapshot"] == {"holder": "", "seconds": None, "transactions": 0}


# -- of this host alone


def test_here_another_hosts_death_is_no_matter() -> None:
    process("scheduler", host="elsewhere", ago=HOUR)
    process("scheduler")
    assert health.judge_here(using="default").status == "green"
    assert health.judge_here(using="default", role="scheduler").status == "green"
    found = health.judge_here(using="default", role="worker")
    assert (found.status, checks(found.problems)) == ("red", ["processes"])


def test_here_a_successor_makes_up_for_one_that_was_killed() -> None:
    process("worker", ago=2 * MINUTE, pid=7)
    found = health.judge_here(using="default")
    assert "worker" in found.problems[0].message
    process("worker", pid=8)
    assert health.judge_here(using="default").status == "green"
    assert health.judge_here(using="default", pid=8).status == "green"
    assert health.judge_here(using="default", pid=7).status == "red"


def test_here_a_scheduler_must_tick() -> None:
    process("scheduler", tick=HOUR)
    assert health.judge_here(using="default").status == "red"


# -- the command


def probe(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    code = 0
    try:
        call_command("schedules", "health", *options)
    except SystemExit as left:
        code = int(left.code or 0)
    return code, capsys.readouterr().out


def test_the_exit_code_and_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = probe(capsys)
    assert code == 1
    assert text.splitlines()[:2] == [
        "red",
        "problem\tticks\tno scheduler has finished a tick within 3 polls and its heartbeat: none has said that it lives",
    ]
    process("scheduler")
    code, text = probe(capsys)
    assert (code, text.splitlines()[0]) == (0, "green")
    assert "schedulers.ticking\t1" in text.splitlines()
    assert probe(capsys, "--here", "--role=scheduler")[0] == 0
    assert probe(capsys, "--here", "--role=worker")[0] == 1
    assert probe(capsys, "--pid=1")[0] == 0
    make(_name="x", ago=HOUR)
    assert probe(capsys)[0] == 1
    assert probe(capsys, "--late-after=86400")[0] == 0


def test_it_is_red_while_last_runs_lie_ahead_of_the_clock() -> None:
    """PostgreSQL's clock was ahead for a moment: nothing is late, and nothing runs."""
    process("scheduler")
    process("worker")
    for number in range(7):
        make(_name=f"s{number}", ago=-HOUR)
    make(_name="well", ago=-MINUTE)
    Schedule.objects.filter(name="well").update(last_run_at=now() + SECOND)  # a small step is nobody's business
    assert judged().status == "green"
    Schedule.objects.exclude(name="well").update(last_run_at=now() + HOUR, next_run_at=now() + 2 * HOUR)
    found = judged()
    assert (found.status, checks(found.problems)) == ("red", ["ahead"])
    assert "s0, s1, s2, s3, s4 and 2 more" in found.problems[0].message
    assert found.figures["schedules"]["ahead"] == 7
    assert checks(judged(role="worker").problems) == []
    Schedule.objects.all().pause()
    assert judged().status == "green"
    Schedule.objects.all().resume()
    assert judged().status == "green"


@pytest.mark.parametrize("role", ["scheduler", "worker"])
def test_a_heartbeat_that_lies_ahead_is_no_sign_of_life(role: str) -> None:
    """A process that died while the clock was ahead would live until then."""
    process("scheduler")
    process("worker")
    Process.objects.filter(role=role).update(heartbeat_at=now() + HOUR, last_tick_at=now() + HOUR)
    found = judged(role=role)
    assert found.status == "red"
    assert checks(found.warnings)[-1] == "silent"
    assert health.judge_here(using="default", role=role).status == "red"
    assert Process.objects.all().delete_dead() == 1
    assert not Process.objects.filter(role=role).exists()


SCHEMA = {
    "status": str,
    "problems": list,
    "warnings": list,
    "figures": {
        "checked_at": str,
        "schedulers": {"alive": int, "ticking": int, "tick_age": float},
        "workers": {"alive": int},
        "schedules": {
            "late": int,
            "late_names": list,
            "late_age": float,
            "oldest_due_age": float,
            "set_aside": int,
            "set_aside_names": list,
            "failing": int,
            "failing_names": list,
            "ahead": int,
            "ahead_names": list,
        },
        "jobs": {"waiting": int, "running": int},
        "queues": [{"name": str, "waiting": int, "oldest_age": float, "paused": bool, "workers": int}],
        "targets": [{"name": str, "waiting": int, "oldest_age": float}],
        "snapshot": {"holder": str, "seconds": float, "transactions": int},
        "clock_offset": float,
        "processes": [
            {
                "role": str,
                "host": str,
                "pid": int,
                "version": str,
                "queues": list,
                "age": float,
                "heartbeat_age": float,
                "tick_age": float,
                "poll": float,
                "clock_offset": float,
                "lives": bool,
                "works": bool,
            }
        ],
    },
}


def shape(value: Any, like: Any) -> Any:
    """`value` with types for values, as far as `like` goes."""
    if isinstance(like, dict):
        return {name: shape(each, like.get(name)) for name, each in value.items()}
    if isinstance(like, list):
        return [shape(each, like[0]) for each in value][:1]
    return float if like is float and isinstance(value, int | float) else type(value)


def test_the_json_has_the_same_keys_and_types_always(
    capsys: pytest.CaptureFixture[str], other_session: psycopg.Connection
) -> None:
    process("scheduler", queues=["a"])
    make(_name="x", ago=HOUR)
    Job.objects.create(run_at=now() - SECOND)
    Job.objects.create(target="celery", run_at=now() - SECOND)
    with other_session.transaction():
        other_session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other_session.execute("SELECT 1")
        code, text = probe(capsys, "--format=json")
    assert code == 1
    assert shape(json.loads(text), SCHEMA) == SCHEMA
    assert json.loads(text)["problems"][0]["check"] == "late"


def test_missing_tables_are_one_clear_line(other_session: psycopg.Connection) -> None:
    other_session.execute("ALTER TABLE _pgwerk_processes RENAME TO elsewhere")
    try:
        (problem,) = judged().problems
    finally:
        other_session.execute("ALTER TABLE elsewhere RENAME TO _pgwerk_processes")
    assert problem.check == "database"
    assert problem.message.startswith("the table _pgwerk_processes is missing: another version")


def test_a_database_that_does_not_answer_is_red(
    other_session: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "ANSWERS_WITHIN", 0.2)
    with other_session.transaction():
        other_session.execute("LOCK TABLE _pgwerk_schedules")
        (problem,) = judged().problems
    assert problem.message == "it did not answer within 0.2 s"


@pytest.mark.parametrize("bad", ["--late-after=soon", "--pid=0", "--role=beat"])
def test_options_that_are_refused(bad: str) -> None:
    with pytest.raises(CommandError):
        call_command("schedules", "health", bad)


PAGE = (Path(__file__).parent.parent / "docs" / "how-to" / "monitoring.md").read_text()


def test_the_probes_of_the_manual_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    process("scheduler")
    process("worker")
    as_lists = re.findall(r'"schedules", "health"((?:, "--[^"]+")*)\]', PAGE)
    in_lines = re.findall(r"`(?:manage\.py )?schedules health((?: --[\w=-]+)*)`", PAGE)
    told = [re.findall(r"--[\w=-]+", options) for options in (*as_lists, *in_lines)]
    assert ["--here", "--role=scheduler"] in told
    assert [] in told
    for options in told:
        assert probe(capsys, *options)[0] == 0, options


def test_the_manual_names_each_finding_and_each_alert() -> None:
    source = (Path(health.__file__)).read_text()
    for check in {*re.findall(r'Finding\(\s*"(\w+)"', source)} - {"processes"}:
        assert f"`{check}`" in PAGE, check
    assert 'Finding("late"' in source
    rows = dict(re.findall(r"^\| `(schedule_\w+)` \| (.*?) \|", PAGE, re.MULTILINE))
    told: dict[str, set[str]] = {}
    for change in (
        alerts.Change(is_over, "x", kind, "key", "why", now(), now())
        for is_over, kind in ((False, "late"), (False, "missed"), (False, "failing"), (True, "late"))
    ):
        signal, event = alerts._event(change)
        (name,) = [name for name in rows if getattr(signals, name) is signal]
        told[name] = set(event)
    assert told == {name: set(re.findall(r"`(\w+)`", arguments)) for name, arguments in rows.items()}


# -- workers that live, but can run nothing


@pytest.mark.parametrize(
    ("stats", "status"),
    [
        ({"down_for": 5, "died": 3}, "green"),
        ({"down_for": 30, "died": 3}, "red"),
        ({"down_for": 30, "died": 0}, "green"),  # it starts slowly
        ({"down_for": 90, "died": 0}, "red"),
        ({"unanswered_for": 200}, "green"),
        ({"unanswered_for": 400}, "red"),
        ({"taken_for": 7200}, "green"),  # long jobs are no defect
        ({"down_for": "x", "died": None, "unanswered_for": [], "taken_for": {}, "places": -1}, "green"),
    ],
)
def test_a_worker_that_can_run_nothing_is_red(stats: dict[str, Any], status: str) -> None:
    process("scheduler")
    process("worker", stats=stats)
    here = health.judge_here(using="default", role="worker")
    assert (judged().status, here.status, judged(role="scheduler").status) == (status, status, "green")
    assert checks(judged().problems) == (["places"] if status == "red" else [])
    if status == "red":
        assert f"worker {socket.gethostname()}:1" in judged().problems[0].message
    process("worker")
    assert health.judge_here(using="default", role="worker").status == "green"  # one is enough


def test_when_all_places_are_taken_it_says_since_when() -> None:
    process("scheduler")
    process("worker", stats={"taken_for": 600, "places": 4})
    process("worker", stats={"taken_for": 700, "places": 2})
    Job.objects.create(run_at=now() - HOUR)
    found = judged()
    assert (found.status, checks(found.warnings)) == ("green", ["waiting"])
    assert "; all 6 places of its workers are taken, and no job has ended, for 60" in found.warnings[0].message
    Process.objects.filter(role="worker").update(stats={"taken_for": 7200, "places": 4})
    assert checks(judged().problems) == ["taken"]
    process("worker", queues=["other"])
    assert checks(judged().problems) == ["taken"]
    process("worker")  # of a version that does not say so
    assert (judged().status, "places" in judged().warnings[0].message) == ("green", False)


@pytest.mark.process
def test_processes_that_cannot_start_turn_it_red_and_spend_no_attempt(manage: Any, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif sys.argv[0].endswith('child.py'): sys.exit('no children here')\n"
    )
    worker = manage("runworker", "--concurrency=1", PYTHONPATH=str(tmp_path))
    job = Job.objects.create(function="tests.functions.noop")
    wait_until(lambda: Process.objects.filter(stats__died__gte=2).exists())
    assert worker.says("child_died")
    Process.objects.update(heartbeat_at=now() - 10 * SECOND)  # as if it had lasted for longer
    (problem,) = health.judge_here(using="default", role="worker").problems
    assert "died before they were up" in problem.message
    assert "exit code 1 before it was up: see what it printed" in worker.text()
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("READY", 0)


# -- jobs of newer code


def test_it_says_which_functions_no_worker_knows() -> None:
    process("scheduler")
    process("worker")
    for queue in ("default", "default", "reports"):
        Job.objects.create(function="shop.tasks.new", queue=queue, unknown_since=now() - MINUTE, run_at=now() + MINUTE)
    Job.objects.create(function="shop.tasks.newer", unknown_since=now())
    Job.objects.create(function="shop.tasks.old", unknown_since=now(), status="FAILED")
    found = judged()
    assert (found.status, checks(found.warnings)) == ("green", ["unknown", "unknown"])
    assert found.warnings[0].message.startswith("3 jobs wait for a worker that knows shop.tasks.new, for up to 6")
    assert found.warnings[1].message.startswith("1 job waits for a worker that knows shop.tasks.newer, ")


# -- what it costs


def test_the_figures_are_led_by_the_indexes() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO _pgwerk_schedules (name, interval, next_run_at, replan)
            SELECT 's' || n, 60, now() + interval '1 hour', false FROM generate_series(1, 5000) n;
            INSERT INTO _pgwerk_jobs (key, schedule_id, schedule_name, status, target, queue)
            SELECT name || '@' || m, id, name, CASE m WHEN 4 THEN 'READY' ELSE 'SUCCESSFUL' END,
                CASE WHEN id % 2 = 0 THEN 'celery' ELSE 'worker' END, 'q' || id % 5
            FROM _pgwerk_schedules, generate_series(1, 5) m;
            ANALYZE _pgwerk_schedules; ANALYZE _pgwerk_jobs;
            """
        )
    with CaptureQueriesContext(connection) as captured:
        found = judged()
    assert found.figures["jobs"]["waiting"] == 2500
    assert [target["waiting"] for target in found.figures["targets"]] == [2500]
    statements = [each["sql"] for each in captured if each["sql"].lstrip().startswith(("SELECT", "WITH"))]
    assert len(statements) == 6  # with the one that has them answer in time
    with connection.cursor() as cursor:
        plan = ""
        for statement in statements:
            cursor.execute(f"EXPLAIN {statement}")
            plan += "\n".join(line for (line,) in cursor.fetchall())
    for index in (
        "pgwerk_due",
        "pgwerk_set_aside",
        "pgwerk_claim",
        "pgwerk_outbox",
        "pgwerk_running",
        "pgwerk_unknown",
    ):
        assert index in plan, plan
    for table in ("_pgwerk_schedules", "_pgwerk_jobs"):
        assert f"Seq Scan on {table}" not in plan, plan


# -- real processes


def ends(one: Started) -> int:
    return one.process.wait(60)


def test_probes_of_real_processes(manage: Any) -> None:
    make(_name="x", interval=3600)
    both = [manage("runscheduler", "--on-unregistered=keep"), manage("runworker", "--concurrency=1")]
    wait_until(lambda: all(one.says("process_started") for one in both))
    wait_until(lambda: not judged().problems, 60)  # an idle scheduler is green
    for options in ([], ["--here", "--role=scheduler"], ["--role=worker"], [f"--pid={both[1].process.pid}"]):
        probed = manage("schedules", "health", *options)
        assert ends(probed) == 0, probed.text()
        assert probed.text().startswith("green\n")
    both[0].process.send_signal(signal.SIGKILL)
    wait_until(lambda: checks(judged().problems) == ["ticks"], 40)
    probed = manage("schedules", "health", "--format=json")
    assert ends(probed) == 1
    assert json.loads(probed.text())["status"] == "red"
    assert ends(manage("schedules", "health", "--here", "--role=worker")) == 0
    assert both[1].stop() == 0


def test_a_database_that_cannot_be_reached_is_one_clear_line(manage: Any) -> None:
    nowhere = "postgres://nobody@127.0.0.1:1/nowhere"
    probed, here = (manage("schedules", "health", *options, DATABASE_URL=nowhere) for options in ([], ["--here"]))
    assert (ends(probed), ends(here)) == (1, 0)
    first, second = probed.text().splitlines()
    assert (first, second.startswith("problem\tdatabase\tit cannot be reached: ")) == ("red", True)
    assert here.text().splitlines()[0] == "unknown"  # to restart it would bring no database back


@pytest.mark.parametrize("stats", ['{"poll": 1e5000, "clock": 1e5000}', '{"poll": "x", "clock": [1]}', "[1]", "null"])
def test_a_process_row_that_makes_no_sense_hides_no_other(stats: str) -> None:
    process("scheduler")
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO _pgwerk_processes (role, host, queues, stats) VALUES ('worker', 'x', %s, %s)", [stats, stats]
        )
    assert judged().status == "green"
    assert health.judge_here(using="default", role="scheduler").status == "green"


# A scheduler each of whose ticks is cancelled, as by `statement_timeout`.
TICKS_FAIL = """
import django
django.setup()
from django.db import OperationalError
from pgwerk_django import scheduler

def tick(**options):
    raise OperationalError("canceling statement due to statement timeout")

scheduler.tick = tick
scheduler.HEARTBEAT /= 10
scheduler.Scheduler(on_unregistered="keep").run()
"""


def test_a_scheduler_whose_ticks_fail_says_that_it_lives(start: Any) -> None:
    make(_name="x", ago=SECOND, _misfire_grace=3600)
    running = start("-c", TICKS_FAIL)
    wait_until(lambda: running.says("database_lost"))
    started = Process.objects.get().heartbeat_at
    wait_until(lambda: Process.objects.get().heartbeat_at > started)
    Process.objects.update(started_at=now() - HOUR)
    assert checks(judged().problems) == ["stuck", "ticks"]


def test_heartbeats_and_leases_are_kept_however_long_a_poll_is(manage: Any, notes: Any) -> None:
    Job.objects.create(function="tests.functions.wait_for_gate")
    worker = manage("runworker", "--concurrency=1", PGWERK_POLL="600", PGWERK_LEASE="6")
    wait_until(lambda: Job.objects.get().started_at, 60)
    beat = Process.objects.get().heartbeat_at
    lost: list[int] = []
    wait_until(lambda: lost.append(recover_lost(using="default")) or Process.objects.get().heartbeat_at > beat, 60)
    assert sum(lost) == 0
    (notes / "gate").touch()
    wait_until(lambda: Job.objects.get().status == "SUCCESSFUL")
    assert worker.stop() == 0
