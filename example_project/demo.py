"""`make demo`: the shop's web server, scheduler and worker in one terminal, on a PostgreSQL of their own.

This process owns the server, the three get its address as DATABASE_URL, and nothing outlives it: not even its SIGKILL.
"""

import argparse
import contextlib
import hashlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import environ

from example_project.embedded import EmbeddedError, EmbeddedPostgres
from pgwerk_django.loop import hearing

ROOT = Path(__file__).resolve().parent.parent
FIRST_MIGRATION = ROOT / "pgwerk_django" / "migrations" / "0001_initial.py"
PATIENCE = 30.0  # seconds that the three get to stop by themselves
COLOURS = {"web": 36, "scheduler": 33, "worker": 32}


class DemoError(Exception):
    """The demo cannot run; the message is one line for a person."""


def main() -> int:
    options = parse_options()
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    # Until the three run, a signal unwinds the stack; `supervise` has its own way.
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    try:
        check_port(options.port)
        with database(options.data) as hints:
            prepare_database()
            return supervise(commands(options.port), options.port, hints)
    except (DemoError, EmbeddedError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    except Exception:
        if interrupted.is_set():
            return 0  # amid a COMMIT, what comes of the interrupt is another error
        raise


def parse_options() -> argparse.Namespace:
    environ.Env.read_env(ROOT / ".env")
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--port", type=int, default=os.environ.get("PORT", "8000"), help="of the web server (8000)")
    parser.add_argument("--data", type=Path, default=ROOT / ".data", help="the folder of the embedded PostgreSQL")
    return parser.parse_args()


def check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise DemoError(f"port {port} cannot be used ({error}): try make demo PORT=8001") from None


# The database


@contextlib.contextmanager
def database(folder: Path) -> Iterator[Sequence[str]]:
    """Have DATABASE_URL set: as it is given, or to an embedded server for the time being; how others find that one."""
    if os.environ.get("DATABASE_URL"):
        say("using the database in DATABASE_URL")
        yield ()
        return
    try:
        check_age(folder)
    except OSError as error:
        raise DemoError(f"cannot use {folder} for the data: {error}") from None
    say(f"starting PostgreSQL (data in {folder})")
    with EmbeddedPostgres(folder) as server:
        os.environ["DATABASE_URL"] = server.url
        command = f"{os.path.relpath(sys.executable)} example_project/manage.py schedules list"
        yield ("  In another terminal:", f"    DATABASE_URL={server.url} \\", f"    {command}")


def check_age(folder: Path) -> None:
    """Until the first release 0001 still changes, and a database made by another one cannot be migrated."""
    mark, current = folder / "0001.sha256", hashlib.sha256(FIRST_MIGRATION.read_bytes()).hexdigest()
    if not (folder / "data").exists():
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(current)
    elif not mark.exists() or mark.read_text() != current:
        raise DemoError(f"the data is of an older 0001 migration: delete the folder {folder} and start again")


def prepare_database() -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "example_project.settings"
    check_settings()
    import django
    from django.core.management import call_command
    from django.db import connections

    django.setup()
    check_connection()
    say("migrating, and filling the shop")
    call_command("migrate", verbosity=0)
    call_command("seed_demo")
    connections.close_all()


def check_settings() -> None:
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured

    try:
        engine = settings.DATABASES["default"].get("ENGINE", "")
    except (ImproperlyConfigured, ValueError) as error:
        raise DemoError(f"DATABASE_URL cannot be read: {error}") from None
    if not engine.endswith(("postgresql", "postgis")):
        raise DemoError(f"DATABASE_URL must be the address of a PostgreSQL (postgres://…), got {engine or 'none'}")


def check_connection() -> None:
    from django.db import Error, connection

    connection.settings_dict["OPTIONS"].setdefault("connect_timeout", 5)
    try:
        connection.ensure_connection()
    except Error as error:
        raise DemoError(f"the database in DATABASE_URL cannot be used: {str(error).splitlines()[0]}") from None


# The three processes


def commands(port: int) -> dict[str, list[str]]:
    manage = [sys.executable, str(ROOT / "example_project" / "manage.py")]
    return {
        "web": [*manage, "runserver", "--noreload", f"127.0.0.1:{port}"],
        "scheduler": [*manage, "runscheduler"],
        "worker": [*manage, "runworker", "--queues", "default,reports"],
    }


def supervise(commands: dict[str, list[str]], port: int, hints: Sequence[str] = ()) -> int:
    """Run until somebody asks us to stop (0) or one of the processes ends by itself (1)."""
    events: queue.Queue[str] = queue.Queue()
    with hearing(signal.SIGINT, signal.SIGTERM, tell=lambda number: events.put("stop")), guard() as watch:
        children = {name: Child(name, command, events, watch) for name, command in commands.items()}
        threading.Thread(target=announce, args=(port, hints), daemon=True).start()
        first = events.get()
        if first != "stop":
            say(f"the {first} ended by itself ({children[first].outcome()}): stopping the others")
        else:
            say("stopping")
        stop(list(children.values()), events)
    failed = [child for child in children.values() if child.name != first and not child.ended_well()]
    for child in failed:
        say(f"the {child.name} ended badly: {child.outcome()}")
    return 1 if failed or first != "stop" else 0


class Child:
    """A process whose lines are printed under its name. It puts its name into `events` when it has ended."""

    def __init__(self, name: str, command: list[str], events: "queue.Queue[str]", watch: Callable[[int], None]) -> None:
        self.name = name
        self.events = events
        # In a session of its own: the terminal's Ctrl-C reaches us alone, and each child hears of it once.
        self.process = subprocess.Popen(  # noqa: S603  our own command
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "DJANGO_RUNSERVER_HIDE_WARNING": "true"},
        )
        watch(self.process.pid)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        for line in self.process.stdout or ():
            say(line.rstrip(), self.name)
        self.process.wait()
        self.events.put(self.name)

    def outcome(self) -> str:
        code = self.process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def ended_well(self) -> bool:
        # The web server has no work to finish, and lets the signal end it.
        return self.process.wait() in (0, -signal.SIGTERM)


