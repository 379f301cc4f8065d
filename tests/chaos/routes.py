"""Ways to the database other than the straight one: PgBouncer, a proxy whose cable can be pulled, a network that drops packets."""

import contextlib
import os
import secrets
import shutil
import socket
import string
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
    """Passes bytes on between clients and the server at `url`, until told otherwise. Listens at the address `host`."""

    def __init__(self, url: str, host: str = "127.0.0.1") -> None:
        given = urlsplit(url)
        self._server = (given.hostname, given.port)
        self._listening = socket.create_server((host, 0))
        self._swallowed: set[tuple[socket.socket, socket.socket]] = set()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._orphans: list[socket.socket] = []
        self._flows = threading.Event()
        self._flows.set()
        self._lock = threading.Lock()
        port = self._listening.getsockname()[1]
        self.url = f"postgres://{given.username}:{given.password}@{host}:{port}{given.path}"
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

    def swallow(self) -> None:
        """Acknowledge what comes over the connections that there are, and pass none of it on. New ones work."""
        with self._lock:
            self._swallowed |= self._pairs

    def forget(self) -> None:
        """The server notices at last."""
        while self._orphans:
            _shut(self._orphans.pop())
        with self._lock:
            swallowed, self._swallowed = self._swallowed, set()
        for client, server in swallowed:
            _shut(client)
            _shut(server)

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
                if pair not in self._swallowed:
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


def ip_program() -> str | None:
    return shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")


def can_make_networks() -> bool:
    """Whether this machine lets us have a network namespace, joined to it by a pair of virtual cards."""
    if os.geteuid() != 0 or ip_program() is None:
        return False
    try:
        Wire("postgres://nobody:none@127.0.0.1:1/none").close()
    except subprocess.CalledProcessError:
        return False
    return True


class Wire:
    """A network namespace from which the server at `url` is reached over a wire that can drop packets without a word.

    Both ends are told to send to a card that does not exist: no error comes of it, on either side.
    """

    NOBODY = "02:00:00:00:00:01"

    def __init__(self, url: str) -> None:
        program = ip_program()
        assert program is not None
        self._ip = program
        mark = (
            f"{os.getpid() % 100_000}{secrets.choice(string.ascii_lowercase)}{secrets.choice(string.ascii_lowercase)}"
        )
        self._name, self._outer, self._inner = f"chaos-{mark}", f"co{mark}", f"ci{mark}"
        self._net = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
        self._addresses = 2  # the last part of the one that new connections come from
        self.enter = [program, "netns", "exec", self._name]
        self._run("netns", "add", self._name)
        try:
            self._run("link", "add", self._outer, "type", "veth", "peer", "name", self._inner, "netns", self._name)
            self._run("addr", "add", f"{self._net}.1/24", "dev", self._outer)
            self._run("link", "set", self._outer, "up")
            self._inside("addr", "add", f"{self._net}.2/24", "dev", self._inner)
            self._inside("link", "set", self._inner, "up")
            self._inside("link", "set", "lo", "up")
            self.proxy = Proxy(url, f"{self._net}.1")
        except BaseException:
            self._run("netns", "del", self._name)
            raise
        self.url = self.proxy.url

    def drop(self) -> None:
        """Drop every packet, of new connections too, until `mend`."""
        self._inside(
            "neigh", "replace", f"{self._net}.1", "lladdr", self.NOBODY, "dev", self._inner, "nud", "permanent"
        )
        self._lose(self._addresses)

    def mend(self) -> None:
        self._inside("neigh", "del", f"{self._net}.1", "dev", self._inner, check=False)
        self._run("neigh", "del", f"{self._net}.{self._addresses}", "dev", self._outer, check=False)

    def forget_connections(self) -> None:
        """As a NAT that has forgotten them: packets of the connections that there are go nowhere for good. New ones work."""
        old = self._addresses
        self._addresses = old + 1
        new = f"{self._net}.{self._addresses}"
        self._inside("addr", "add", f"{new}/24", "dev", self._inner)
        self._inside(
            "route", "replace", f"{self._net}.0/24", "dev", self._inner, "proto", "kernel", "scope", "link", "src", new
        )
        self._inside("rule", "add", "from", f"{self._net}.{old}", "blackhole")
        self._lose(old)

    def close(self) -> None:
        self.proxy.close()
        self._run("link", "del", self._outer, check=False)
        self._run("netns", "del", self._name, check=False)

    def _lose(self, address: int) -> None:
        self._run(
            "neigh", "replace", f"{self._net}.{address}", "lladdr", self.NOBODY, "dev", self._outer, "nud", "permanent"
        )

    def _inside(self, *arguments: str, check: bool = True) -> None:
        self._run("-n", self._name, *arguments, check=check)

    def _run(self, *arguments: str, check: bool = True) -> None:
        subprocess.run([self._ip, *arguments], check=check, capture_output=True)
