"""The tutorial, done as a newcomer would: its commands in a shell, its files in a folder, its clicks over HTTP."""

import http.cookiejar
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.blocks import LOG_LINE, PATH, Block, blocks_of, check_log_line, check_other, console_steps, is_as_shown
from tests.processes import ROOT, database_url
from tests.waiting import wait_until

TUTORIAL = ROOT / "docs" / "tutorial.md"
DATABASE = f"tutorial_{os.getpid()}"  # where the reader has `mysite`
PASSWORD = "a good one"
PATIENCE = 120  # seconds, on a machine that is busy with other things


class Newcomer:
    """Somebody with an empty folder and a PostgreSQL."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        address = conninfo_to_dict(database_url())
        self._environment = {
            **os.environ,
            **{f"PG{key.upper()}": str(address[key]) for key in ("host", "port", "user", "password") if key in address},
            "PYTHONPATH": str(ROOT),  # instead of an installation
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SUPERUSER_PASSWORD": PASSWORD,
        }
        self._environment.pop("DJANGO_SETTINGS_MODULE", None)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]

    def close(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()

    def do(self, block: Block) -> None:
        getattr(self, f"_{block.language}")(block)

    def _python(self, block: Block) -> None:
        """A file: what stands in the settings is added at their end, as the page says."""
        named = PATH.match(block.text)
        assert named, f"{block} does not say which file it is"
        path, text = self._folder / named[1], block.text.replace('"mysite"}', f'"{DATABASE}"}}')
        path.write_text((path.read_text() if path.name == "settings.py" else "") + text)

    def _sh(self, block: Block) -> None:
        for line in block.text.splitlines():
            words = shlex.split(line)
            if words[0] == "createdb":
                assert words[1:] == ["mysite"]
            elif words[0] == "pip":
                check_other(words)
            elif words[:2] == ["python", "manage.py"] and words[2] in ("runserver", "runscheduler"):
                self._start(*words[2:])
            else:
                self._run(words + ["--noinput"] * ("createsuperuser" in words))

    def _console(self, block: Block) -> None:
        for command, expected in console_steps(block.text):
            said = self._run(shlex.split(command))
            assert is_as_shown(said, expected), f"{block}: {command}\nsays:\n{said}\nand not:\n{expected}"

    def _text(self, block: Block) -> None:
        """Lines of the log: such lines are in the log of what runs."""
        shown = list(LOG_LINE.finditer(block.text))
        assert shown, f"{block} shows nothing of the log"
        for line in shown:
            check_log_line(line[1], line["event"], re.findall(r"(\w+)=", line["words"]))
            wait_until(lambda line=line: f"{line[1]} {line['event']} " in self.log("runscheduler"), PATIENCE)  # type: ignore[misc]

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def _run(self, words: list[str]) -> str:
        words = [sys.executable, *words[1:]] if words[0] == "python" else [sys.executable, "-m", "django", *words[1:]]
        done = subprocess.run(
            words, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _start(self, name: str, *options: str) -> None:
        if name in self._running:  # Ctrl-C, and again
            self._running[name].send_signal(signal.SIGINT)
            assert self._running[name].wait(PATIENCE) == 0
        if name == "runserver":
            options = (*options, f"{self._port}", "--noreload")
        with (self._folder / f"{name}.log").open("w") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "manage.py", name, *options], cwd=self._folder, env=self._environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        if name == "runserver":
            self._pause_in_the_admin()
        else:
            wait_until(lambda: "job_finished" in self.log(name), PATIENCE)

    def _pause_in_the_admin(self) -> None:
        wait_until(self._server_answers, PATIENCE)
        cookies = http.cookiejar.CookieJar()
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(cookies))

        def get(path: str) -> str:
            with browser.open(f"http://127.0.0.1:{self._port}{path}") as page:
                return str(page.read().decode())

        def post(path: str, **fields: Any) -> str:
            token = next(cookie.value for cookie in cookies if cookie.name == "csrftoken")
            body = urllib.parse.urlencode({**fields, "csrfmiddlewaretoken": token}).encode()
            with browser.open(f"http://127.0.0.1:{self._port}{path}", body) as page:
                return str(page.read().decode())

        overview = "/admin/pgwerk_django/overview/"
        get(f"/admin/login/?next={overview}")
        page = post(f"/admin/login/?next={overview}", username="ada", password=PASSWORD)
        assert "shop.tasks.say_hello" in page, page
        schedules = "/admin/pgwerk_django/schedule/"
        row = re.search(r'name="_selected_action" value="(\d+)"', listed := get(schedules))
        assert row, listed
        assert "Pause selected schedules" in listed
        chosen = {"action": "pause", "_selected_action": row[1], "post": "yes", "reason": "enough for now"}
        assert "1 schedule was paused." in post(schedules, **chosen)
        page = get(f"{schedules}{row[1]}/change/")
        assert "ada" in page
        assert "enough for now" in page

    def _server_answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


@pytest.fixture
def newcomer(transactional_db: None, tmp_path: Path) -> Iterator[Newcomer]:
    def say(statement: str) -> None:
        with psycopg.connect(database_url(), autocommit=True) as server:
            server.execute(statement)

    say(f"CREATE DATABASE {DATABASE}")
    one = Newcomer(tmp_path)
    yield one
    one.close()
    say(f"DROP DATABASE {DATABASE} WITH (FORCE)")


def test_the_tutorial(newcomer: Newcomer) -> None:
    for block in blocks_of(TUTORIAL):
        newcomer.do(block)
    # What the last command asked for is done by what is still running.
    with psycopg.connect(database_url(), dbname=DATABASE, autocommit=True) as server:
        triggered = "SELECT result FROM _pgwerk_jobs WHERE schedule_name = 'hello.paris' AND kind = 'trigger' AND result IS NOT NULL"
        wait_until(lambda: server.execute(triggered).fetchone() == ("said hello to Paris",), PATIENCE)
        (paused,) = server.execute(
            "SELECT paused_by FROM _pgwerk_schedules WHERE name = 'shop.tasks.say_hello'"
        ).fetchall()
    assert paused == ("sync",)
