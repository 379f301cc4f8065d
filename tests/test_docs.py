"""The documentation is so: the site builds without a warning, what it names exists, and every block of code is run."""

import datetime as dt
import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pgwerk_django import signals, targets
from pgwerk_django.handover import hand_over
from pgwerk_django.models import Job
from pgwerk_django.recurrence import Cron
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.tick import tick
from tests.blocks import Block, Page, blocks_of, find
from tests.processes import ROOT
from tests.time_travel import make_due

DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
TUTORIAL = DOCS / "tutorial.md"  # done in `test_tutorial`, in a project of its own
NAMED = r"\b(tests/test_\w+\.py)(?:::(\w+))?"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def has_its_own_test(page: Path) -> bool:
    """Whether a module, `test_readme` or `test_docs_NAME`, tries the Python of this page, and sees to it that it tries all."""
    return page == README or (ROOT / "tests" / f"test_docs_{page.stem}.py").exists()


@pytest.mark.process
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "--quiet", "-b", "html", "docs", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    pages = {page: page.read_text() for page in tmp_path.rglob("*.html")}
    assert "pgwerk_django" in pages[tmp_path / "index.html"]
    for page, text in pages.items():  # whoever reads it needs no network, and is seen by nobody
        assert not re.search(r"<(script|img|iframe|source)[^>]+src=.https?:|<link[^>]+href=.https?:", text), page


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[Page]:
    """What is there to try a page in. Whatever the page registers or connects is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(targets, "TARGETS", dict(targets.TARGETS))
    receivers = {signal: list(signal.receivers) for signal in signals._LEVELS}
    trying = Page(tmp_path, lambda name, value: setattr(settings, name, value))
    yield trying
    trying.close()
    for signal, before in receivers.items():
        signal.receivers[:] = before
        signal.sender_receivers_cache.clear()


@pytest.mark.process
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", [page for page in PAGES if page != TUTORIAL and blocks_of(page)], ids=name_of)
def test_every_block_of(path: Path, page: Page) -> None:
    for block in blocks_of(path):
        if block.language != "python" or not has_its_own_test(path):
            page.try_(block)


# -- the trials themselves: what is wrong fails

WRONG = {
    "a language that nobody knows": ("brainfuck", "+"),
    "no language": ("", "x"),
    "an error": ("python", "1 / 0"),
    "a setting that there is not": ("python", "# mysite/settings.py\nPGWERK = {'LEES': 60}"),
    "a test that fails": (
        "python",
        "# test_it.py\ndef test_it():\n    assert False",
    ),
    "a test case that fails": (
        "python",
        "from django.test import TestCase\nclass T(TestCase):\n    def test_it(self):\n        self.fail()",
    ),
    "another answer": ("pycon", ">>> 1 + 1\n3"),
    "no example": ("pycon", "1 + 1"),
    "a command that there is not": ("sh", "python manage.py runschedulers"),
    "an option that there is not": ("sh", "python manage.py runworker --threds 2"),
    "a command that fails": ("sh", "python manage.py schedules pause shop.tasks.weekly_report"),
    "a program that nobody knows": ("sh", "frobnicate --now"),
    "an extra that there is not": ("sh", "pip install 'pgwerk-django[rabbitmq]'"),
    "a target that Makefile has not": ("sh", "make money"),
    "a module that there is not": ("sh", "python -m benchmarks.moon"),
    "another output": ("console", "$ python manage.py schedules next -n 1 shop.tasks.cleanup\nnever"),
    "a column that there is not": ("sql", "SELECT next_due FROM _pgwerk_schedules"),
    "a command in Compose": ("yaml", "services: {a: {command: [python, manage.py, runwork]}}"),
    "a line of a Procfile": ("yaml", "worker: python manage.py runworker --concurrency=two"),
    "half a document": ("yaml", "a: [b"),
    "a unit": ("ini", "[Service]\nExecStart=/venv/bin/python manage.py runworker --shutdown-timeout soon"),
    "a table": ("toml", "[a"),
    "a list": ("json", "[1,]"),
    "an instruction": ("dockerfile", "FROM python\nCOMMAND x"),
    "the command of an image": ("dockerfile", 'FROM python\nCMD ["python", "manage.py", "runserved"]'),
    "a line that needs a shell": ("crontab", "0 3 * * * manage.py check | mail ada"),
    "an event that there is not": ("text", "INFO job_vanished job=x"),
    "a value that an event has not": ("text", "INFO ticked schedules=1 hobbies=2"),
}


@pytest.mark.process
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("language", "text"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_fails(language: str, text: str, page: Page) -> None:
    with pytest.raises((Exception, SystemExit)):
        page.try_(Block("a page", 1, language, text))


def test_blocks_are_found_wherever_they_are() -> None:
    text = "1. x\n\n   ```sh\n   a\n   ```\n\n````{note}\n```python\nb\n```\n````\n\n```{eval-rst}\nc\n```\n\n~~~sql\nd\n~~~\n"
    assert [(block.line, block.language, block.text) for block in find(text, "a page")] == [
        (4, "sh", "a\n"),
        (9, "python", "b\n"),
        (18, "sql", "d\n"),
    ]


# -- what pages say beside their blocks


def test_each_test_that_is_named_is_there() -> None:
    named = {(path, *found) for path in PAGES for found in re.findall(NAMED, path.read_text())}
    assert named
    for path, file, test in named:
        source = (ROOT / file).read_text()
        assert not test or re.search(rf"^ *(async )?(def|class) {test}\b", source, re.MULTILINE), (
            f"{path}: {file}::{test}"
        )


def test_each_guarantee_has_its_proof() -> None:
    promises = re.findall(r"^### .*?(?=^##|\Z)", (DOCS / "guarantees.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(promises) >= 8
    for promise in promises:
        assert re.search(NAMED, promise), promise


# From 01:00 to 04:00 by the clocks of Paris: two hours in spring, four in autumn.
NIGHTS = [(dt.datetime(2026, 3, 29, 0, tzinfo=dt.UTC), 2), (dt.datetime(2026, 10, 24, 23, tzinfo=dt.UTC), 4)]


def test_the_table_of_changing_clocks() -> None:
    text = (DOCS / "concepts" / "time-zones.md").read_text()
    rows = re.findall(r"^\| `(.+?)` \| (.*?) ?\| (.*?) ?\|$", text, re.MULTILINE)
    assert len(rows) >= 7
    for expression, *days in rows:
        for (first, hours), shown in zip(NIGHTS, days, strict=True):
            due = Cron(expression, "Europe/Paris").upcoming(first - dt.timedelta(seconds=1), 50)
            last = first + dt.timedelta(hours=hours)
            assert " ".join(f"{each:%H:%M}" for each in due if each < last) == shown, (expression, first)


def test_diagrams_are_readable_in_light_and_dark() -> None:
    """On the page by the site's colours, elsewhere by their own: so they use no others."""
    styled = set(re.findall(r"\.diagram \.(\w+)", (DOCS / "_static" / "pgwerk.css").read_text()))
    for path in (DOCS / "diagrams").glob("*.svg"):
        text = path.read_text()
        tree = ElementTree.fromstring(text)
        used = {name for each in tree.iter() for name in each.get("class", "").split()}
        assert used <= styled, path
        assert "prefers-color-scheme: dark" in text


