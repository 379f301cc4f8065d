"""A Redis of a benchmark's own, for what has its broker there (Debian's redis-server)."""

import contextlib
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator


class NoRedis(Exception):
    pass


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """Its address, without a database's number. Raises NoRedis."""
    if shutil.which("redis-server") is None:
        raise NoRedis("needs redis-server: on Debian, apt-get install redis-server")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="pgwerk-bench-") as folder:
        arguments = ["--port", str(port), "--save", "", "--bind", "127.0.0.1", "--dir", folder]
        server = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            pause = threading.Event()
            while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
                if server.poll() is not None:
                    raise NoRedis(f"redis-server ended with {server.returncode}")
                pause.wait(0.02)
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()
