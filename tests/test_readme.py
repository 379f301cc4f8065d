"""What the README says is so: its code runs, its tables are complete, its commands exist."""

import inspect
import re
import sys
import types
import unittest
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands, load_command_class
from django.test import TestCase

from pgwerk_django import conf, registry, signals, targets
from pgwerk_django.jobs import enqueue
from pgwerk_django.models import Job
from pgwerk_django.registry import Definition
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.test import run_jobs
from pgwerk_django.worker import Worker
from tests import django_tasks, functions
from tests.blocks import blocks_of
from tests.processes import ROOT
from tests.time_travel import SECOND, make_due

README = (ROOT / "README.md").read_text()
BLOCKS = [block.text for block in blocks_of(ROOT / "README.md") if block.language == "python"]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """Where the code of a block lives: importable, so that a worker's processes find its functions."""
    monkeypatch.syspath_prepend(tmp_path)
    made = types.ModuleType("readme_tasks")
    made.__file__ = str(tmp_path / "readme_tasks.py")
    sys.modules["readme_tasks"] = made
    yield made
    del sys.modules["readme_tasks"]


def execute(containing: str, module: types.ModuleType) -> dict[str, Any]:
    (block,) = [block for block in BLOCKS if containing in block]
    # What runs at once here is not to run again there.
    functions = block.split("\n\n\nenqueue(")[0]
    Path(module.__file__ or "").write_text(functions)
    exec(compile(block, "README.md", "exec"), module.__dict__)
    return module.__dict__


def test_every_block_is_run_by_a_test_here() -> None:
    tried = (
        "daily_report(): ...",
        "say_hello",
        "poll_feed",
        "send_receipt",
        "PGWERK =",
        "ReportTest",
        "tell_the_team",
        "rebuild_index",
        "TASKS =",
        "send_reminders",
    )
    for block in BLOCKS:
        assert [text for text in tried if text in block], block


def test_the_first_example(module: types.ModuleType) -> None:
    execute("daily_report(): ...", module)
    assert [(d.name, d.cron, d.interval) for d in registry.registry] == [
        ("readme_tasks.cleanup", "", 300),
        ("readme_tasks.daily_report", "0 9 * * *", None),
    ]


@pytest.mark.process
@pytest.mark.django_db(transaction=True)
def test_the_first_schedule_runs(module: types.ModuleType) -> None:
    execute("say_hello", module)
    scheduler = Scheduler()
    scheduler.sync()
    (row,) = scheduler.list_schedules()
    assert row.next_run_at == row.created_at + 10 * SECOND
    make_due(row)
    scheduler.tick()
    Worker(burst=True).run()
    assert Job.objects.get().result == "said hello"


