"""A way to the database whose existing connections go dead without a word, while their sockets stay open."""

import contextlib
import ctypes
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

SO_ATTACH_FILTER = 26


class Line:
    """A proxy in front of the server at `url`."""

    def __init__(self, url: str) -> None:
        given = urlsplit(url)
        assert given.hostname
        self._server = (given.hostname, given.port or 5432)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        login = given.netloc.rpartition("@")[0]
        self.url = urlunsplit(given._replace(netloc=f"{login}@127.0.0.1:{self.port}"))
        self._pairs: list[tuple[socket.socket, socket.socket, threading.Event]] = []
        self._refuses = False
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def swallow(self) -> None:
        """Acknowledge what comes over the connections that there are, and pass nothing on."""
        for _, _, is_dead in self._pairs:
            is_dead.set()

    def drop(self) -> None:
        """Drop the packets that come over the connections that there are, so that nothing is acknowledged."""
        if sys.platform != "linux":
            pytest.skip("packets can be dropped on Linux only")
        for here, _, is_dead in self._pairs:
            is_dead.set()
            here.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, _DROP_ALL)

    def answer_nobody(self) -> None:
        """Accept new connections, and pass nothing on."""
        self._refuses = True

    def close(self) -> list[int]:
        """Return the ports from which the server was called."""
        ports = [there.getsockname()[1] for _, there, _ in self._pairs]
        sockets = [self._listening, *(each for pair in self._pairs for each in pair[:2])]
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # which ends the thread that reads from it
        for thread in self._threads:
            thread.join(10)
        for each in sockets:
            each.close()
        return ports

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=args, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                here, _ = self._listening.accept()
                there = socket.create_connection(self._server)
                is_dead = threading.Event()
                if self._refuses:
                    is_dead.set()
                self._pairs.append((here, there, is_dead))
                self._start(_pass_on, here, there, is_dead)
                self._start(_pass_on, there, here, is_dead)


def _pass_on(one: socket.socket, other: socket.socket, is_dead: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(65536):
            if not is_dead.is_set():
                other.sendall(data)
    if not is_dead.is_set():  # else the server is not to know that the client has gone
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


_RETURN_0 = _Instruction(0x06, 0, 0, 0)  # a packet filter that keeps no byte of any packet
_DROP_ALL = bytes(_Program(1, ctypes.pointer(_RETURN_0)))
