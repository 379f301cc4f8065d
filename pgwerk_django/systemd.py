"""sd_notify: what a service of `Type=notify` says to systemd. Without it, every word is said to nobody.

The protocol is a datagram to a socket that the environment names; what PyPI has for it is as short, and no longer kept.
"""

import contextlib
import os
import socket
import time


class Notifier:
    """Tells the service manager that this process is ready, lives, and stops. It never blocks and never fails."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        # "@" stands for the zero byte of a name that is in no file system.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._every = watchdog_seconds() / 2
        self._told = float("-inf")
        self._last: dict[str, str] = {}

    @property
    def longest_silence(self) -> float:
        """Seconds that the loop may sleep; infinite where nobody watches."""
        return self._every / 2 or float("inf")

    def say(self, **words: str) -> None:
        """Say what is new of these, such as `READY="1"` or `STATUS="…"`."""
        if news := {word: text for word, text in words.items() if self._last.get(word) != text}:
            self._last |= news
            self._send(news)

    def live(self) -> None:
        """The loop has made another pass: tell the watchdog, about twice in the time it waits."""
        now = time.monotonic()
        if self._every and now - self._told >= self._every:
            self._told = now
            self._send({"WATCHDOG": "1"})

    def _send(self, words: dict[str, str]) -> None:
        if not self._address:
            return
        text = "\n".join(f"{word}={' '.join(text.split())}" for word, text in words.items())
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.setblocking(False)
            manager.sendto(text.encode(errors="replace"), self._address)


def watchdog_seconds() -> float:
    """Return after how much silence systemd restarts this process: 0 where it does not, or where it watches another process."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or pid not in ("", str(os.getpid())):
        return 0
    return int(microseconds) / 1_000_000
