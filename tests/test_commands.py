"""`manage.py schedules`, and options that are refused."""

import gc
import io
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models.signals import post_init
from django.test.utils import CaptureQueriesContext

from pgwerk_django import sync, targets
from pgwerk_django.models import Alert, Job, Queue, Schedule, State, Status
from pgwerk_django.registry import Registry, define
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.targets import ForeignTarget
from tests.time_travel import HOUR, SECOND, make, make_due, now, reread

pytestmark = pytest.mark.django_db(transaction=True)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    call_command(*words)
    return capsys.readouterr().out.splitlines()


def test_list(capsys: pytest.CaptureFixture[str], scheduler: Scheduler) -> None:
    make(cron="0 9 * * *", _timezone="Europe/Paris", _name="daily")
    make(interval=300, _name="often")
    scheduler.pause("often")
    scheduler.tick()
    lines = [line.split("\t") for line in run(capsys, "schedules", "list")]
    assert [line[:3] for line in lines] == [
        ["daily", "OK", "0 9 * * * (Europe/Paris)"],
        ["often", "PAUSED", "every 300 s"],
    ]


def ran(name: str, *statuses: Status) -> None:
    """Runs of a schedule, each due after what there is."""
    for status in statuses:
        due_at = now() - HOUR + Job.objects.count() * SECOND
        key = f"{name}@{due_at:%Y-%m-%dT%H:%M:%S.%fZ}"
        Job.objects.create(function="shop.run", schedule_name=name, due_at=due_at, key=key, status=status)


