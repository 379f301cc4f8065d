"""A PgBouncer of a benchmark's own, in transaction mode (Debian's pgbouncer)."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg


class NoBouncer(Exception):
    pass


@contextlib.contextmanager
def pgbouncer(url: str) -> Iterator[str]:
    """The database's address behind it. Raises NoBouncer."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        raise NoBouncer("needs pgbouncer: on Debian, apt-get install pgbouncer")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    there = urlsplit(url)
    login = " ".join(
        f"{key}={value}" for key, value in (("user", there.username), ("password", there.password)) if value
    )
    with tempfile.TemporaryDirectory(prefix="pgwerk-bench-") as folder:
        config = Path(folder) / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = host={there.hostname} port={there.port or 5432} {login}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            "auth_type = any\npool_mode = transaction\ndefault_pool_size = 4\n"
        )
        user = []
        if os.geteuid() == 0:  # which it refuses to be
            shutil.chown(folder, "nobody")
            user = ["-u", "nobody"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        bouncer = subprocess.Popen([program, *user, str(config)], **quiet)  # type: ignore[call-overload]
        address = f"postgres://anyone@127.0.0.1:{port}{there.path}"
        try:
            _wait_for(bouncer, address)
            yield address
        finally:
            bouncer.terminate()
            bouncer.wait()


def _wait_for(bouncer: "subprocess.Popen[bytes]", address: str) -> None:
    pause = threading.Event()
    for _ in range(500):
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(address, prepare_threshold=None):
            return
        if bouncer.poll() is not None:
            raise NoBouncer(f"pgbouncer ended with {bouncer.returncode}")
        pause.wait(0.02)
    raise NoBouncer("pgbouncer did not answer within 10 s")
