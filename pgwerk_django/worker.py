"""Claim jobs under a lease, have them run, finish them: at least once each, and only by whoever holds the claim."""

import functools
import json
import queue
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError, connections
from django.dispatch import Signal

import pgwerk_django
from pgwerk_django import conf, signals
from pgwerk_django.alerts import Watch
from pgwerk_django.children import Child, Children, Held
from pgwerk_django.claims import FIELDS, Claim, Claims, Finished, event_of
from pgwerk_django.cpus import usable_cpus
from pgwerk_django.exceptions import JobCancelled, JobTimeout, PgwerkError, ProcessDied, UnsupportedProcess
from pgwerk_django.execution import Outcome, log_failure, with_stack
from pgwerk_django.guarded import PASSING, Size, Written, survive
from pgwerk_django.housekeeping import Housekeeping, recover_old
from pgwerk_django.loop import LAST_CONNECT, Bell, Every, Loop, Lost, listening
from pgwerk_django.models import HEARTBEAT, Process, Status
from pgwerk_django.network import limits_for
from pgwerk_django.sqlstates import Refusal, described, refusal_of
from pgwerk_django.targets.results import finished_elsewhere

# Seconds. Under load outcomes are written, and jobs claimed, at most so often: more at once cost less each.
LINGER = 0.005
AHEAD = 0.1  # as much work is claimed ahead of who is free to do it, going by how long jobs have run so far,
MOST_AHEAD = 500  # jobs at most;
LONGEST_AHEAD = 1.0  # and what waited longer for its turn is for others to run.
AT_HAND, MOST_AT_HAND = 0.002, 20  # as much work, and jobs at most, a process has before it beyond what it runs;
LONGEST_AT_HAND = 0.1  # it gives back what it has not started by then
BEGIN_AFTER = 0.01  # before that, a job's start is written with its end
PROGRESS_EVERY = 0.5
# Between two looks of the thread that keeps time limits while the loop's own thread waits for the database.
LOOK_AFTER = 0.25
STOPS_WITHIN = 1.0  # a job that is told to stop, or the process that runs it is killed
CLEAN_MORE = 1.0  # to the next batch of expired jobs, when there are more
AWAY = 0.5  # between two tries to say the last things to a database that is away
# What somebody's lock, or a time limit of the server, keeps from being written is tried again: at first, and at most.
FIRST_AGAIN, LONGEST_AGAIN = 0.25, 5.0
MOST_AT_ONCE = 10_000  # jobs in one statement
LARGEST_MESSAGE = 16_000_000  # characters of results in one statement, unless one result alone is larger
TELL_REFUSED_AGAIN = 60.0  # to the next log line of that kind
MOST_CANCELLED = 3  # times in a row that PostgreSQL cancels the statement for one outcome alone
TELLS_WITHIN = 10.0  # receivers of signals, once all is done
REMEMBERS = 60.0  # that its code does not know a function: for longer than the longest time to the next try,
MOST_REMEMBERED = 100  # functions, the last ones
TELL_AGAIN = 60.0  # of the same function
TRY_AGAIN = 1.0  # whether a child can import it: until then its jobs are released without that

_ID, _CLAIMS, _ATTEMPT, _TIMEOUT, _FUNCTION, _QUEUE, _UNKNOWN_SINCE = map(
    FIELDS.index, ("id", "claims", "attempt", "timeout", "function", "queue", "unknown_since")
)


def refuse_green_threads() -> None:
    """Raise `UnsupportedProcess` where gevent or eventlet has patched what a worker talks to its child processes with."""
    for package, module, asked in (
        ("gevent", "gevent.monkey", "is_module_patched"),
        ("eventlet", "eventlet.patcher", "is_monkey_patched"),
    ):
        is_patched = getattr(sys.modules.get(module), asked, None)
        if is_patched is not None and any(map(is_patched, ("socket", "select", "os", "threading", "thread"))):
            raise UnsupportedProcess(package)


@dataclass(slots=True)
class _Unknown:
    """A function that this worker's code did not know. Instants are `time.monotonic()`."""

    released: float  # the last of its jobs
    found_missing: float = float("-inf")  # by a child, whatever the arguments
    told: float = float("-inf")


