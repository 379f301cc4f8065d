"""How many CPUs this process may use: its affinity, and the quota of its cgroup."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any


def usable_cpus(root: Path = Path("/")) -> int:
    """Return the number of allowed CPUs (`taskset`, a cpuset), but no more than the cgroup's quota rounded up. At least 1."""
    return max(min([_allowed(), *map(math.ceil, _quotas(root))]), 1)


def _allowed() -> int:
    count: Any = getattr(os, "process_cpu_count", None)  # Python 3.13
    if count is not None:
        return count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """Yield each limit, in CPUs, that cgroups of version 2 or 1 set for this process, from its own group up."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):  # no Linux
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _number, controllers, path = [*line.split(":", 2), "", ""][:3]
        # A container may see a path of the host's, of which only the root is mounted.
        for group in [PurePosixPath(path), *PurePosixPath(path).parents]:
            inner = str(group).lstrip("/")
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                if not controllers:
                    quota, period = (mounted / inner / "cpu.max").read_text().split()
                elif "cpu" in controllers.split(","):
                    quota = (mounted / "cpu" / inner / "cpu.cfs_quota_us").read_text()
                    period = (mounted / "cpu" / inner / "cpu.cfs_period_us").read_text()
                else:
                    continue
                if float(quota) > 0:  # not "max", which is no number, nor -1
                    yield float(quota) / float(period)