def stop(children: list[Child], events: "queue.Queue[str]") -> None:
    """Ask each once, and wait; kill what is left when patience runs out, or the person's does (a later Ctrl-C)."""
    for child in children:
        child.process.terminate()
    asked = time.monotonic()
    while any(child.process.poll() is None for child in children):
        if is_impatient(asked, events):
            for child in children:
                child.process.kill()


def is_impatient(asked: float, events: "queue.Queue[str]") -> bool:
    try:
        event = events.get(timeout=max(0, asked + PATIENCE - time.monotonic()))
    except queue.Empty:
        return True
    # The same request may come twice at once, as from `timeout`, which signals the process and then its group.
    return event == "stop" and time.monotonic() - asked > 1


@contextlib.contextmanager
def guard() -> Iterator[Callable[[int], None]]:
    """Should we be killed, a pipe closes, and a shell at its other end ends the processes that it was told to watch."""
    body = 'pids=; while read -r pid; do [ "$pid" = over ] && exit; pids="$pids $pid"; done; kill -TERM $pids'
    watching = subprocess.Popen(  # noqa: S603  our own command
        ["/bin/sh", "-c", body], stdin=subprocess.PIPE, start_new_session=True, text=True
    )

    def tell(word: object) -> None:
        if watching.stdin is not None:
            watching.stdin.write(f"{word}\n")
            watching.stdin.flush()

    try:
        yield tell
    finally:
        with contextlib.suppress(BrokenPipeError):  # somebody has killed it
            tell("over")
        watching.wait()


# What the person sees


def announce(port: int, hints: Sequence[str]) -> None:
    while not is_open(port):
        threading.Event().wait(0.1)
    rule = "=" * 64
    address = f"http://127.0.0.1:{port}/admin/"
    for line in (
        "",
        rule,
        f"  {address}",
        "  user admin, password admin",
        *hints,
        "  Ctrl-C stops everything; the data stays",
        rule,
        "",
    ):
        say(line)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def say(line: str, name: str = "demo") -> None:
    prefix = f"{name:<9} | "
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        prefix = f"\033[{COLOURS.get(name, 1)}m{prefix}\033[0m"
    # One write for the whole line: the threads share the terminal.
    sys.stdout.write(f"{prefix}{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
