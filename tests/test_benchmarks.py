"""The benchmarks run: each of ours in its smallest form, without peers. What they measure is nobody's promise here."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from django.db import connection

from benchmarks import report, scheduling
from benchmarks.__main__ import BENCHMARKS
from benchmarks.results import Given, Row
from tests.processes import ROOT, database_url

NEED_REDIS = {"targets"}


@pytest.fixture(scope="module")
def figures(django_db_setup: None, django_db_blocker: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """One run of all, on the test's server; it makes databases of its own there."""
    with django_db_blocker.unblock():
        if connection.pg_version < 150_000:
            pytest.skip("the benchmarks call pg_stat_force_next_flush(), which PostgreSQL has from 15 on")
    path = tmp_path_factory.mktemp("figures") / "figures.json"
    names = [name for name in BENCHMARKS if name not in NEED_REDIS or shutil.which("redis-server")]
    command = [sys.executable, "-m", "benchmarks", *names, "--tiny", "--no-peers", "--json", str(path)]
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**environment, "DATABASE_URL": database_url()},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())


def rows_of(figures, name):
    return [Row.from_json(row) for row in figures["benchmarks"][name]["rows"]]


def test_each_benchmark_answers_with_figures(figures):
    assert figures["failed"] == {}
    for name in figures["benchmarks"]:
        rows = rows_of(figures, name)
        assert rows, name
        for row in rows:
            assert math.isfinite(row.ours), row
            assert row.ours >= 0, row
            assert row.plain is None or row.plain > 0, row
    assert figures["benchmarks"].keys() | NEED_REDIS >= BENCHMARKS.keys()


def test_what_they_drain_is_what_was_due(figures):
    details = figures["details"]
    assert all(case["ours"]["schedules"] >= case["rows"] for case in details["tick"]["drains"])
    assert all(abs(sum(run["shares"]) - 1) < 1e-9 for runs in details["crowd"]["runs"].values() for run in runs)
    assert details["worker"]["traces"]["lost"] == details["worker"]["traces"]["twice"] == 0
    assert "pgwerk_due" in details["million"]["plan"]


def a_run(of, *, failed, started_at="2026-01-01T00:00:00+00:00"):
    machine = ("cpus", "machine", "postgresql", "fsync", "synchronous_commit", "commit_ms", "python", "django")
    return {
        "size": "tiny",
        "started_at": started_at,
        "seconds": 60,
        "machine": dict.fromkeys(machine, "x") | {"load_average": [0.5]},
        "benchmarks": {name: {"rows": [row.as_json()], "seconds": 1} for name, row in of.items()},
        "failed": failed,
        "details": {},
    }


def test_the_report_says_what_was_measured_and_what_was_not():
    row = Row("drain", "schedules/s", 400, 800, {"slow 1.0": 100, "away": "no such package"}, target="0.6", met=False)
    figures = a_run({"scheduling": row}, failed={"admin": "exit code 1"})
    table = report.tables(figures)
    assert (
        "| drain | 400 schedules/s | 800 (0.50) | slow 1.0: 100 (4.00 ×)<br>away: n/a, no such package | 0.6 ✗ |"
        in table
    )
    assert "`admin` failed: exit code 1" in table


def test_a_later_run_tells_what_it_measured_and_which_it_is():
    old, new = Row("drain", "schedules/s", 400), Row("drain", "schedules/s", 500)
    first = a_run({"tick": old, "scheduling": old}, failed={"admin": "exit code 1", "idle": "exit code 1"})
    later = a_run({"tick": new, "admin": new}, failed={}, started_at="2026-01-02T00:00:00+00:00")
    figures = report.together([first, later])
    table = report.tables(figures)
    assert [run["rows"][0]["ours"] for run in figures["benchmarks"].values()] == [500, 400, 500]
    assert table.count("From a run of its own: 2026-01-02") == 2
    assert list(figures["failed"]) == ["idle"]


@pytest.mark.process
def test_a_peer_that_cannot_be_installed_costs_only_its_own_figure():
    given = Given(peers_python="/nowhere/python")
    told = scheduling.peer_rate("pgwerk", given, due=1, patience=1)
    assert "rate" not in told
    assert "/nowhere/python" in told["why"]


def test_time_counts_the_other_way_round():
    late = Row("late", "ms", 2, 1, {"peer": 10}, more_is_better=False)
    assert late.ratios == {"plain SQL": 0.5, "peer": 5}


def test_the_documentation_has_its_markers():
    page = (Path(report.DOCS) / "benchmarks.md").read_text()
    assert page.count(report.BEGIN) == page.count(report.END) == 1
