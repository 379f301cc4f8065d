"""What a module may do while Django imports it, and which modules `AUTODISCOVER` has it import."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import ROOT, database_url

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.process]

SETTINGS = """
from tests.settings import *
INSTALLED_APPS = [*INSTALLED_APPS, "shop", "thirdparty"]
PGWERK = {"AUTODISCOVER": %r}
"""
START = """
import sys, django
django.setup()
print(*sorted(name for name in sys.modules if name.split(".")[0] in ("shop", "thirdparty") and "." in name))
"""


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Start Django with these modules, and this `AUTODISCOVER`; prints which of them were imported."""
    for app in ("shop", "thirdparty"):
        (tmp_path / app).mkdir()
        (tmp_path / app / "__init__.py").touch()

    def _start(*autodiscover: str, **modules: str) -> subprocess.CompletedProcess[str]:
        for name, text in modules.items():
            (tmp_path / f"{name.replace('__', '/')}.py").write_text(text)
        (tmp_path / "site_settings.py").write_text(SETTINGS % (autodiscover,))
        paths = os.pathsep.join([str(tmp_path), str(ROOT)])
        own = {"PYTHONPATH": paths, "DJANGO_SETTINGS_MODULE": "site_settings", "DATABASE_URL": database_url()}
        return subprocess.run(
            [sys.executable, "-c", START], env={**os.environ, **own}, capture_output=True, text=True, timeout=60
        )

    return _start


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("Scheduler.cron()", "Scheduler().cron('* * * * *', 'os.getcwd')"),
        ("enqueue()", "enqueue('os.getcwd')"),
        ("pause_queue()", "pause_queue('mail')"),
    ],
)
def test_a_call_at_import_time_says_where_it_belongs(
    site: Callable[..., subprocess.CompletedProcess[str]], name: str, call: str
) -> None:
    text = (
        f"from pgwerk_django.scheduler import Scheduler\nfrom pgwerk_django.jobs import enqueue, pause_queue\n{call}\n"
    )
    done = site("tasks", shop__tasks=text)
    assert done.returncode == 1
    assert f"CalledTooEarly: {name} was called while Django starts" in done.stderr
    assert (
        "call it in a view, a command or a data migration; to declare a schedule when a module is imported, use @schedule"
        in done.stderr
    )


BROKEN = {"thirdparty__tasks": "import nosuchpackage\n", "shop__tasks": "", "shop__jobs": ""}


def test_a_module_that_fails_to_import_says_why_it_is_imported(
    site: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = site("tasks", "schedules", **BROKEN)
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named 'nosuchpackage'" in done.stderr
    assert "pgwerk_django imports thirdparty.tasks when Django starts, as PGWERK['AUTODISCOVER'] says" in done.stderr
    assert "add '-thirdparty.tasks' to that setting" in done.stderr


@pytest.mark.parametrize(
    ("autodiscover", "imported"),
    [
        (("tasks", "-thirdparty"), "shop.tasks"),
        (("tasks", "-thirdparty.tasks"), "shop.tasks"),
        (("shop.jobs",), "shop.jobs"),
        (("shop.jobs", "tasks", "-thirdparty", "-shop.tasks"), "shop.jobs"),
        ((), ""),
    ],
)
def test_one_module_may_be_named_or_left_out(
    site: Callable[..., subprocess.CompletedProcess[str]], autodiscover: tuple[str, ...], imported: str
) -> None:
    done = site(*autodiscover, **BROKEN)
    assert (done.stdout.strip(), done.returncode) == (imported, 0), done.stderr


def test_a_module_that_is_named_and_is_not_there_fails_loudly(
    site: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = site("shop.nosuch")
    assert "No module named 'shop.nosuch'" in done.stderr
    assert "PGWERK['AUTODISCOVER']" in done.stderr
