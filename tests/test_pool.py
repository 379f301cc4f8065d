"""A worker's processes as the worker sees them: how many there are, what each of them is given, and what is taken back."""

import os
from pathlib import Path
from typing import Any

import pytest

from pgwerk_django.cpus import usable_cpus
from pgwerk_django.jobs import resume_queue
from pgwerk_django.models import Job, Queue
from pgwerk_django.worker import Worker
from tests import functions
from tests.test_children import given, noted, working
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


# -- how many


@pytest.mark.parametrize(
    ("group", "files", "quota"),
    [
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/kube/pod", {"kube/cpu.max": "100000 100000", "kube/pod/cpu.max": "max 100000"}, 1),
        ("0::/of/the/host", {"cpu.max": "20000 100000"}, 1),
        ("4:cpu,cpuacct:/docker/x", {"cpu/cpu.cfs_quota_us": "60000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("4:memory:/", {"cpu.max": "50000 100000"}, None),
        ("0::/", {"cpu.max": "nonsense"}, None),
        ("0::/", {"cpu.max": "1000000000 100000"}, None),
        ("garbage", {}, None),
    ],
)
def test_the_quota_of_a_cgroup_counts(tmp_path: Path, group: str, files: dict[str, str], quota: int | None) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{group}\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert usable_cpus(tmp_path) == (quota or allowed)
    assert usable_cpus(tmp_path / "nowhere") == allowed


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux")
def test_only_allowed_cpus_count() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert (Worker().concurrency, Worker(concurrency=3).concurrency) == (1, 3)
    finally:
        os.sched_setaffinity(0, before)


# -- where

PATCHED = """
import sys, types
fake = types.ModuleType({module!r})
fake.{asked} = lambda name: name == "socket"
sys.modules[{module!r}] = fake
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", *{arguments!r}])
"""


@pytest.mark.parametrize(
    ("module", "asked", "arguments"),
    [
        ("gevent.monkey", "is_module_patched", ["runworker"]),
        ("eventlet.patcher", "is_monkey_patched", ["runscheduler", "--with-worker"]),
    ],
)
def test_a_process_with_green_threads_is_refused_at_start(
    start: Any, module: str, asked: str, arguments: list[str]
) -> None:
    refused = start("-c", PATCHED.format(module=module, asked=asked, arguments=arguments))
    assert refused.process.wait(60) == 1
    (line,) = refused.text().splitlines()
    package = module.partition(".")[0]
    assert line.startswith(f"CommandError: a worker must run in a process without {package}'s monkey patches")


def test_the_option_has_two_names(start: Any) -> None:
    shown = start("-m", "django", "runworker", "--help")
    assert shown.process.wait(60) == 0
    assert "--jobs-per-child" in shown.text()
    work = start("-m", "django", "runworker", "--burst", "--concurrency=1", "--jobs-per-child=2")
    assert work.process.wait(60) == 0
    assert "threads=2" in work.text()


# -- what each is given


@pytest.mark.process
def test_nothing_waits_behind_a_job_that_may_take_long() -> None:
    """Not even one that lets no other thread run, so that its process cannot give anything back."""
    for number in range(300):
        given(functions.noop, _key=f"so jobs are short {number}", _priority=2)
    with working(concurrency=2):
        wait_until(lambda: Job.objects.filter(status="SUCCESSFUL").count() == 300)
        first = Job(function="tests.functions.hold_the_gil", priority=1)
        Job.objects.bulk_create(
            [first, *(Job(function="tests.functions.noop", meta={"after": True}) for _ in range(100))]
        )
        noted("holding")
        wait_until(lambda: Job.objects.filter(meta={"after": True}, status="SUCCESSFUL").count() == 100)
        assert Job.objects.get(function=first.function).status == "RUNNING"


@pytest.mark.process
@pytest.mark.parametrize("queues", [[], ["b", "a"]])
def test_a_paused_queue_gets_back_what_has_not_started(
    settings: Any, monkeypatch: pytest.MonkeyPatch, queues: list[str]
) -> None:
    settings.PGWERK = {**settings.PGWERK, "POLL_INTERVAL": 0.1}
    monkeypatch.setattr("pgwerk_django.worker.LONGEST_AHEAD", 60)
    for number in range(200):
        given(functions.noop, _key=f"so jobs are short {number}", _queue="b")
    with working(queues=queues):
        wait_until(lambda: Job.objects.filter(status="SUCCESSFUL").count() == 200)
        Job.objects.bulk_create(
            [
                Job(function="tests.functions.wait_for_gate", queue="b", priority=2),
                *(Job(function="tests.functions.noop", queue="a", priority=1) for _ in range(50)),
                *(Job(function="tests.functions.noop", queue="b") for _ in range(50)),
            ]
        )
        noted("waiting")
        wait_until(lambda: Job.objects.filter(queue="a", status="RUNNING").exists())
        Queue.objects.create(name="a", paused=True)  # as plain SQL would
        wait_until(lambda: not Job.objects.filter(queue="a", status="RUNNING").exists())
        functions.gate.set()
        wait_until(lambda: Job.objects.filter(queue="b", status="SUCCESSFUL").count() == 251)
        assert Job.objects.filter(queue="a", status="READY", attempt=0).count() == 50
        resume_queue("a")
        wait_until(lambda: Job.objects.filter(queue="a", status="SUCCESSFUL", attempt=1).count() == 50)