def states(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    return dict(line.split("\t")[:2] for line in run(capsys, "schedules", "list"))


def test_list_says_each_state(capsys: pytest.CaptureFixture[str], scheduler: Scheduler) -> None:
    for state in State.values:
        make(_name=state.lower())
        ran(state.lower(), Status.SUCCESSFUL)
    scheduler.tick()
    Schedule.objects.filter(name="error").update(error="unknown zone")
    Schedule.objects.filter(name="ended").update(next_run_at=None)
    Schedule.objects.filter(name="late").update(next_run_at=now() - HOUR)
    scheduler.pause("paused")
    ran("failing", Status.FAILED)
    assert states(capsys) == {state.lower(): state for state in State.values}


def test_list_says_failing_until_it_has_succeeded(capsys: pytest.CaptureFixture[str], scheduler: Scheduler) -> None:
    make(_name="one")
    scheduler.tick()
    ran("one", Status.SUCCESSFUL, Status.FAILED, Status.SKIPPED, Status.READY)
    assert states(capsys) == {"one": "FAILING"}
    scheduler.pause("one")
    assert states(capsys) == {"one": "PAUSED"}  # as the admin has it: why it does not run comes first
    scheduler.resume("one")
    ran("one", Status.SUCCESSFUL)
    assert states(capsys) == {"one": "OK"}


def test_list_asks_once_for_all_that_fail(capsys: pytest.CaptureFixture[str]) -> None:
    counts = []
    for number in range(3):
        make(_name=f"s{number}")
        ran(f"s{number}", Status.FAILED)
        with CaptureQueriesContext(connection) as captured:
            assert set(states(capsys).values()) == {"FAILING"}
        counts.append(len(captured))
    assert counts == counts[:1] * 3
    (asked,) = [query["sql"] for query in captured.captured_queries if "_pgwerk_jobs" in query["sql"]]
    with connection.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off")  # the table is so small
        cursor.execute("EXPLAIN " + asked.partition(";")[2])
        plan = " ".join(line for (line,) in cursor.fetchall())
        cursor.execute("RESET enable_seqscan")
    assert "pgwerk_failed" in plan
    assert "pgwerk_job_key" in plan


def test_next(capsys: pytest.CaptureFixture[str], scheduler: Scheduler) -> None:
    row = make(interval=300, _name="often")
    make(cron="0 9 * * *", _name="daily")
    scheduler.tick()
    expected = [row.created_at + n * 300 * SECOND for n in (1, 2, 3)]
    assert run(capsys, "schedules", "next", "often", "-n", "3") == [
        f"{at.isoformat(timespec='seconds')}\toften" for at in expected
    ]
    assert len(run(capsys, "schedules", "next")) == 10


def test_next_of_what_does_not_run(capsys: pytest.CaptureFixture[str], scheduler: Scheduler) -> None:
    make(interval=300, _name="often", _max_runs=2)
    scheduler.tick()
    assert len(run(capsys, "schedules", "next")) == 2
    scheduler.pause("often")
    assert run(capsys, "schedules", "next") == []


def test_pause_resume_trigger(capsys: pytest.CaptureFixture[str], scheduler: Scheduler) -> None:
    row = make(interval=300, _name="often")
    assert run(capsys, "schedules", "pause", "often", "--reason", "upgrade") == ["pause often"]
    paused = reread(row)
    assert (paused.paused, paused.pause_reason) == (True, "upgrade")
    assert paused.paused_by
    run(capsys, "schedules", "trigger", "often")
    scheduler.tick()
    assert Job.objects.get().kind == "trigger"
    run(capsys, "schedules", "resume", "often")
    assert not reread(row).paused


@pytest.mark.parametrize("verb", ["pause", "resume", "trigger", "next"])
def test_an_unknown_name_changes_nothing(verb: str) -> None:
    row = make(_name="known")
    with pytest.raises(CommandError, match="there is no schedule named 'nobody'"):
        call_command("schedules", verb, "known", "nobody")
    assert not reread(row).paused


@pytest.mark.parametrize(
    "words",
    [
        ("runscheduler", "--batch-size=0"),
        ("runscheduler", "--batch-size=many"),
        ("runscheduler", "--on-unregistered=drop"),
        ("runworker", "--concurrency=0"),
        ("runworker", "--queues="),
        ("runworker", "--queues=a,,b"),
        ("schedules", "next", "-n", "0"),
        ("syncschedules", "--format=xml"),
    ],
)
def test_bad_options_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(CommandError, match=words[-1].partition("=")[0].lstrip("-n ") or "-n"):
        call_command(*words)


@pytest.mark.process
def test_once_with_a_worker(capsys: pytest.CaptureFixture[str], scheduler: Scheduler) -> None:
    make_due(make("tests.functions.add", interval=3600, args=[1], _name="add"))
    call_command("runscheduler", "--once", "--with-worker", "--on-unregistered=keep")
    assert Job.objects.get().result == 1


@pytest.mark.process
@pytest.mark.parametrize("command", [("runscheduler", "--once", "--on-unregistered=keep"), ("runworker", "--burst")])
def test_what_returns_leaves_the_collector_of_its_caller_alone(command: tuple[str, ...]) -> None:
    frozen = gc.get_freeze_count()
    call_command(*command)
    assert gc.get_freeze_count() == frozen


@pytest.mark.process
def test_burst(capsys: pytest.CaptureFixture[str]) -> None:
    Job.objects.create(function="tests.functions.add", args=[1], queue="a")
    Job.objects.create(function="tests.functions.add", args=[1], queue="b")
    call_command("runworker", "--burst", "--queues=a, c")
    assert dict(Job.objects.values_list("queue", "status")) == {"a": "SUCCESSFUL", "b": "READY"}


def test_a_schedule_that_is_being_planned_shows_what_it_will_plan(scheduler: Scheduler) -> None:
    row: Any = make(interval=3600)
    assert row.replan
    assert row.upcoming(2, now()) == [row.created_at + HOUR, row.created_at + 2 * HOUR]
    assert Schedule.objects.get().upcoming(0, now()) == []


def test_list_shows_no_next_run_of_what_does_not_run(capsys: pytest.CaptureFixture[str], scheduler: Scheduler) -> None:
    make(interval=300, _name="paused")
    make(cron="0 0 30 2 1", _name="broken")
    scheduler.pause("paused")
    Schedule.objects.filter(name="broken").update(cron="never", next_run_at=now())
    lines = [line.split("\t") for line in run(capsys, "schedules", "list")]
    assert [(line[0], line[3], line[4]) for line in lines] == [("broken", "-", "-"), ("paused", "-", "-")]


def test_next_is_sorted_by_time(capsys: pytest.CaptureFixture[str], scheduler: Scheduler) -> None:
    make(interval=300, _name="b")
    make(interval=200, _name="c")
    scheduler.tick()
    lines = run(capsys, "schedules", "next", "-n", "2")
    assert [line.split("\t")[1] for line in lines] == ["c", "b", "c", "b"]
    assert lines == sorted(lines)


def test_a_user_without_a_name_may_pause(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def nameless() -> str:
        raise OSError("No username set in the environment")

    monkeypatch.setattr("getpass.getuser", nameless)
    row = make(_name="x")
    run(capsys, "schedules", "pause", "x")
    assert reread(row).paused_by.startswith("uid ")


def test_a_forgotten_migrate_is_one_clear_line() -> None:
    tables = [model._meta.db_table for model in apps.get_app_config("pgwerk_django").get_models()]
    with connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"ALTER TABLE {table} RENAME TO away{table}")
    try:
        for command in (("syncschedules",), ("schedules", "list"), ("runscheduler", "--once")):
            with pytest.raises(CommandError, match=r"^the tables are missing: run 'manage\.py migrate' first$"):
                call_command(*command)
    finally:
        with connection.cursor() as cursor:
            for table in tables:
                cursor.execute(f"ALTER TABLE away{table} RENAME TO {table}")


def test_once_tries_again_what_was_set_aside_and_keeps_house() -> None:
    row = make(cron="0 * * * *")
    Schedule.objects.filter(pk=row.pk).update(error="unknown zone", next_run_at=None)
    Job.objects.create(status="SUCCESSFUL", expires_at=now() - SECOND)
    call_command("runscheduler", "--once", "--on-unregistered=keep")
    assert reread(row).error == ""
    assert not Job.objects.exists()


def test_once_hands_over_and_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    class Fake(ForeignTarget):
        name = "apple"
        honours = frozenset()

        def function_problems(self, function: str) -> Iterator[str]:
            yield from ()

        def send(self, job: Job) -> str:
            sent.append(job.key)
            return "theirs"

    monkeypatch.setitem(targets.TARGETS, "apple", Fake())
    Job.objects.create(key="one", target="apple", function="a.b")
    row = make(interval=3600, _name="newer")
    Schedule.objects.filter(pk=row.pk).update(overlap="of newer code", next_run_at=now() - HOUR)
    call_command("runscheduler", "--once", "--on-unregistered=keep")
    assert sent == ["one"]
    assert Job.objects.get().status == "FORWARDED"
    assert list(Alert.objects.values_list("schedule_name", "kind")) == [("newer", "late")]


def test_queues(capsys: pytest.CaptureFixture[str]) -> None:
    Job.objects.create(queue="mail", function="tests.functions.noop")
    Job.objects.create(queue="mail", function="tests.functions.noop", run_at=now() + HOUR)
    make(_queue="nightly")
    run(capsys, "queues", "pause", "mail", "bank", "--reason", "they are down")
    run(capsys, "queues", "resume", "bank")
    lines = [line.split("\t") for line in run(capsys, "queues", "list")]
    assert [line[:4] for line in lines] == [
        ["bank", "OK", "0", "0"],
        ["mail", "PAUSED", "1", "0"],
        ["nightly", "OK", "0", "0"],
    ]
    assert lines[0][4] == "-"
    assert lines[1][4].endswith("+00:00")
    row = Queue.objects.get(name="mail")
    assert (row.pause_reason, bool(row.paused_by)) == ("they are down", True)
    with pytest.raises(CommandError, match="name must have 1 to 100 characters"):
        call_command("queues", "pause", "")


# -- a table that is larger than what a command may hold in memory ---------------------------------------------------

MANY, PAYLOAD = 5_000, 2_000  # rows, characters each
FEW = 6 * 2**20  # bytes: less than the payloads alone


@pytest.fixture
def many() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO _pgwerk_schedules (name, function, interval, args, meta, next_run_at, origin)"
            " SELECT 's' || n, 'tests.functions.remember', 3600, '[1]', jsonb_build_object('text', repeat('x', %s)),"
            " now() + interval '1 hour', 'api' FROM generate_series(1, %s) AS n",
            [PAYLOAD, MANY],
        )


