"""Ways to the database other than the straight one: PgBouncer in transaction mode, and a proxy whose cable can be pulled."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from urllib.parse import urlsplit

from tests.waiting import wait_until


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def pgbouncer_program() -> str | None:
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


class Bouncer:
    """PgBouncer in transaction mode, in front of the server at `url`."""

    def __init__(self, url: str, log: Path) -> None:
        given = urlsplit(url)
        self._log = log
        self._folder = Path(tempfile.mkdtemp(prefix="pgwerk-bouncer-"))
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"postgres://anyone@127.0.0.1:{self._port}{given.path}"
        lines = [
            "[databases]",
            f"* = host={given.hostname} port={given.port} user={given.username} password={given.password}",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {self._port}",
            "unix_socket_dir =",
            "auth_type = any",
            "pool_mode = transaction",
            "default_pool_size = 3",
            "server_login_retry = 1",
        ]
        (self._folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        if os.geteuid() == 0:
            shutil.chown(self._folder, "nobody")

    def start(self) -> None:
        if self.alive:
            return
        program = pgbouncer_program()
        assert program is not None
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [program, "-q", *user, str(self._folder / "pgbouncer.ini")], stdout=log, stderr=subprocess.STDOUT
            )
        wait_until(self._listens)

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
            return True
        return False

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


class Proxy:
    """Passes bytes on between clients and the server at `url`, until told otherwise."""

    def __init__(self, url: str) -> None:
        given = urlsplit(url)
        self._server = (given.hostname, given.port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._orphans: list[socket.socket] = []
        self._flows = threading.Event()
        self._flows.set()
        self._lock = threading.Lock()
        port = self._listening.getsockname()[1]
        self.url = f"postgres://{given.username}:{given.password}@127.0.0.1:{port}{given.path}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Both ends of every connection are closed."""
        for client, server in self._taken():
            _shut(client)
            _shut(server)

    def vanish(self) -> None:
        """As when a host loses its power: clients are gone, and the server does not hear of it until `forget`."""
        for client, server in self._taken():
            self._orphans.append(server)
            _shut(client)

    def forget(self) -> None:
        """The server notices at last."""
        while self._orphans:
            _shut(self._orphans.pop())

    def stall(self) -> None:
        """Nothing passes any more, and nothing is closed."""
        self._flows.clear()

    def flow(self) -> None:
        self._flows.set()

    def close(self) -> None:
        _shut(self._listening)
        self.flow()
        self.cut()
        self.forget()

    def _taken(self) -> list[tuple[socket.socket, socket.socket]]:
        with self._lock:
            pairs, self._pairs = list(self._pairs), set()
        return pairs

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:
                _shut(client)
                continue
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
            threading.Thread(target=self._pass_on, args=(client, server, pair), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(server, client, pair), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
        with self._lock:
            orphaned = pair[1] in self._orphans
            self._pairs.discard(pair)
        _shut(pair[0])
        if not orphaned:
            _shut(pair[1])


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