class Worker:
    """Runs jobs in child processes. Everything said to the queue goes over the loop's one connection, in batches.

    `concurrency` processes (the CPUs that it may use) run `threads` jobs each at a time. A job that runs out its `timeout` is stopped: by an
    exception where Python can raise one in it, else with its process, once the jobs beside it are done or
    `shutdown_timeout` is over; those are then handed back.
    """

    def __init__(
        self,
        *,
        queues: Sequence[str] = (),
        concurrency: int | None = None,
        threads: int = 1,
        max_jobs_per_child: int | None = None,
        using: str | None = None,
        burst: bool = False,
        shutdown_timeout: float = 30,
    ) -> None:
        """Take jobs from `queues`, the first preferred; from every queue when none is named.

        Raises `UnsupportedProcess` where gevent or eventlet has patched the standard library.
        """
        self.using = using or conf.current().DATABASE
        self.queues = list(queues)
        refuse_green_threads()
        self.concurrency = concurrency or usable_cpus()
        self.threads = threads
        self.max_jobs_per_child = max_jobs_per_child
        self.burst = burst
        self.shutdown_timeout = shutdown_timeout
        self.bell = Bell()
        self.handed_back = 0  # jobs that did not finish in time when it stopped
        self.unsettled: list[str] = []  # keys of those that could then neither be finished nor handed back
        self._process = Process.here("worker", version=pgwerk_django.__version__, queues=self.queues)
        self._children: Children | None = None
        self._news: queue.SimpleQueue[tuple[str, Child | None, Any, Any]] = queue.SimpleQueue()
        self._rung = False  # for the news that wait
        self._held: dict[Claim, Held] = {}
        self._outcomes: list[tuple[Held, Outcome]] = []
        # Jobs that other code may know, to be released; without an outcome where no child was asked.
        self._unknown: list[tuple[Held, Outcome | None]] = []
        self._unknown_functions: dict[str, _Unknown] = {}
        self._claims_at_once = False
        self._progress: dict[Claim, str] = {}
        self._busy: dict[Claim, tuple[float, float]] = {}  # until when to leave a row alone, and for how long that was
        self._cancelled: dict[Claim, int] = {}  # how often PostgreSQL cancelled the statement with this outcome alone
        self._sizes: defaultdict[str, Size] = defaultdict(lambda: Size(MOST_AT_ONCE))
        self._claim_again, self._claim_pause = float("-inf"), 0.0
        self._usual = float("inf")  # seconds that a job has run of late
        self._lease = conf.current().LEASE
        self._wrote = self._found_none = float("-inf")
        self._claims_soon = False
        self._to_hand_back: list[Held] = []
        self._time_to_beat = Every(HEARTBEAT)
        # More often than others look whether it was: between two looks each lease is renewed.
        self._time_to_renew = Every(self._lease / 4)
        self._housekeeping = Housekeeping(using=self.using, more_in=CLEAN_MORE)
        self._time_to_progress = Every(PROGRESS_EVERY)
        self._time_to_ask = Every(conf.current().POLL_INTERVAL)
        self._time_to_tell_refused = Every(TELL_REFUSED_AGAIN)
        self._teller = signals.Teller()
        self._watch = Watch(using=self.using)
        self._loop: Loop | None = None
        self._stopped = self._hurried = self._recovered_old = False
        self._ends_at: float | None = None  # when what runs is to end, once it was told to stop
        self._is_over = threading.Event()
        # Two threads stop jobs. While it is held, no job is given to another child.
        self._deciding = threading.RLock()

    # -- the loop's side

    def run(self) -> None:
        """Work until `stop()`, or, in burst mode, until nothing is waiting."""
        self._loop = Loop(
            self,
            using=self.using,
            bell=self.bell,
            on_lost=signals.send_database_lost,
            on_back=signals.send_database_back,
            on_refused=signals.send_statement_refused,
            on_hung=signals.send_statement_hung,
        )
        with listening(self.bell, "pgwerk_jobs", on_failed=signals.send_listen_failed):
            if self._stopped:
                self._loop.stop()
            self._loop.run()

    def stop(self) -> None:
        """Stop claiming; finish what runs. Safe from any thread and from signal handlers."""
        self._stopped = True
        if self._ends_at is None:
            self._ends_at = time.monotonic() + self.shutdown_timeout
        if self._loop is not None:
            self._loop.stop()
        self.bell.ring()

    def hurry(self) -> None:
        """Stop now: what runs is ended and handed back. Safe from any thread and from signal handlers."""
        now = time.monotonic()
        self._ends_at = now if self._ends_at is None else min(self._ends_at, now)
        self._hurried = True
        self.stop()
        if self._loop is not None:
            self._loop.hurry()

    def kill_children(self) -> None:
        """Kill the processes that run jobs: for a process that ends without a further word, as by `os._exit`."""
        for child in self._children or ():
            child.kill()

    @property
    def ready(self) -> bool:
        return self._children is not None

    def step(self) -> float:
        children = self._begin()
        if (lingers := self._lingers()) > 0:
            return lingers
        self._tend(children)
        if self.burst and not self._recovered_old:  # it may end before a second look
            recover_old(using=self.using)
            self._recovered_old = True
        claimed = self._claim(children)
        if self.burst and claimed == 0 and self._is_settled():
            self.stop()
        return self._until_next()

    def close(self) -> None:
        """Finish what runs within `shutdown_timeout`, hand the rest back without spending an attempt."""
        children = self._children
        if children is None:
            return
        self._stopped = True
        if self._ends_at is None:  # its loop did not end by `stop()`
            self._ends_at = time.monotonic() + self.shutdown_timeout
        ends = self._ends_at
        self._try(lambda: self._hand_back(children.take_back()))
        while not self._is_settled() and not self._hurried and (left := ends - time.monotonic()) > 0:
            # A database that is away may be back before the time is over.
            delay = max(self._lingers(), self._until_next()) if self._try(lambda: self._tend(children)) else AWAY
            self.bell.wait(min(left, delay))
        children.end()  # first: what is handed back, another may run at once
        self._hear(children)
        self.handed_back = sum(held.started is not None for held in self._held.values())
        self._settle_in_time(ends)
        self._is_over.set()
        self._tell_unsettled()
        signals.send_now(signals.process_stopped, role="worker")
        self._teller.close(TELLS_WITHIN)
        self._watch.close()

    def _begin(self) -> Children:
        if self._children is None:
            self._process.beat(using=self.using)
            self._claims = Claims(self._process.pk, str(self._process), lease=self._lease, using=self.using)
            self._children = Children(
                count=self.concurrency,
                threads=self.threads,
                max_jobs=self.max_jobs_per_child,
                using=self.using,
                report=self._report,
            )
            signals.send_now(
                signals.process_started,
                role="worker",
                queues=self.queues or [signals.ALL_QUEUES],
                concurrency=self.concurrency,
                threads=self.threads,
            )
            self._children.tend()
            threading.Thread(
                target=self._keep_time, args=[self._children], name="pgwerk-time-limits", daemon=True
            ).start()
        return self._children

    def _keep_time(self, children: Children) -> None:
        """Stop jobs and processes in time also while a statement of the loop's thread hangs. On a thread of its own."""
        while not self._is_over.wait(LOOK_AFTER):
            self._stop_late()
            if self._ends_at is not None and time.monotonic() - self._ends_at > LOOK_AFTER:
                children.end()
                return

    def _tend(self, children: Children) -> None:
        """Everything but claiming. What needs no database comes first: it goes on while that is away."""
        self._hear(children)
        self._stop_late()
        if children.recall(LONGEST_AT_HAND):
            self._usual = max(self._usual, LONGEST_AT_HAND)
        children.tend(replace=not self._stopped)
        if self._time_to_beat():
            self._beat(children)
            children.ask()
        if not self._is_settled() and self._time_to_renew():  # first: after an outage others are about to look
            self._time_to_renew.again()  # until it is done
            self._renew()
        self._release_unknown(children)
        self._write()
        self._write_starts()
        self._hand_back(())
        if self._progress and self._time_to_progress():
            self._write_progress()
        if self._held and self._time_to_ask():
            self._ask_who_is_cancelled(children)
        if (since := children.waits_since()) is not None and time.monotonic() - since > LONGEST_AHEAD:
            # Jobs are no longer as short as they were: else the same would be claimed again at once.
            self._usual = max(self._usual, LONGEST_AHEAD)
            self._hand_back(children.take_back())
        self._housekeeping.step()
        self._watch.step()

    def _try(self, action: Callable[[], object]) -> bool:
        """Whether it could be done: not while the database is away."""
        try:
            action()
        except Lost:
            connections[self.using].close()
            return False
        return True

    def _beat(self, children: Children) -> None:
        running = sum(held.child is not None for held in self._held.values())
        if not self._process.beat(using=self.using, running=running, **children.state()):
            self._time_to_beat.again(FIRST_AGAIN)

    # -- what the children say

    def _report(self, word: str, child: Child | None, key: Any, value: Any) -> None:
        """From a child's thread. One ring serves all the news since the last look."""
        self._news.put((word, child, key, value))
        if not self._rung:
            self._rung = True
            self.bell.ring()

    def _hear(self, children: Children) -> None:
        self._rung = False
        while True:
            try:
                word, child, key, value = self._news.get_nowait()
            except queue.Empty:
                return
            if word == "done":
                self._ended(key, Outcome(**value))
            elif word == "stack" and key in self._held:
                self._held[key].stack = value
            elif word == "progress":
                self._progress[key] = json.dumps(value)
            elif word == "late" and key in self._held:
                self._lose(self._held.pop(key))
            elif word == "withheld" and key in self._held:
                self._to_hand_back.append(self._held[key])
            elif word == "back" and child is not None:
                with self._deciding:
                    children.came_back(child, value)
            elif word == "unborn":
                self._tell(signals.child_died, pid=0, how=f"it could not be started: {value}")
            elif word == "gone" and child is not None:
                self._bury(children, child)

    def _ended(self, key: Claim, outcome: Outcome) -> None:
        held = self._held.pop(key, None)
        if held is None or held.lost:
            return
        if self._children is not None:
            self._children.took(held.row[_FUNCTION], outcome.seconds)
        known = self._usual < float("inf")
        self._usual = self._usual + (outcome.seconds - self._usual) / 10 if known else outcome.seconds
        if held.stopping is not None and outcome.status != Status.SUCCESSFUL:
            # Whatever it made of being stopped.
            outcome = self._failure(held, held.stopping)
        # In burst mode nobody may come after us.
        (self._unknown if outcome.unknown and not self.burst else self._outcomes).append((held, outcome))

    def _failure(self, held: Held, error: PgwerkError) -> Outcome:
        outcome = Outcome.failure(held.job, error)
        outcome.error = with_stack(outcome.error, held.stack)
        outcome.seconds = outcome.ended - (held.started or outcome.ended)
        return outcome

    def _failed_with_its_process(self, held: Held, error: PgwerkError) -> None:
        outcome = self._failure(held, error)
        if not held.lost:
            log_failure(held.job, outcome, error)  # its process could not
        self._ended(held.key, outcome)

    def _bury(self, children: Children, child: Child) -> None:
        """Jobs that were stopped have ended with it. Those beside them are handed back if we killed it, and have failed if not."""
        with self._deciding:
            went = children.forget(child)
        for held in went:
            if held.stopping is not None:
                self._failed_with_its_process(held, held.stopping)
            elif child.condemned:
                held.child = None
                self._to_hand_back.append(held)
            else:
                self._failed_with_its_process(held, ProcessDied(child.how_it_ended()))
        if not child.was_up:
            self._time_to_beat.again()  # to say so at once
        if not (child.condemned or child.leaving):
            self._tell(signals.child_died, pid=child.process.pid, how=child.how_it_ended())

    # -- stopping jobs

    def _stop(self, held: Held, why: PgwerkError) -> None:
        with self._deciding:
            if held.stopping is None and held.child is not None:
                held.stopping, held.stopped = why, time.monotonic()
                held.child.tell("stop", held)

    def _stop_late(self) -> None:
        now = time.monotonic()
        for held in self._held.copy().values():
            if held.deadline is not None and held.deadline <= now:
                self._stop(held, JobTimeout(held.timeout or 0))
            if held.stopped is not None:
                its_own, of_all = self._end_of_patience(held.stopped)
                if its_own <= now:
                    self._condemn(held, patience_is_over=of_all <= now)

    def _condemn(self, held: Held, patience_is_over: bool) -> None:
        """It does not stop: no more jobs for its child, and the child's end once the jobs beside it are done."""
        with self._deciding:
            child = held.child
            if child is None or child.is_dead():
                return
            child.retired = True
            if not child.condemned and (patience_is_over or all(one.stopping for one in list(child.running.values()))):
                child.condemned = True
                child.kill()

    def _end_of_patience(self, stopped: float) -> tuple[float, float]:
        """With a job that was told to stop; and with those beside it, which its process is to end with."""
        return stopped + STOPS_WITHIN, stopped + STOPS_WITHIN + self.shutdown_timeout

    def _lose(self, held: Held) -> None:
        """Another may run it by now: stop it here, and drop what comes of it."""
        if not held.lost:
            held.lost = True
            self._tell(signals.lease_lost, job_id=held.key[0])
            self._stop(held, JobCancelled("its lease was lost"))

    def _ask_who_is_cancelled(self, children: Children) -> None:
        asked, paused = self._unless_refused(self._claims.to_stop) or ({}, children.withheld)
        if paused != children.withheld:
            children.withhold(paused)
        for key, forced in asked.items():
            held = self._held.get(key)
            if held is None or held.child is None or held.started is None:
                continue
            if not held.asked:
                held.asked = True
                held.child.tell("cancel", held)
            if forced:
                self._stop(held, JobCancelled())
        if any(key in asked and held.started is None for key, held in self._held.items()):
            children.recall(0)
            back = children.take_back()
            children.put(held for held in back if held.key not in asked)
            self._hand_back([held for held in back if held.key in asked])

    # -- what is written

    def _claim(self, children: Children) -> int | None:
        """How many it could claim; None when it was not the time to."""
        now = time.monotonic()
        children.extra = min(int(AT_HAND / max(self._usual, 1e-6)), MOST_AT_HAND)
        ahead = min(int(children.places * AHEAD / max(self._usual, 1e-6)), MOST_AHEAD)
        wanted = children.room() + ahead
        self._claims_soon = now - self._found_none < LINGER
        self._claims_at_once = False
        if self._stopped or wanted <= ahead / 2 or self._claims_soon or now < self._claim_again:
            return None
        size = self._sizes["claim"]
        wanted = min(wanted, size.most)
        rows = self._unless_refused(lambda: self._claims.claim(wanted, self.queues, unknown=self._remembered()))
        if rows is None:
            size.shrink(wanted)  # rows may be large
            self._claim_pause = min(max(self._claim_pause * 2, FIRST_AGAIN), LONGEST_AGAIN)
            self._claim_again = time.monotonic() + self._claim_pause
            return None
        size.grow(wanted)
        self._claim_pause = 0.0
        if children.withheld:  # what can be claimed is not paused any more
            children.withheld -= {row[_QUEUE] for row in rows}
        if not rows:
            self._found_none = now
        # They are ours from when they were asked for, rather too early; and wait since they are here.
        lease_ends, here = now + self._lease, time.monotonic()
        claimed = [
            Held((row[_ID], row[_CLAIMS]), row, row[_TIMEOUT], self.using, claimed=here, lease_ends=lease_ends)
            for row in rows
        ]
        missing = self._missing()
        unknown = [(held, None) for held in claimed if held.row[_FUNCTION] in missing]
        self._unknown += unknown
        self._claims_at_once = bool(unknown)
        self._put(children, [held for held in claimed if held.row[_FUNCTION] not in missing])
        self._release_unknown(children)
        return len(claimed)

    def _put(self, children: Children, claimed: Sequence[Held]) -> None:
        self._held.update((held.key, held) for held in claimed)
        children.put(claimed)

    def _remembered(self) -> list[str]:
        """The functions that this worker's code did not know of late."""
        if self._unknown_functions:
            oldest = time.monotonic() - REMEMBERS
            kept = [each for each in self._unknown_functions.items() if each[1].released > oldest]
            self._unknown_functions = dict(kept[-MOST_REMEMBERED:])
        return list(self._unknown_functions)

    def _missing(self) -> set[str]:
        """The functions that a child looked for a moment ago, and did not find."""
        oldest = time.monotonic() - TRY_AGAIN
        return {function for function, each in self._unknown_functions.items() if each.found_missing > oldest}

    def _release_unknown(self, children: Children) -> None:
        """Leave jobs whose function is unknown here to workers of other code. What has waited too long for one fails."""
        if not self._unknown:
            return
        batch = [each for each in self._unknown if self._is_free(each[0].key)]
        since = {held.key: held.row[_UNKNOWN_SINCE] for held, _ in batch}
        released = self._written(
            "release",
            list(since),
            lambda keys, wait: self._claims.release({key: since[key] for key in keys}, wait=wait),
        )
        done = {held.key for held, _ in batch if held.key[0] not in released.busy}
        self._unknown = [each for each in self._unknown if each[0].key not in done]
        for held, outcome in batch:
            if held.key in done and held.key[0] not in released:
                if outcome is None:
                    self._put(children, [held])
                else:
                    self._outcomes.append((held, outcome))
        self._remember([each for each in batch if each[0].key[0] in released])

    def _remember(self, released: Iterable[tuple[Held, Outcome | None]]) -> None:
        now = time.monotonic()
        news: dict[str, tuple[str, list[str]]] = {}
        for held, outcome in released:
            function = held.row[_FUNCTION]
            known = self._unknown_functions.pop(function, None) or _Unknown(now)
            self._unknown_functions[function] = known  # as the last
            known.released = now
            if outcome is None:
                continue
            if outcome.unknown == "function":
                known.found_missing = now
            if now - known.told >= TELL_AGAIN or function in news:
                known.told = now
                news.setdefault(function, (outcome.summary, []))[1].append(str(held.told()))
        for function, (error, keys) in news.items():
            self._tell(signals.jobs_unknown, function=function, jobs=keys, error=error)

    def _is_free(self, key: Claim) -> bool:
        """Whether its row was not found locked of late."""
        return key not in self._busy or self._busy[key][0] <= time.monotonic()

    def _leave_alone(self, key: Claim, *, seconds: float | None = None) -> None:
        """Try its row again later, and later each time; or in so many seconds."""
        pause = seconds or min(self._busy.get(key, (0, FIRST_AGAIN / 2))[1] * 2, LONGEST_AGAIN)
        self._busy[key] = (time.monotonic() + pause, pause)

    def _unless_refused(self, ask: Callable[[], Any]) -> Any:
        """What it gives; None while somebody locks the table, or when PostgreSQL cancels it."""
        try:
            return ask()
        except DatabaseError as error:
            self._bear(error)
        return None

    def _bear(self, error: Exception) -> None:
        """Of a statement that was cancelled only say so; raise what is anything else."""
        refusal = refusal_of(error)
        if refusal is Refusal.TOO_LONG:
            self._tell_refused(error)
            survive(self.using)
        elif refusal not in PASSING:
            raise error

    def _written(self, kind: str, keys: Sequence[Claim], write: Callable[[Sequence[Claim], bool], Written]) -> Written:
        """Write for these jobs, in statements of a size that PostgreSQL bears. `busy` are all that are to be tried again.

        What it refuses of one job alone is among them, and `refused` says why.
        """
        answer, size, todo = Written(), self._sizes[kind], list(keys)
        while todo:
            batch = todo[: size.most]
            try:
                # Where a lock is known of, not even its time-out is waited for.
                written = write(batch, not any(key in self._busy for key in batch))
            except DatabaseError as error:
                self._bear(error)
                size.shrink(len(batch))
                for key in todo:  # soon, but what else the loop has to do comes first
                    self._leave_alone(key, seconds=FIRST_AGAIN)
                answer.busy.update(pk for pk, _ in todo)
                break
            size.grow(len(batch))
            answer.update(written)
            answer.refused.update(written.refused)
            answer.busy |= written.busy | written.refused.keys()
            for key in batch:
                if key[0] in answer.busy:
                    self._leave_alone(key)
                else:
                    self._busy.pop(key, None)
            del todo[: len(batch)]
        for why in answer.refused.values():
            self._tell_refused(why)
        return answer

    def _write(self) -> None:
        """Write outcomes, one commit for all. They are kept until that succeeds: a lost database loses none."""
        if not self._outcomes:
            return
        if self._progress:
            self._write_progress()
        for batch in self._batches():
            self._finish(batch)

    def _batches(self) -> Iterator[dict[Claim, tuple[Held, Outcome]]]:
        """Outcomes for one statement each: not too large together; one that was cancelled before goes alone."""
        batch: dict[Claim, tuple[Held, Outcome]] = {}
        characters = 0
        for held, outcome in list(self._outcomes):
            if self._busy and not self._is_free(held.key):
                continue
            length = len(outcome.result or "")
            alone = held.key in self._cancelled
            if batch and (alone or characters + length > LARGEST_MESSAGE or len(batch) >= self._sizes["finish"].most):
                yield batch
                batch, characters = {}, 0
            batch[held.key] = (held, outcome)
            characters += length
            if alone:
                yield batch
                batch, characters = {}, 0
        if batch:
            yield batch

    def _finish(self, batch: dict[Claim, tuple[Held, Outcome]]) -> None:
        outcomes = {key: outcome for key, (_, outcome) in batch.items()}
        written = self._written(
            "finish",
            list(batch),
            lambda keys, wait: self._claims.finish([(key, outcomes[key]) for key in keys], wait=wait),
        )
        self._wrote = time.monotonic()
        for key, (held, outcome) in batch.items():
            if error := written.refused.get(key[0]):
                self._refused(key, outcome, error)
            elif key[0] not in written.busy:
                self._cancelled.pop(key, None)
                self._tell_outcome(held, outcome, written.get(key[0]))
        kept = written.busy
        self._outcomes = [each for each in self._outcomes if each[0].key not in batch or each[0].key[0] in kept]

    def _refused(self, key: Claim, outcome: Outcome, error: Exception) -> None:
        """PostgreSQL does not take this outcome: in its place the job FAILS, and says why.

        A statement that was cancelled may not be the outcome's fault: a person may have done it, or the server is slow. So it
        is tried again, alone, and blamed only if the row itself can be written to in the same moment.
        """
        if refusal_of(error) is not Refusal.TOO_LONG:
            if _replace(outcome, str(error)):
                self._busy.pop(key, None)  # at once
            return
        survive(self.using)
        if key[0] in self._claims.renew([key]):
            self._cancelled[key] = self._cancelled.get(key, 0) + 1
        else:
            self._cancelled.setdefault(key, 0)
        self._leave_alone(key, seconds=LONGEST_AGAIN)
        if self._cancelled[key] >= MOST_CANCELLED:
            what = (
                f"result of {_size(len(outcome.result))}" if outcome.result else f"error of {_size(len(outcome.error))}"
            )
            why = f"its {what} could not be stored within the server's statement_timeout ({described(error)})"
            if _replace(outcome, why):
                del self._cancelled[key]
                self._busy.pop(key, None)

    def _write_starts(self) -> None:
        now = time.monotonic()
        ages = {
            held.key: now - held.started
            for held in self._held.values()
            if not (held.begun or held.lost)
            and held.started is not None
            and now - held.started >= BEGIN_AFTER
            and (not self._busy or self._is_free(held.key))
        }
        if ages:
            begun = self._written(
                "begin", list(ages), lambda keys, wait: self._claims.begin({key: ages[key] for key in keys}, wait=wait)
            )
            self._check_held(ages, begun)
            for key in ages:
                held = self._held[key]
                held.begun = key[0] not in begun.busy
                if held.begun and not held.lost:
                    self._tell_start(held)

    def _write_progress(self) -> None:
        said = {key: value for key, value in self._progress.items() if self._is_free(key)}
        written = self._written(
            "progress",
            list(said),
            lambda keys, wait: self._claims.progress({key: said[key] for key in keys}, wait=wait),
        )
        for key in said:
            if key[0] in written.refused:  # it is only progress: not worth a second try, and no outcome waits for it
                self._busy.pop(key, None)
            if key[0] not in written.busy or key[0] in written.refused:
                del self._progress[key]

    def _renew(self) -> None:
        now = time.monotonic()  # before the statement: for ourselves the lease ends rather too early
        ended = [held for held, _ in [*self._outcomes, *self._unknown]]  # and that is yet to be written
        running = [held for held in self._held.values() if not held.lost]
        renewed = self._written(
            "renew", [held.key for held in [*running, *ended]], lambda keys, wait: self._claims.renew(keys, wait=wait)
        )
        self._check_held([held.key for held in running], renewed)
        for held in running:
            if held.key[0] in renewed:
                held.lease_ends = now + self._lease
        # Before others look twice at what somebody has locked until now.
        self._time_to_renew.again(min(FIRST_AGAIN * 2, self._lease / 12) if renewed.busy else self._lease / 4)

    def _check_held(self, keys: Iterable[Claim], still: Written) -> None:
        for key in keys:
            if key[0] not in still and key[0] not in still.busy:
                self._lose(self._held[key])

    def _hand_back(self, back: Iterable[Held]) -> None:
        """These, and those that could not be handed back before."""
        self._to_hand_back += [held for held in back if held not in self._to_hand_back]
        if not self._to_hand_back:
            return
        self._to_hand_back = [held for held in self._to_hand_back if held.key in self._held and not held.lost]
        mine = [held for held in self._to_hand_back if self._is_free(held.key)]
        returned = self._written(
            "hand back", [held.key for held in mine], lambda keys, wait: self._claims.hand_back(keys, wait=wait)
        )
        done = [held for held in mine if held.key[0] not in returned.busy]
        for held in done:
            del self._held[held.key]
        self._to_hand_back = [held for held in self._to_hand_back if held.key in self._held]
        started = [str(held.told()) for held in done if held.started is not None and held.key[0] in returned]
        if started:
            self._tell(signals.jobs_handed_back, jobs=started)

    def _is_settled(self) -> bool:
        """Whether all it has claimed is finished or handed back."""
        return not (self._held or self._outcomes or self._unknown)

    def _tell_unsettled(self) -> None:
        """What could not be said to the database at the end."""
        left = [held for held in self._held.values() if not held.lost]
        left += [held for held, _ in [*self._outcomes, *self._unknown]]
        self.unsettled = [str(held.told()) for held in left]
        if self.unsettled:
            self._tell(signals.jobs_unsettled, jobs=self.unsettled)

    def _settle_in_time(self, ends: float) -> None:
        while not self._hurried and (left := ends - time.monotonic()) > 0:
            if self._try(self._settle) and self._is_settled():
                return
            self.bell.wait(min(left, AWAY))
        # The time is over. Two tries: the connection at hand may be dead without a word, and the next one is new.
        with limits_for(self.using, connect_timeout=LAST_CONNECT):
            if not self._try(self._settle):
                self._try(self._settle)

    def _settle(self) -> None:
        """The last things said: outcomes, and what others are to run. No pause is waited for any more."""
        self._busy = {key: (float("-inf"), pause) for key, (_, pause) in self._busy.items()}
        if self._children is not None:
            self._release_unknown(self._children)
        self._write()
        self._hand_back(list(self._held.values()))
        for key in [key for key, held in self._held.items() if held.lost]:
            del self._held[key]
        self._process.end(using=self.using)

    # -- when

    def _lingers(self) -> float:
        return self._wrote + LINGER - time.monotonic() if self._outcomes or self._rung else 0

    def _until_next(self) -> float:
        now = time.monotonic()
        # However long a poll is, leases are renewed in time.
        times = [now + min(conf.current().POLL_INTERVAL, self._lease / 3)]
        if not self._is_settled():
            times.append(self._time_to_renew.next)
        if self._outcomes and (not self._busy or any(self._is_free(held.key) for held, _ in self._outcomes)):
            times.append(now + LINGER)
        if self._claims_soon:
            times.append(self._found_none + LINGER)
        if self._claims_at_once:
            times.append(now)
        times += [at for at in (self._claim_again, *self._until_free()) if at > now]
        for held in self._held.values():
            if held.stopped is not None:
                times += [at for at in self._end_of_patience(held.stopped) if at > now]
            elif held.deadline is not None:
                times.append(held.deadline)
            if held.started is not None and not (held.begun or held.lost) and held.key not in self._busy:
                times.append(held.started + BEGIN_AFTER)
        return max(min(times) - now, 0)

    def _until_free(self) -> list[float]:
        """When rows that were found locked are to be tried again."""
        if self._busy:
            waiting = {held.key for held, _ in [*self._outcomes, *self._unknown]} | self._held.keys()
            self._busy = {key: busy for key, busy in self._busy.items() if key in waiting}
        return [until for until, _ in self._busy.values()]

    # -- who is told

    def _tell_refused(self, error: Exception) -> None:
        if self._time_to_tell_refused():
            self._tell(signals.statement_refused, error=described(error))

    def _tell(self, signal: Signal, **event: Any) -> None:
        self._teller.send(signal, **event)

    def _tell_start(self, held: Held) -> None:
        if not held.start_told:
            held.start_told = True
            self._tell(signals.job_started, job=held.told())

    def _tell_outcome(self, held: Held, outcome: Outcome, finished: Finished | None) -> None:
        if finished is None:
            self._tell(signals.lease_lost, job_id=held.key[0])
            return
        self._tell_start(held)
        status = finished.status
        told: Any = held.told(
            status=status, error=outcome.error, exception=outcome.exception, started_at=finished.started_at
        )
        signal, event = event_of(told, held.row[_ATTEMPT], outcome, status)
        self._tell(signal, **event)
        if status in (Status.FAILED, Status.CANCELLED) and not outcome.told:
            self._teller.do(functools.partial(finished_elsewhere, told, outcome.seconds))


def _replace(outcome: Outcome, why: str) -> bool:
    """Have it say why it cannot be stored; less the second time, should that be refused, too. Whether it says anything else now."""
    short = "the outcome cannot be stored"
    text = short if outcome.error.startswith(short) else f"{short}: {why}"
    if (outcome.status, outcome.error) == (Status.FAILED, text):
        return False
    outcome.status, outcome.result, outcome.exception = Status.FAILED, None, ""
    outcome.error = outcome.summary = text
    return True


def _size(characters: int) -> str:
    return f"{characters / 1e6:.0f} MB" if characters >= 1e6 else f"{characters / 1e3:.1f} kB"