@pytest.fixture
def loaded() -> Iterator[list[str]]:
    """Names of the schedules of which an instance is made."""
    names: list[str] = []

    def note(instance: Schedule, **event: Any) -> None:
        names.append(instance.name)

    post_init.connect(note, sender=Schedule)
    yield names
    post_init.disconnect(note, sender=Schedule)


@pytest.mark.parametrize("verb", ["pause", "resume", "trigger", "next", "export"])
def test_a_verb_loads_the_schedules_it_names_and_no_other(many: None, loaded: list[str], verb: str) -> None:
    call_command("schedules", verb, "s7", "s9", stdout=io.StringIO())
    assert sorted(set(loaded)) == ["s7", "s9"]
    assert len(loaded) <= 4


def test_an_unknown_name_loads_nothing_and_changes_nothing(many: None, loaded: list[str]) -> None:
    for name in ("nosuch", "a\0b", "\udce9"):
        with pytest.raises(CommandError, match="there is no schedule named"):
            call_command("schedules", "pause", "s7", name)
    assert loaded == []
    assert not Schedule.objects.filter(paused=True).exists()


@pytest.mark.parametrize(
    "words", [("schedules", "list"), ("schedules", "export"), ("schedules", "next", "-n", "1"), ("queues", "list")]
)
def test_what_goes_through_all_schedules_holds_few_of_them(many: None, tmp_path: Path, words: tuple[str, ...]) -> None:
    tracemalloc.start()
    try:
        with (tmp_path / "out").open("w") as out:
            call_command(*words, stdout=out)
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < FEW
    said = (tmp_path / "out").read_text()
    if "export" in words:
        assert [row["name"] for row in json.loads(said)["schedules"]] == sorted(f"s{n + 1}" for n in range(MANY))
    else:
        assert len(said.splitlines()) == (1 if "queues" in words else MANY)


