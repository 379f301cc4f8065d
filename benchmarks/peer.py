"""Other libraries: each in an environment of its own below `.venv-peers/`, installed when it is first asked for."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from django.db import connection

from benchmarks.processes import LONGEST, ROOT, Running, last_line, started

ENVIRONMENTS = ROOT / ".venv-peers"
NEWER_PYTHONS = ("python3.14", "python3.13", "python3.12")


class PeerFailed(Exception):
    """A peer could not be installed or did not finish; the message is one line."""


@dataclass(frozen=True)
class Needs:
    package: str
    requirements: tuple[str, ...]
    python: tuple[int, int] = (3, 11)


DRIVER = "psycopg[binary]"
NEEDS = {
    found.package: found
    for found in (
        Needs("apscheduler", ("apscheduler==4.0.0a6", "sqlalchemy<2.1", "sniffio", DRIVER)),
        Needs("chancy", ("chancy[cli,cron]", DRIVER)),
        Needs("django-celery-beat", ("django-celery-beat", "celery[redis]", DRIVER, "django-environ")),
        Needs(
            "django-scheduled-tasks", ("django-scheduled-tasks", "django-tasks-db", DRIVER, "django-environ"), (3, 12)
        ),
        Needs("django-tasks-db", ("django-tasks-db", "django-tasks", DRIVER, "django-environ")),
        Needs("pgqueuer", ("pgqueuer[asyncpg,psycopg]==1.6.0", DRIVER)),
        Needs("pgwerk", ("pgwerk[analytics]", DRIVER)),
        Needs("procrastinate", ("procrastinate", DRIVER)),
    )
}


class Environment:
    """Where a peer is installed, and how its programs are run there: `PeerFailed` is all that they raise."""

    def __init__(self, package: str, python: str | None = None) -> None:
        self.needs = NEEDS[package]
        self.version = ""
        self._python = python
        self._folder = ENVIRONMENTS / package

    @property
    def name(self) -> str:
        return f"{self.needs.package} {self.version}".strip()

    def install(self) -> None:
        """Once for a Python, a list of requirements and a place, as an environment that is moved has no commands any more.

        The stamp comes last, so what was interrupted is taken up again.
        """
        python = self._python or self._found_python()
        ready, wanted = self._folder / ".ready", f"{python}\n{self.needs.requirements}\n{self._folder}\n"
        if not ready.exists() or ready.read_text() != wanted:
            print(f"installing {self.needs.package} into {self._folder.relative_to(ROOT)}", file=sys.stderr, flush=True)
            _call([python, "-m", "venv", "--clear", str(self._folder)])
            pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
            self.run("python", *pip, *self.needs.requirements)
            ready.write_text(wanted)
        ask = f"import importlib.metadata as m; print(m.version({self.needs.package!r}))"
        self.version = self.run("python", "-c", ask).strip()

    def run(self, command: str, *arguments: str, **options: Any) -> str:
        return _call([self._bin(command), *arguments], **options)

    def started(
        self, command: str, *arguments: str, environment: Mapping[str, str]
    ) -> "contextlib.AbstractContextManager[Running]":
        return started([self._bin(command), *arguments], environment)

    def surroundings(self, url: str, **more: str) -> dict[str, str]:
        """Its own environment variables: our settings would be loaded by a peer's Django."""
        found = {**os.environ, "DATABASE_URL": url, "PYTHONPATH": str(ROOT), **more}
        found.pop("DJANGO_SETTINGS_MODULE", None)
        return found

    def _bin(self, command: str) -> str:
        return str(self._folder / "bin" / command)

    def _found_python(self) -> str:
        if sys.version_info[:2] >= self.needs.python:
            return sys.executable
        pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
        of_pyenv = [str(path) for name in NEWER_PYTHONS for path in sorted(pyenv.glob(f"*/bin/{name}"))]
        for path in [*filter(None, map(shutil.which, NEWER_PYTHONS)), *of_pyenv]:
            # A shim may name a version that is not there: what counts is whether it runs.
            if subprocess.run([path, "-c", "import ensurepip, venv"], capture_output=True).returncode == 0:
                return path
        raise PeerFailed(f"needs Python {'.'.join(map(str, self.needs.python))} or newer, and there is none here")


def _call(command: Sequence[str], **options: Any) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=LONGEST, **options)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerFailed(str(error)) from error
    if done.returncode:
        raise PeerFailed(_complaint(done.stderr))
    return done.stdout


def _complaint(said: str) -> str:
    """The last error line, else the last line: pip ends with a notice, not with what went wrong."""
    errors = [line for line in said.splitlines() if re.match(r"(ERROR|\w*Error)\b", line)]
    return (errors or [last_line(said)])[-1][:300]


@contextlib.contextmanager
def another_database() -> Iterator[str]:
    """A database on the same server, so that nothing of one run weighs on the next."""
    name = f"pgwerk_bench_peer_{os.getpid()}"
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        cursor.execute(f"CREATE DATABASE {name}")
    try:
        yield urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{name}").geturl()
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


def connect(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url, autocommit=True)
