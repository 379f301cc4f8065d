"""Processes that a benchmark starts, watches and ends, and what the kernel says of them (Linux)."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from django.db import connection

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 600  # seconds, of any one process


class ProcessFailed(Exception):
    """A process ended, or did not do its work in time; the message is one line."""


@dataclass
class Running:
    process: "subprocess.Popen[bytes]"
    said: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        return self.said.read_text(errors="replace")

    def check(self, *, ended: Sequence[int | None] = (None,)) -> None:
        code = self.process.poll()
        if code not in ended:
            raise ProcessFailed(f"exit code {code}: {last_line(self.text())}")

    def kill(self) -> None:
        """With its children: a process that fails here has shown that it cannot be trusted to end them."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def started(command: Sequence[object], environment: Mapping[str, str]) -> Iterator[Running]:
    """A process and its children, in a group of their own; SIGTERM ends it."""
    with tempfile.TemporaryDirectory(prefix="pgwerk-bench-") as folder:
        said = Path(folder) / "stderr"
        with said.open("wb") as stderr:
            process = subprocess.Popen(
                list(map(str, command)),
                env=environment,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        running = Running(process, said)
        try:
            yield running
            process.terminate()
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            print("a process outlived SIGTERM by a minute", file=sys.stderr)
        finally:
            running.kill()


def manage(command: str, *arguments: object, **environment: str) -> "contextlib.AbstractContextManager[Running]":
    """One of our own commands, on the benchmark's database."""
    line = [sys.executable, ROOT / "example_project" / "manage.py", command, *arguments]
    return started(line, {**os.environ, "DJANGO_SETTINGS_MODULE": "benchmarks.settings", **environment})


def plain_scheduler() -> "contextlib.AbstractContextManager[Running]":
    """`benchmarks.plain_scheduler`, on the benchmark's database."""
    return started([sys.executable, "-m", "benchmarks.plain_scheduler"], dict(os.environ))


def runscheduler(*arguments: object, **environment: str) -> "contextlib.AbstractContextManager[Running]":
    return manage("runscheduler", *arguments, **environment)


def until(condition: Callable[[], bool], *running: Running, every: float, within: float = LONGEST) -> None:
    """Return when `condition` holds: other processes bring it about."""
    deadline = time.monotonic() + within
    while not condition():
        for one in running:
            one.check()
        if time.monotonic() > deadline:
            raise ProcessFailed(f"not done after {within:.0f} s")
        time.sleep(every)  # noqa: TID251  # the interval of the measurement


def until_they_live(*schedulers: Running) -> None:
    """A scheduler lives once it has synced and its row is in the table."""

    def alive() -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(DISTINCT pid) FROM _pgwerk_processes WHERE pid = ANY(%s)", [pids])
            return bool(cursor.fetchone()[0] == len(pids))

    pids = [one.pid for one in schedulers]
    until(alive, *schedulers, every=0.1, within=60)


def cpu_seconds(pid: int) -> float:
    # What follows the name in parentheses, which may hold anything: fields 14 and 15 are user and system time.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> dict[int, float]:
    """Resident memory in MB of a process and its descendants."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # What follows the name in parentheses, which may hold anything: its second field is the parent.
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    members = {pid}
    while more := {child for child, parent in parents.items() if parent in members} - members:
        members |= more
    return {member: size for member in members if (size := resident_mb(member)) is not None}


def resident_mb(pid: int) -> float | None:
    with contextlib.suppress(OSError):
        if found := re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()):
            return int(found[1]) / 1024
    return None


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["(it said nothing)"])[-1][:300]