def test_an_import_reads_unchanged_rows_together_and_locks_none(many: None, tmp_path: Path) -> None:
    source = tmp_path / "schedules.json"
    with source.open("w") as out:
        call_command("schedules", "export", *(f"s{n}" for n in range(1, 201)), stdout=out)
    with CaptureQueriesContext(connection) as queries:
        call_command("schedules", "import", str(source), stdout=io.StringIO())
    assert len(queries) < 10
    assert not any("FOR NO KEY UPDATE" in query["sql"] for query in queries)


def test_an_export_of_nothing_is_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    (line, *_rest) = [run(capsys, "schedules", "export")]
    assert json.loads("".join(line)) == {"format": "pgwerk_django", "version": 1, "schedules": []}


def test_a_sync_compares_rows_some_at_a_time(many: None) -> None:
    registry = Registry()
    for number in range(1, MANY + 1):
        options = {"interval": 3600, "_name": f"s{number}", "args": [1], "_meta": {"text": "x" * PAYLOAD}}
        registry.add(define("tests.functions.remember", options))
    Schedule.objects.filter(name="s5").update(args=[2])
    Schedule.objects.filter(name="s6").delete()
    Schedule.objects.update(origin="code", timezone="Europe/Paris")
    tracemalloc.start()
    try:
        found = sync.difference(registry, on_unregistered="pause", using="default")
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (found.inserted, list(found.updated), found.reconciled) == (["s6"], ["s5"], [])
    assert peak < 2 * FEW