@pytest.mark.django_db(transaction=True)
def test_the_run_time_example(module: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    execute("poll_feed", module)
    assert "('new-year', " in capsys.readouterr().out
    names = [row.name for row in Scheduler().list_schedules()]
    assert names == ["daily-from-then", "feed-41", "feed-42", "shop.tasks.sync_data"]


@pytest.mark.process
@pytest.mark.django_db(transaction=True)
def test_the_ad_hoc_example(module: types.ModuleType) -> None:
    execute("send_receipt", module)
    job = Job.objects.get(key="receipt-17")
    assert job.run_at == job.enqueued_at + 60 * SECOND
    Job.objects.update(run_at=job.enqueued_at)
    Worker(burst=True).run()
    assert Job.objects.get().result == "receipt for order 17, attempt 1"


@pytest.mark.process
@pytest.mark.django_db(transaction=True)
def test_the_progress_example(module: types.ModuleType) -> None:
    enqueue(execute("rebuild_index", module)["rebuild_index"], 3)
    Worker(burst=True, concurrency=1).run()
    job = Job.objects.get()
    assert (job.result, job.progress) == (3, {"done": 2, "total": 3, "note": "indexing"})


def test_the_targets_example(module: types.ModuleType) -> None:
    from tests import celery_app  # noqa: F401  the project's app

    execute("send_reminders", module)
    (definition,) = registry.registry
    resolved = targets.resolved(definition)
    assert (resolved.target, list(targets.get("celery").problems(resolved))) == ("celery", [])


def test_the_targets_table_is_true() -> None:
    for row in rows_under("Who runs the jobs"):
        name, kept = row[1].strip("`").removeprefix('_target="').rstrip('"'), row[4]
        missing = targets.DEMANDS.keys() - targets.get(name).honours
        if "all" in kept:
            assert not missing
            assert targets.get(name).tells_the_end == ("SKIP" not in kept)
        else:
            assert missing == {column for column in targets.DEMANDS if f"`_{column}`" not in kept}


@pytest.mark.django_db
def test_the_tasks_example(module: types.ModuleType, settings: Any) -> None:
    settings.TASKS = execute("TASKS =", module)["TASKS"]
    task = django_tasks.ours.using(backend="default", queue_name="any")
    assert task.get_backend().check() == []
    result = task.enqueue(1)
    (job,) = run_jobs()
    result.refresh()
    assert (result.return_value, job.max_attempts, job.timeout) == ([[1], {}], 3, 60)


SHOP = """
from pgwerk_django.jobs import enqueue

def daily_report():
    enqueue(send_mail, "ada")
    return "made"

def send_mail(to): ...
"""


@pytest.mark.django_db(transaction=True)
def test_the_testing_example(module: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("shop", "shop.tasks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    tasks = sys.modules["shop.tasks"].__dict__
    exec(SHOP, tasks)
    registry.schedule(tasks["daily_report"], cron="0 9 * * *", _timezone="Europe/Paris")
    registry.schedule(functions.fail, interval=300)
    case: type[TestCase] = execute("ReportTest", module)["ReportTest"]
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert result.testsRun == 1
    assert result.wasSuccessful(), [*result.errors, *result.failures]
    assert not Job.objects.exists()


@pytest.mark.process
@pytest.mark.django_db(transaction=True)
def test_the_signal_example(module: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    receiver = execute("tell_the_team", module)["tell_the_team"]
    try:
        Job.objects.create(function="tests.functions.fail", schedule_name="report")
        Worker(burst=True).run()
    finally:
        assert signals.job_failed.disconnect(receiver)
    assert capsys.readouterr().out == "report failed: ValueError: no luck\n"


def test_the_settings_example(module: types.ModuleType, settings: Any) -> None:
    settings.PGWERK = execute("PGWERK =", module)["PGWERK"]
    assert conf.problems() == []


def rows_under(heading: str) -> list[list[str]]:
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_the_settings_table_is_complete_and_true() -> None:
    table = {row[0].strip("`"): row[1].strip("`") for row in rows_under("Settings")}
    assert table == {
        field.name: str(field.default).replace("'", '"') if not isinstance(field.default, str) else f'"{field.default}"'
        for field in fields(conf.Conf)
    }


def test_the_options_table_is_complete() -> None:
    named = {name.strip(" `") for row in rows_under("Declaring") for name in row[0].split(",")}
    assert named == registry.OPTIONS


def test_the_defaults_in_the_options_table() -> None:
    defaults = {field.name: field.default for field in fields(Definition)}
    for row in rows_under("Declaring"):
        option, default = row[0].strip("`").removeprefix("_"), row[1].strip('`"')
        if option in ("queue", "overlap", "misfire", "misfire_grace", "jitter", "priority", "target"):
            assert str(defaults[option]) == default


def test_the_commands_and_their_options_exist() -> None:
    ours = {name for name, app in get_commands().items() if app == "pgwerk_django"}
    rows = rows_under("Commands")
    assert {row[0].strip("`").split()[0] for row in rows} == ours
    for row in rows:
        name = row[0].strip("`").split()[0]
        parser = load_command_class("pgwerk_django", name).create_parser("manage.py", name)
        for option in re.findall(r"--[a-z-]+", row[0]):
            assert option in parser._option_string_actions, (name, option)


def test_the_manuals_methods_are_all_here() -> None:
    for name in re.findall(r"scheduler\.(\w+)\(", README):
        assert inspect.isfunction(getattr(Scheduler, name)), name
