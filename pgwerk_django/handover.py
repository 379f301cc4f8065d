"""Hand-over: jobs that another engine runs are claimed under a lease, sent, and marked FORWARDED.

A tick has written them before, so nothing is lost while an engine is away: they wait, and are tried again. No lock is held
while something is sent. A scheduler that dies between sending and marking has the job sent once more, under the same key;
what is sent to our own database is marked in the transaction that sends it, and so is there exactly once.

Each target has threads of its own: one that hangs holds up neither ticks nor other targets, nor, for longer than a second,
other jobs of its own.
"""

import contextlib
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from django.db import DatabaseError, connections, transaction

from pgwerk_django import conf, signals, spans, targets
from pgwerk_django.exceptions import TransactionLeftOpen, summary_of
from pgwerk_django.execution import LONGEST_SUMMARY, leave_clean
from pgwerk_django.guarded import LOCK_TIMEOUT, PASSING, survive
from pgwerk_django.loop import Every, Lost, guarded
from pgwerk_django.models import Job, atomic
from pgwerk_django.outbox import Marked, Outbox
from pgwerk_django.policies import backoff_delay
from pgwerk_django.sqlstates import Refusal, refusal_of
from pgwerk_django.targets import ForeignTarget
from pgwerk_django.text import storable

BATCH, FIRST_BATCH = 100, 10  # jobs of one claim, at most and at first;
BATCH_TAKES = 1.0  # seconds, by the pace so far: what waits longer for its turn, other schedulers could send
FIRST_RETRY, LONGEST_RETRY = 1.0, 60.0  # seconds, doubling from failure to failure of one job
MARK_EVERY = 0.05  # seconds; marks of one commit
STUCK = 1.0  # seconds in one send, after which the jobs behind it are for another thread
MOST_SENDERS = 4  # threads of one target
IDLE = 10.0  # seconds without work, after which a thread ends, and its connections with it
FIRST_AGAIN, LONGEST_AGAIN = 0.25, 5.0  # seconds to the next try, where somebody locks a row
AWAY = 0.5  # seconds between two tries to reach a lost database
STOPS_WITHIN = 5.0
TELL_AGAIN = 60.0  # seconds until the same failure is told once more


def retry_delay(attempt: int) -> float:
    """Seconds from a job's failure number `attempt` (from 0) to the next try, spread so that not all come at once."""
    return backoff_delay(attempt, first=FIRST_RETRY, longest=LONGEST_RETRY)


class _ClaimLost(Exception):
    """What was sent in a transaction is taken back: another holds one of the jobs."""


class _Busy(Exception):
    """What was sent in a transaction is taken back: somebody locks the row of one of the jobs."""


class _Refused(Exception):
    """An engine's own database is away: not to be taken for ours."""


class Pause:
    """Between two tries to write to rows that somebody locks: longer each time."""

    def __init__(self) -> None:
        self._seconds, self._until = FIRST_AGAIN / 2, float("-inf")

    def begin(self) -> None:
        self._seconds = min(self._seconds * 2, LONGEST_AGAIN)
        self._until = time.monotonic() + self._seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return max(self._until - time.monotonic(), 0)

    @property
    def is_over(self) -> bool:
        return self.left == 0


SendAll = Callable[[Sequence[Job]], list[str]]
Tell = Callable[..., None]