class _Service(http.server.BaseHTTPRequestHandler):
    """The service of the guide to writing a target."""

    asked: list[tuple[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.headers["Idempotency-Key"], body))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"id": "run 7"}')

    def log_message(self, *args: object) -> None: ...


@pytest.mark.django_db(transaction=True)
def test_the_target_of_the_guide_sends(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = blocks_of(DOCS / "how-to" / "targets.md")
    for block in blocks:
        page.try_(block)
    (row,) = Scheduler().list_schedules()
    with pytest.raises(ValueError, match="the target 'webhook' cannot try a job again"):
        Scheduler().update(row.name, max_attempts=3)
    make_due(row)
    tick(using="default")
    service = http.server.HTTPServer(("127.0.0.1", 0), type("Service", (_Service,), {"asked": (asked := [])}))
    thread = threading.Thread(target=service.serve_forever)
    thread.start()
    try:
        monkeypatch.setattr(targets.TARGETS["webhook"], "url", f"http://127.0.0.1:{service.server_port}/run")
        assert hand_over("here", using="default") == 1
    finally:
        service.shutdown()
        thread.join()
        service.server_close()
    job = Job.objects.get()
    assert asked == [(job.key, {"function": "reports.daily", "args": ["Paris"], "kwargs": {}, "timeout": 60})]
    assert (job.status, job.external_id) == ("FORWARDED", "run 7")
    page.names["on_callback"](job.key, {"pages": 3})
    job.refresh_from_db()
    assert (job.status, job.result) == ("SUCCESSFUL", {"pages": 3})
