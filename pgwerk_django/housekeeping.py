"""What nobody else would tidy up: expired jobs, rows of dead processes, jobs whose worker vanished, queues nobody named."""

import datetime as dt
import functools
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

from django.db import DatabaseError, connections

from pgwerk_django import claims, conf, outbox, signals
from pgwerk_django.claims import Lease, recover_lost
from pgwerk_django.guarded import PASSING, Size, impatient, survive
from pgwerk_django.loop import Every
from pgwerk_django.models import Alert, Job, Process, Queue
from pgwerk_django.sqlstates import Refusal, refusal_of

HOUSEKEEPING = dt.timedelta(minutes=1)
BATCH = 1000  # rows of one statement
MOST_SEEN = 10_000  # leases in one look


class Seen(NamedTuple):
    """What one look at the leases has found."""

    running: list[Lease]
    to_hand_over: list[tuple[uuid.UUID, int, str]]
    at: float  # on our own clock, once it was over
    session: Any


class Housekeeping:
    """What one live process does of it. What somebody's lock or a time limit of the server prevents is done later, or in less."""

    def __init__(self, *, using: str, more_in: float = 0) -> None:
        """`more_in`: seconds to the next batch of expired jobs, when there are more."""
        self._using = using
        self._more_in = more_in
        self._sizes: defaultdict[str, Size] = defaultdict(lambda: Size(BATCH))
        self._recovery = Recovery(using=using)
        self._time_to_skip = Every(conf.current().LEASE / 3)
        self._time_to_clean = Every(HOUSEKEEPING)

    def step(self) -> None:
        """Do what it is time for."""
        if self._recovery.is_due:
            self._do(self._recovery.look)
        if self._time_to_skip():
            self.skip_not_started()
        if self._time_to_clean() and self.clean_up():
            self._time_to_clean.again(self._more_in)

    def clean_up(self) -> bool:
        """Delete what has expired (one batch) and who is dead. Whether there may be more that has expired."""
        jobs, is_more = self._in_batches("expired", Job.objects.using(self._using).delete_expired)
        processes = self._do(Process.objects.using(self._using).delete_dead) or 0
        self._do(Queue.objects.using(self._using).discover)
        self._do(Alert.objects.using(self._using).delete_old)
        if jobs or processes:
            signals.send(signals.housekept, using=self._using, jobs=jobs, processes=processes)
        return is_more

    def skip_not_started(self) -> None:
        """Skip what was to start by now (one batch)."""
        self._in_batches("not started", Job.objects.using(self._using).skip_not_started)

    def _in_batches(self, kind: str, do: Callable[[int], int]) -> tuple[int, bool]:
        """How many rows that was, and whether there may be more."""
        size = self._sizes[kind]
        most = size.most
        done = self._do(lambda: do(most))
        if done is None:
            size.shrink(most)
            return 0, most > 1
        size.grow(done)
        return done, done == most

    def _do(self, do: Callable[[], Any]) -> Any:
        """What it gives; None when it was refused."""
        try:
            with impatient(self._using):
                return do()
        except DatabaseError as error:
            refusal = refusal_of(error)
            if refusal is Refusal.TOO_LONG:
                signals.send_statement_refused(error)
                survive(self._using)
            elif refusal not in PASSING:
                raise
        return None


class Recovery:
    """Finds jobs whose worker vanished, and those that a scheduler was handing over when it did: by two looks.

    A lease that has expired says only that nobody has renewed it: no live worker could while the database was away, or while
    somebody held a lock. So a look takes no job away. The next one does, a third of a `LEASE` later, from those who have not
    renewed the very same lease since. If this process was away itself in between, it begins anew.
    """

    def __init__(self, *, using: str) -> None:
        self._using = using
        self._lease = conf.current().LEASE
        self._time_to_look = Every(self._lease / 3)
        self._batch, self._most = Size(claims.RECOVERED_BATCH), Size(MOST_SEEN)
        self._seen: Seen | None = None

    @property
    def is_due(self) -> bool:
        """Whether it is time to look."""
        return time.monotonic() >= self._time_to_look.next

    def look(self) -> None:
        """Recover what the look before has seen, then look again."""
        before, self._seen = self._seen, None
        self._time_to_look.again(self._lease / 3)
        if before is not None and self._was_here_since(before):
            batch = self._batch.most
            for start in range(0, len(before.running), batch):
                seen = before.running[start : start + batch]
                self._sized(self._batch, functools.partial(recover_lost, using=self._using, seen=seen))
            outbox.release(before.to_hand_over, using=self._using)
        most = self._most.most
        running = self._sized(self._most, lambda: claims.unrenewed_leases(using=self._using, limit=most))
        to_hand_over = outbox.unrenewed_leases(using=self._using)
        # By the clock after the look, which may have waited.
        self._seen = Seen(running, to_hand_over, time.monotonic(), connections[self._using].connection)
        self._time_to_look.again(self._lease / 3)

    def _sized(self, size: Size, do: Callable[[], Any]) -> Any:
        try:
            done = do()
        except DatabaseError as error:
            if refusal_of(error) is Refusal.TOO_LONG:
                size.shrink(size.most)
            raise
        size.grow(size.most)
        return done

    def _was_here_since(self, before: Seen) -> bool:
        passed = time.monotonic() - before.at
        return self._lease / 3 <= passed <= self._lease and connections[self._using].connection is before.session


def recover_old(*, using: str) -> None:
    """For runs that do not live long enough to look twice: recover what has been expired for a whole `LEASE`."""
    recover_lost(using=using)
    outbox.release(outbox.unrenewed_leases(using=using, old=True), using=using)


def keep_house(*, using: str) -> None:
    """All of it, for runs that do not live long enough to look twice."""
    recover_old(using=using)
    house = Housekeeping(using=using)
    house.clean_up()
    house.skip_not_started()
