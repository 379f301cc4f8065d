"""How many schedules one process takes at once: less where the database cancels a tick, all of them again later."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

GROW_AFTER = 60.0  # seconds without a cut, until a batch is doubled
FIRST_REST, LONGEST_REST = 1.0, 600.0  # seconds
REST_FOR_ITS_COST = 10  # times what a try took: a schedule that fits no limit may cost a process a tenth of its time


@dataclass(slots=True)
class Batch:
    """What one tick is to take, and what it took."""

    limit: int
    only: int | None = None  # the number of the one schedule that it is to take
    without: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    pks: tuple[int, ...] = ()
    left: tuple[int, ...] = ()
    began: float = 0.0

    def forget(self) -> None:
        self.names = self.pks = self.left = ()

    def took(self, rows: Iterable[Any]) -> None:
        self.names, self.pks = tuple(row.name for row in rows), tuple(row.pk for row in rows)


@dataclass(slots=True)
class _Rest:
    until: float
    seconds: float


class Pace:
    """Belongs to one process, and to its ticks.

    A time limit of the role (or a person, or a watchdog) that cancelled a tick would cancel the same batch again. So each cut
    halves what the next tick takes. A schedule that does not even fit alone rests for a while, and longer each time; it is
    tried alone, so the others go on. It is never set aside: the limit may change, and so may the load.
    """

    def __init__(self) -> None:
        self._size: int | None = None  # None: as many as there may be
        self._grows_at = 0.0
        self._resting: dict[
            int | None, _Rest
        ] = {}  # None: all of them, where not even the look for one came to its end
        self._tried_one = False
        self.was_cut = False  # the latest tick, and it is worth to try at once what is left

    def next_batch(self, batch_size: int) -> Batch | None:
        """What to take now; None: nothing yet."""
        now = time.monotonic()
        self.was_cut = False
        if None in self._resting and now < self._resting[None].until:
            return None
        rested = [pk for pk, rest in self._resting.items() if pk is not None and now >= rest.until]
        self._tried_one = bool(rested) and not self._tried_one  # by turns with the others
        if self._tried_one:
            return Batch(1, only=rested[0], began=now)
        if self._size is not None and now >= self._grows_at:
            self._size, self._grows_at = 2 * self._size, now + GROW_AFTER
            if self._size >= batch_size:
                self._size = None
        limit = batch_size if self._size is None else min(self._size, batch_size)
        return Batch(limit, without=tuple(sorted(pk for pk in self._resting if pk is not None)), began=now)

    def cut(self, batch: Batch) -> float:
        """The tick was cancelled. Seconds for which the one schedule that it took rests; 0: it took more, the next takes less."""
        number = len(batch.pks) or batch.limit
        if batch.only is not None or number == 1:
            pk = batch.only if batch.only is not None else batch.pks[0] if batch.pks else None
            self.was_cut = pk is not None
            return self._rest(pk, batch.began)
        self.was_cut = True
        self._size, self._grows_at = number // 2, time.monotonic() + GROW_AFTER
        return 0

    def fitted(self, batch: Batch) -> None:
        """The tick came to its end. What it left as it was rests, too: it would be the first to be taken again."""
        self._resting.pop(None, None)
        for pk in batch.pks:
            if pk not in batch.left:
                self._resting.pop(pk, None)
        for pk in batch.left:
            self._rest(pk, batch.began)
        if batch.only is not None and not batch.pks:  # no longer due, or another holds it
            if self._resting[batch.only].seconds >= LONGEST_REST:
                del self._resting[batch.only]
            else:
                self._rest(batch.only, batch.began)

    def _rest(self, pk: int | None, began: float) -> float:
        now = time.monotonic()
        before = self._resting.get(pk)
        doubled = FIRST_REST if before is None else 2 * before.seconds
        seconds = min(max(doubled, REST_FOR_ITS_COST * (now - began)), LONGEST_REST)
        self._resting[pk] = _Rest(now + seconds, seconds)
        return round(seconds, 1)