class Sender:
    """Hands over the jobs of one target, one after the other, as long as there are some."""

    def __init__(self, name: str, outbox: Outbox, tell: Tell = signals.send_now) -> None:
        self.name = name
        self._outbox = outbox
        self._tell = tell
        self._lock = threading.Lock()
        self._todo: deque[Job] = deque()
        self._alone: set[uuid.UUID] = set()  # those that went together with one that failed
        self._sending: list[Job] = []
        self._since: float | None = None  # busy with one send, or with connecting
        self._sent: list[tuple[Job, str]] = []
        # Kept apart while somebody locks their rows: what was sent, and what could not even be sent.
        self._sent_busy, self._mark_again = list[tuple[Job, str]](), Pause()
        self._todo_busy, self._send_again = list[Job](), Pause()
        self._batch = FIRST_BATCH
        self._is_outermost = False
        self._marked = 0.0
        self.error: BaseException | None = None  # the last that kept something from being sent
        self._told: tuple[str, Every] = ("", Every(TELL_AGAIN))
        self._stopped = False
        self._wake = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"pgwerk-to-{name}", daemon=True)

    # -- from the scheduler's thread

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        """End after the send at hand."""
        self._stopped = True
        self._wake.set()

    def is_stuck(self) -> bool:
        since = self._since
        return since is not None and time.monotonic() - since > STUCK

    def held(self) -> list[Job]:
        """What it has claimed and not yet marked."""
        with self._lock:
            sent = [job for job, _ in [*self._sent, *self._sent_busy]]
            return [*self._todo, *self._sending, *self._todo_busy, *sent]

    def relieve(self) -> None:
        """It hangs: what it has not begun to send is for others, or for later where it cannot even connect."""
        jobs = self.recall()
        if self._sending:
            self._outbox.hand_back(jobs)
        else:
            self._put_back(jobs, TimeoutError(f"{self.name!r} could not be connected to within {STUCK:g} s"))

    def recall(self) -> list[Job]:
        """The jobs it has not begun to send."""
        with self._lock:
            jobs = list(self._todo)
            self._todo.clear()
            return jobs

    # -- in its own thread

    def drain(self) -> int:
        """Hand over until nothing of this target waits. How many were."""
        done = self._send_busy()
        while not self._stopped and (jobs := self._claim()):
            started = time.monotonic()
            self._todo.extend(jobs)
            while self._todo and not self._stopped:
                done += self._send_some()
            pace = len(jobs) / max(time.monotonic() - started, 1e-6)
            self._batch = max(1, min(int(pace * BATCH_TAKES), BATCH))
        return done

    def _claim(self) -> list[Job]:
        """Fewer, where PostgreSQL cancels that: they may be large."""
        while True:
            try:
                return self._outbox.claim(self.name, self._batch)
            except DatabaseError as error:
                if refusal_of(error) is not Refusal.TOO_LONG or self._batch == 1:
                    raise
            survive(self._outbox.using)
            self._batch //= 2

    def _send_busy(self) -> int:
        """Try those again whose rows were locked. How many went out."""
        if not self._todo_busy or not self._send_again.is_over:
            return 0
        with self._lock:
            self._todo.extend(self._todo_busy)
            self._alone |= {job.pk for job in self._todo_busy}
            self._todo_busy = []
        done = 0
        while self._todo and not self._stopped:
            done += self._send_some()
        return done

    def _run(self) -> None:
        with guarded(self._outbox.using, on_hung=signals.send_statement_hung):
            self._work()

    def _work(self) -> None:
        try:
            while not self._stopped:
                try:
                    self._mark()
                    self.drain()
                except Lost as error:
                    if refusal_of(error) is Refusal.OUTAGE:
                        self._lose_the_database()
                    else:  # cancelled for its time: what was claimed and not sent is claimed again when its lease is over
                        self.recall()
                        survive(self._outbox.using)
                        self._tell_failure([], error, AWAY)
                        self._wake.wait(AWAY)
                    continue
                except Exception as error:  # noqa: BLE001  # a statement of ours fails: it must not end in silence
                    self._tell_failure([], error, AWAY)
                    self._wake.wait(AWAY)
                    continue
                connections[self._outbox.using].close_if_unusable_or_obsolete()
                if not self._wake.wait(self._until_next()) and not (self._sent_busy or self._todo_busy):
                    return
                self._wake.clear()
            self._mark_all()
        finally:
            connections.close_all()

    def _until_next(self) -> float:
        pauses = [self._mark_again.left] if self._sent_busy else []
        return min([*pauses, *([self._send_again.left] if self._todo_busy else []), IDLE])

    def _mark_all(self) -> None:
        """At the end: what is locked until then is sent once more by others, when its lease is over."""
        ends = time.monotonic() + STOPS_WITHIN / 2
        with contextlib.suppress(*Lost):
            self._mark()
            while self._sent_busy and (left := ends - time.monotonic()) > 0:
                threading.Event().wait(min(self._mark_again.left, left))
                self._mark()

    def _lose_the_database(self) -> None:
        """What was sent is marked when it is back; the leases of the rest run out."""
        self.recall()
        connections[self._outbox.using].close()
        self._wake.wait(AWAY)

    def _next(self, target: ForeignTarget) -> list[Job]:
        """One job, or several that go together."""
        jobs: list[Job] = []
        while self._todo and not self._stopped:
            # Outside of the lock: to ask a target may take the import of a module.
            if jobs and not self._joins(target, jobs[-1], *list(self._todo)[:1]):
                break
            with self._lock:
                jobs += [self._todo.popleft()] if self._todo else []
                self._sending = jobs
        self._since = time.monotonic()
        return jobs

    def _joins(self, target: ForeignTarget, *jobs: Job) -> bool:
        return all(job.pk not in self._alone and _asked(target.goes_together, job) for job in jobs)

    def _send_some(self) -> int:
        """Send over one connection until something fails, with which the connection may have gone. How many went out."""
        done = 0
        self._since = time.monotonic()
        try:
            target = targets.get(self.name)
            if not isinstance(target, ForeignTarget):
                raise ValueError(f"{self.name!r} hands nothing over")
            with target.connected() as send_all:
                while jobs := self._next(target):
                    self._send(target, send_all, jobs)
                    done += len(jobs)
        except Lost:
            raise
        except Exception as error:  # noqa: BLE001  # whatever an engine raises, the jobs are tried again later
            self._mark()
            self._failed(error)
        finally:
            self._taken()
        self._mark()
        return done

    def _taken(self) -> list[Job]:
        with self._lock:
            jobs, self._sending, self._since = self._sending, [], None
        return jobs

    def _failed(self, error: Exception) -> None:
        jobs = self._taken()
        if len(jobs) > 1:  # one after the other, so that only the culprit waits
            self._alone = {job.pk for job in jobs}
            with self._lock:
                self._todo.extendleft(reversed(jobs))
        elif isinstance(error, _ClaimLost):
            self._lose(jobs)
        elif isinstance(error, _Busy):
            with self._lock:
                self._todo_busy += jobs
            self._send_again.begin()
        else:
            cause = (error.__cause__ or error) if isinstance(error, _Refused) else error
            # Without a job at hand it is the target that fails, for all of them.
            self._put_back(jobs or self.recall(), cause)

    def _send(self, target: ForeignTarget, send_all: SendAll, jobs: list[Job]) -> None:
        if _asked(target.writes_to, jobs[0]) == self._outbox.using:
            with self._one_transaction():
                sent = list(zip(jobs, _ids_from(send_all, jobs), strict=True))
                if len(self._marked_amid(sent)) < len(jobs):
                    raise _ClaimLost
            self._send_again = Pause()
            self._tell(signals.jobs_forwarded, target=self.name, jobs=[job.key for job in jobs])
            return
        ids = _ids_from(send_all, jobs)
        if threading.current_thread() is self.thread:
            with contextlib.suppress(TransactionLeftOpen):  # a backend may have run the job right here
                leave_clean()
        with self._lock:
            self._sent += zip(jobs, ids, strict=True)
            self._sending, self._since = [], None
        if time.monotonic() - self._marked > MARK_EVERY:
            self._mark()

    @contextlib.contextmanager
    def _one_transaction(self) -> Iterator[None]:
        """Of what is sent and its mark. A row that somebody locks takes the send back, to be made later."""
        self._is_outermost = not transaction.get_connection(self._outbox.using).in_atomic_block
        try:
            with atomic(self._outbox.using):
                yield
        except DatabaseError as error:
            if refusal_of(error) not in PASSING:
                raise
            raise _Busy from error

    def _marked_amid(self, sent: list[tuple[Job, str]]) -> Marked:
        if self._is_outermost:  # else the setting would be the caller's from then on
            with transaction.get_connection(self._outbox.using).cursor() as cursor:
                cursor.execute(LOCK_TIMEOUT)
        return self._outbox.forward(sent)

    def _mark(self) -> None:
        """Kept until it is written: a lost database has nothing sent twice that is back within the lease."""
        sent = list(self._sent)
        again = list(self._sent_busy) if self._mark_again.is_over else []
        if not sent and not again:
            return
        marked = self._outbox.forward([*sent, *again])
        others = [each for each in [*sent, *again] if each[0].pk not in marked | marked.busy]
        noted = self._outbox.note_sent(others)
        done, busy = marked | noted, marked.busy | noted.busy
        self._marked = time.monotonic()
        with self._lock:
            kept = [each for each in self._sent_busy if each not in again]
            self._sent_busy = kept + [each for each in [*sent, *again] if each[0].pk in busy]
            del self._sent[: len(sent)]
        if busy:
            self._mark_again.begin()
        elif not self._sent_busy:
            self._mark_again = Pause()
        if done:
            keys = [job.key for job, _ in [*sent, *again] if job.pk in done]
            self._tell(signals.jobs_forwarded, target=self.name, jobs=keys)
        self._lose(job for job, _ in others if job.pk not in done | busy)

    def _lose(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._tell(signals.lease_lost, job_id=job.pk)

    def _put_back(self, jobs: list[Job], error: BaseException) -> None:
        self.error = error
        delays = [retry_delay(job.attempt) for job in jobs]
        # Those whose rows are locked wait until their leases are over.
        if not jobs or not self._outbox.put_back(jobs, error, delays):
            return
        self._tell_failure(jobs, error, min(delays))

    def _tell_failure(self, jobs: list[Job], error: BaseException, delay: float) -> None:
        """Once a minute, for as long as it is the same."""
        summary = storable(summary_of(error), LONGEST_SUMMARY)
        if summary != self._told[0]:
            self._told = (summary, Every(TELL_AGAIN))
        if self._told[1]():
            keys = [job.key for job in jobs]
            self._tell(
                signals.handover_failed,
                target=self.name,
                jobs=keys,
                error=summary,
                retry_in=round(delay, 1),
                exception=error,
            )


def _ids_from(send_all: SendAll, jobs: Sequence[Job]) -> list[str]:
    try:
        with spans.watch.hand_over(jobs):
            return send_all(jobs)
    except Lost as error:
        raise _Refused from error


def _asked(question: Callable[[Job], Any], job: Job) -> Any:
    """None where the target cannot even tell: that it cannot be sent is said when it is."""
    try:
        return question(job)
    except Exception:  # noqa: BLE001
        return None


class HandOver:
    """A scheduler's senders: woken where something waits, relieved of what waits behind a send that hangs."""

    def __init__(self, name: str, *, using: str) -> None:
        self._outbox = Outbox(name, using=using)
        self._senders: list[Sender] = []
        self._time_to_renew = Every(conf.current().LEASE / 4)  # as workers do
        self._time_to_tell = Every(TELL_AGAIN)
        self._teller = signals.Teller()

    def step(self, waiting: Sequence[str]) -> None:
        """`waiting` are the targets that have something to be sent."""
        self._senders = [sender for sender in self._senders if sender.thread.is_alive()]
        for sender in self._senders:
            if sender.is_stuck():
                sender.relieve()
        if self._senders and self._time_to_renew():
            self._time_to_renew.again()  # until it is done
            renewed = self._outbox.renew([job for sender in self._senders for job in sender.held()])
            lease = conf.current().LEASE
            self._time_to_renew.again(min(2 * FIRST_AGAIN, lease / 12) if renewed.busy else lease / 4)
        for target in waiting:
            self._have_sent(target)

    def renews_in(self) -> float:
        """Seconds until the next `step` must come, for the sake of the leases."""
        return self._time_to_renew.next - time.monotonic() if self._senders else float("inf")

    def close(self) -> None:
        """Let sends at hand finish, for a few seconds; what is not begun, another scheduler sends."""
        for sender in self._senders:
            sender.stop()
        ends = time.monotonic() + STOPS_WITHIN
        for sender in self._senders:
            sender.thread.join(max(ends - time.monotonic(), 0))
        self._teller.close(max(ends - time.monotonic(), 0))
        self._outbox.hand_back([job for sender in self._senders for job in sender.recall()])
        self._senders.clear()

    def _have_sent(self, target: str) -> None:
        if not _is_known(target):
            if self._time_to_tell():
                why = "a target that this version does not know"
                self._teller.send(
                    signals.handover_failed, target=target, jobs=[], error=why, retry_in=None, exception=None
                )
            return
        own = [sender for sender in self._senders if sender.name == target]
        free = [sender for sender in own if not sender.is_stuck()]
        if not free and len(own) < MOST_SENDERS:
            sender = Sender(target, self._outbox, self._teller.send)
            self._senders.append(sender)
            sender.thread.start()
        for sender in free:
            sender.wake()


def _is_known(target: str) -> bool:
    try:
        return isinstance(targets.get(target), ForeignTarget)
    except ValueError:
        return False


def senders(outbox: Outbox, tell: Tell = signals.send_now) -> list[Sender]:
    """One for each target that has something to be sent, and that this version knows."""
    return [Sender(target, outbox, tell) for target in outbox.targets() if _is_known(target)]


def hand_over(name: str, *, using: str) -> int:
    """Hand over what waits, here and now, one target after the other. How many jobs went out."""
    return sum(sender.drain() for sender in senders(Outbox(name, using=using)))
