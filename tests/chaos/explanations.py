"""What explains an irregularity: a fault that hit the process in question while it held the job, or any fault for what is late."""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable

from tests.chaos.evidence import Hit

# A process that was killed, stopped or cut off, or whose child was ended, may lose its claims. Nothing else explains that:
# an outage of PostgreSQL, a lock and a time limit are for the product to outlast.
LOSES_CLAIMS = frozenset({"kill", "freeze", "partition", "stop", "child"})
# A transaction may hang here between two statements of one process.
HOLDS_UP = frozenset({"freeze", "partition", "machine", "clock"})

SLACK = dt.timedelta(seconds=1)  # between the instants of the harness and of PostgreSQL
GRACE = dt.timedelta(seconds=8)  # after the end of a fault: processes start, connections come back, leases run out


class Explanations:
    def __init__(self, hits: Iterable[Hit]) -> None:
        self._hits = list(hits)
        self._of: dict[int, list[Hit]] = defaultdict(list)
        for hit in self._hits:
            if hit.pid is not None and hit.kind in LOSES_CLAIMS:
                self._of[hit.pid].append(hit)
        self._windows: list[tuple[dt.datetime, dt.datetime]] = []
        for hit in sorted(self._hits, key=lambda hit: hit.began):
            began, ended = hit.began - SLACK, hit.ended + GRACE
            if self._windows and began <= self._windows[-1][1]:
                began, before = self._windows.pop()
                ended = max(before, ended)
            self._windows.append((began, ended))

    def of(self, pid: int | None, since: dt.datetime, until: dt.datetime) -> bool:
        """Whether a fault hit this very process in this time, so that it may have lost what it held."""
        return pid is not None and any(_overlaps(hit, since, until) for hit in self._of.get(pid, ()))

    def of_all(self, since: dt.datetime, until: dt.datetime) -> bool:
        """Whether a fault hit every process, such as an outage of PostgreSQL."""
        return any(hit.pid is None and _overlaps(hit, since, until) for hit in self._hits)

    def held_up(self, since: dt.datetime, until: dt.datetime) -> bool:
        """Whether a process may have hung in this time between two statements."""
        return any(hit.kind in HOLDS_UP and _overlaps(hit, since, until) for hit in self._hits)

    def outside(self, since: dt.datetime, until: dt.datetime) -> float:
        """The longest stretch of this time, in seconds, in which there was no fault and none had just ended."""
        longest, after = dt.timedelta(), since
        for began, ended in self._windows:
            longest = max(longest, min(began, until) - after)
            after = max(after, ended)
            if after >= until:
                break
        return max(longest, until - after).total_seconds()


def _overlaps(hit: Hit, since: dt.datetime, until: dt.datetime) -> bool:
    return hit.began <= until + SLACK and hit.ended >= since - SLACK
