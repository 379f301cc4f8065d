"""What nobody else would tidy up: expired jobs, rows of dead processes, jobs whose worker vanished, queues nobody named."""

import datetime as dt
import time
import uuid
from typing import Any, NamedTuple

from django.db import connections

from pgwerk_django import claims, conf, outbox, signals
from pgwerk_django.claims import Lease, recover_lost
from pgwerk_django.loop import Every
from pgwerk_django.models import Alert, Job, Process, Queue

HOUSEKEEPING = dt.timedelta(minutes=1)
EXPIRED_BATCH = 1000
NOT_STARTED_BATCH = 1000
MOST_SEEN = 10_000  # leases in one look


class Seen(NamedTuple):
    """What one look at the leases has found."""

    running: list[Lease]
    to_hand_over: list[tuple[uuid.UUID, int, str]]
    at: float  # on our own clock, once it was over
    session: Any


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
        self._seen: Seen | None = None

    def step(self) -> None:
        if self._time_to_look():
            self.look()

    def look(self) -> None:
        """Recover what the look before has seen, then look again."""
        before, self._seen = self._seen, None
        if before is not None and self._was_here_since(before):
            for start in range(0, len(before.running), claims.RECOVERED_BATCH):
                recover_lost(using=self._using, seen=before.running[start : start + claims.RECOVERED_BATCH])
            outbox.release(before.to_hand_over, using=self._using)
        running = claims.unrenewed_leases(using=self._using, limit=MOST_SEEN)
        to_hand_over = outbox.unrenewed_leases(using=self._using)
        # By the clock after the look, which may have waited.
        self._seen = Seen(running, to_hand_over, time.monotonic(), connections[self._using].connection)
        self._time_to_look.again(self._lease / 3)

    def _was_here_since(self, before: Seen) -> bool:
        passed = time.monotonic() - before.at
        return self._lease / 3 <= passed <= self._lease and connections[self._using].connection is before.session


def recover_old(*, using: str) -> None:
    """For runs that do not live long enough to look twice: recover what has been expired for a whole `LEASE`."""
    recover_lost(using=using)
    outbox.release(outbox.unrenewed_leases(using=using, old=True), using=using)


def keep_house(*, using: str) -> int:
    """All of it, for runs that do not live long enough to look twice. How many jobs expired."""
    recover_old(using=using)
    return clean_up(using=using)


def clean_up(*, using: str) -> int:
    """Delete what has expired (one batch) and who is dead, skip what did not start in time. How many jobs expired."""
    jobs = Job.objects.using(using).delete_expired(EXPIRED_BATCH)
    processes = Process.objects.using(using).delete_dead()
    Job.objects.using(using).skip_not_started(NOT_STARTED_BATCH)
    Queue.objects.using(using).discover()
    Alert.objects.using(using).delete_old()
    if jobs or processes:
        signals.send(signals.housekept, using=using, jobs=jobs, processes=processes)
    return jobs
