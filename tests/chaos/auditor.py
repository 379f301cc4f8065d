"""The auditor: works out from the definitions which due times there were, and compares row by row with what is on record.

It shares nothing with what it judges: its own arithmetic for intervals, the minute-by-minute oracle for cron, and for what
was declared when, a log that the harness's own trigger wrote. What is irregular must be explained by a fault that is on record:
a run too many, or an attempt without a run, by one that hit the very process that held the job; what is late, by any fault.
"""

import bisect
import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from zoneinfo import ZoneInfo

from tests import cron_oracle
from tests.chaos.evidence import Event, Evidence, Row, Standing
from tests.chaos.explanations import SLACK, Explanations
from tests.chaos.records import History, histories, judge_effects, judge_record

MINUTE = dt.timedelta(minutes=1)
INSTANT = dt.timedelta(microseconds=1)
BY_MISFIRE = "misfire: "
BY_OVERLAP = "overlap: "
# Seconds outside of faults.
LATEST = 6.0  # from a due time until it is on record
LONGEST_WAIT = 15.0  # until a job that waits, or that a worker holds, begins
CHANGING = dt.timedelta(seconds=1)  # from the look at the clock until a new rule is written


@dataclass
class Verdict:
    """What is wrong, each in a sentence; and counts of what there was."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)  # a due time that no definition has, or one inside a pause
    stuck: list[str] = field(default_factory=list)
    starved: list[str] = field(default_factory=list)  # waited for long, outside of faults
    wrong: list[str] = field(
        default_factory=list
    )  # against its policy or its attempts, without its effect, late without a fault
    counts: Counter[str] = field(default_factory=Counter)
    lateness: list[float] = field(default_factory=list)  # seconds, of what was to run
    latest: str = ""  # which was the worst

    KINDS = ("lost", "doubled", "extra", "stuck", "starved", "wrong")

    @property
    def clean(self) -> bool:
        return not any(getattr(self, kind) for kind in self.KINDS)

    @property
    def worst(self) -> float:
        return max(self.lateness, default=0)

    def percentile(self, share: float) -> float:
        return sorted(self.lateness)[int(share * (len(self.lateness) - 1))] if self.lateness else 0


@dataclass
class Expected:
    """The due times of one schedule: those that must be on record, and those at a boundary, which may be."""

    required: dict[dt.datetime, Event] = field(default_factory=dict)  # with what it said then
    optional: set[dt.datetime] = field(default_factory=set)
    cut: set[dt.datetime] = field(default_factory=set)  # due and not yet seen when a pause, delete or new rule came


def audit(evidence: Evidence) -> Verdict:
    verdict = Verdict()
    events: dict[str, list[Event]] = defaultdict(list)
    for event in evidence.events:
        events[event.name].append(event)
    standing = {row.name: row for row in evidence.standing}
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in evidence.rows:
        rows[row.name].append(row)
    faults = Explanations(evidence.hits)
    records = histories(evidence)
    for name, history in events.items():
        found = expected(history, standing.get(name), evidence.ended_at, faults)
        verdict.counts["expected"] += len(found.required)
        verdict.counts["at a boundary"] += len(found.optional)
        verdict.counts["cut off"] += len(found.cut)
        scheduled = [row for row in rows[name] if row.kind == "scheduled"]
        _compare(verdict, name, found, scheduled)
        _judge_lateness(verdict, scheduled, faults, evidence.patience * LATEST)
        _judge_policies(verdict, found, scheduled)
        _judge_overlaps(verdict, found, scheduled, rows[name], records, evidence.ended_at)
        _judge_triggers(verdict, history, standing.get(name), [row for row in rows[name] if row.kind == "trigger"])
        _judge_standing(verdict, history, standing.get(name), evidence.ended_at)
    for name in rows.keys() - events.keys() - {""}:  # odd jobs are of no schedule
        verdict.extra.append(f"{name!r}: {len(rows[name])} jobs of a schedule that never was")
    _judge_keys(verdict, evidence.rows)
    for record in records.values():
        judge_record(verdict, record, faults, evidence.ended_at)
    judge_effects(verdict, evidence, records, faults)
    _judge_waits(verdict, records, faults, evidence.patience * LONGEST_WAIT)
    return verdict


# -- which due times there were


def expected(
    history: list[Event], standing: Standing | None, ended_at: dt.datetime, faults: Explanations | None = None
) -> Expected:
    found = Expected()
    faults = faults or Explanations([])
    said: Event | None = None  # what it says while it fires
    after = opened = ended_at
    for number, event in enumerate(history):
        if said is not None and said.rule == event.rule and event.fires:
            said = event if event.cron or event.interval is not None else said  # no due time moves
            continue
        if said is not None:
            following = history[number + 1] if number + 1 < len(history) else None
            _close(found, said, after, event, following, faults)
            said = None
        if event.fires:
            said, after, opened = event, *_opening(history, number)
            found.optional |= set(due_times(event, opened, after))
    if said is not None and standing is not None:
        once = said.next_run_at if not said.cron and said.interval is None else None
        end = standing.next_run_at or max(ended_at, once or ended_at) + INSTANT
        found.required.update(dict.fromkeys(due_times(said, after, end - INSTANT), said))
    found.optional -= found.required.keys()
    found.cut -= found.required.keys() | found.optional
    return found


def _close(
    found: Expected,
    said: Event,
    after: dt.datetime,
    event: Event,
    following: Event | None,
    faults: Explanations,
) -> None:
    """It fires no more as it did: up to `before` each due time was a tick's to record, from there on no tick came to it."""
    reached = event.before or event.at
    found.required.update(dict.fromkeys(due_times(said, after, reached - INSTANT), said))
    found.cut |= set(due_times(said, reached - INSTANT, event.at))
    if following is not None and following.fires and event.what == "update" and following.began == event.began:
        # A new rule, by a sync: the due time that had passed is not lost, and the new rule follows after it. It had passed
        # if it did so before the sync looked at the clock, which it does when it has its locks, however long it waited.
        looked = event.began if faults.held_up(event.began, event.at) else max(event.began, event.at - CHANGING)
        if reached <= looked:
            found.required[reached] = said
        elif reached <= event.at:
            found.optional.add(reached)


def _opening(history: list[Event], number: int) -> tuple[dt.datetime, dt.datetime]:
    """From when on each due time is to be recorded; and from when on it may be."""
    event = history[number]
    if event.what == "insert":
        created = event.created_at or event.at
        return created, created
    opened = number
    while history[opened].what != "insert" and not history[opened - 1].fires and not history[opened - 1].paused:
        opened -= 1  # where it was resumed or redefined: then a tick, or the second statement of a sync, planned it
    first = history[opened]
    redefined = opened > 0 and history[opened - 1].fires and first.began == event.began
    if redefined and first.before is not None and first.before <= first.began:
        return first.before, first.before
    return event.at, first.began


def due_times(said: Event, after: dt.datetime, until: dt.datetime) -> list[dt.datetime]:
    """By the definition alone: after the one instant, and not after the other."""
    if until <= after:
        return []
    if said.cron:
        first, last = after.replace(second=0, microsecond=0), until.replace(second=0, microsecond=0) + MINUTE
        every = cron_oracle.due_times(said.cron, ZoneInfo(said.timezone), first, last)
        return [due for due in every if after < due <= until]
    if said.interval is None:
        return [said.next_run_at] if said.next_run_at and after < said.next_run_at <= until else []
    return list(_grid(said, after, until))


def _grid(said: Event, after: dt.datetime, until: dt.datetime) -> Iterator[dt.datetime]:
    assert said.anchor_at is not None
    assert said.interval is not None
    step = dt.timedelta(seconds=said.interval)
    # (The instant of creation, where most grids hang, is never after itself, and so no due time.)
    number = max((after - said.anchor_at) // step + 1, 0)
    while (due := said.anchor_at + number * step) <= until:
        yield due
        number += 1


# -- row by row


def _compare(verdict: Verdict, name: str, found: Expected, rows: list[Row]) -> None:
    covered: Counter[dt.datetime] = Counter()
    known = sorted(found.required.keys() | found.optional)
    for row in rows:
        assert row.due_at is not None
        ends = [row.due_at] if row.until is None else [row.due_at, row.until]
        for end in ends:
            if end not in found.required and end not in found.optional:
                verdict.extra.append(f"{name!r} has a row for {_text(end)}, which is no due time of it")
        if row.until is None:
            covered[row.due_at] += 1
        else:
            span = known[bisect.bisect_left(known, row.due_at) : bisect.bisect_right(known, row.until)]
            covered.update(span)
            verdict.counts["within a skipped run"] += len(span)
        _count(verdict, row)
    for due in found.required:
        if not covered[due]:
            verdict.lost.append(f"{name!r} has no row for {_text(due)}")
    verdict.doubled += [f"{name!r} has {n} rows for {_text(due)}" for due, n in covered.items() if n > 1]


def _count(verdict: Verdict, row: Row) -> None:
    assert row.due_at is not None
    verdict.counts["rows"] += 1
    if row.status == "SKIPPED":
        verdict.counts["rows skipped"] += 1
        return
    if row.enqueued_at is not None:
        late = (row.enqueued_at - row.due_at).total_seconds()
        if late < 0:
            verdict.extra.append(f"{row.key} was recorded {-late:.3f} s before it was due")
        if late > verdict.worst:
            verdict.latest = row.key
        verdict.lateness.append(late)


def _judge_lateness(verdict: Verdict, rows: list[Row], faults: Explanations, most: float) -> None:
    for row in rows:
        assert row.due_at is not None
        if row.enqueued_at is not None and (late := faults.outside(row.due_at, row.enqueued_at)) > most:
            verdict.wrong.append(f"{row.key} was recorded late: for {late:.1f} s there was no fault to explain that")


def _judge_overlaps(
    verdict: Verdict,
    found: Expected,
    scheduled: list[Row],
    every: list[Row],
    records: dict[str, History],
    ended_at: dt.datetime,
) -> None:
    """What was skipped for an earlier job: that job existed, and was open when the tick looked."""
    for row in scheduled:
        if row.status != "SKIPPED" or not row.reason.startswith(BY_OVERLAP) or row.enqueued_at is None:
            continue
        said = found.required.get(row.due_at) if row.due_at else None
        waiting_only = said is not None and said.overlap == "BUFFER_ONE"
        inserted_at = records[row.id].inserted_at if row.id in records else None
        since, until = row.enqueued_at - SLACK, (inserted_at or row.enqueued_at) + SLACK
        if not any(
            other.id != row.id
            and other.status != "SKIPPED"
            and _was_open(other, records.get(other.id), since, until, ended_at, waiting_only=waiting_only)
            for other in every
        ):
            verdict.wrong.append(f"{row.key} was skipped for an earlier job, and none was open: {row.reason!r}")


def _was_open(
    row: Row,
    record: History | None,
    since: dt.datetime,
    until: dt.datetime,
    ended_at: dt.datetime,
    *,
    waiting_only: bool,
) -> bool:
    if record is None:
        began, ended = row.enqueued_at or row.due_at, row.finished_at or ended_at
        return began is not None and began <= until and ended >= since
    return any(
        began <= until and (ended is None or ended >= since)
        for status, began, ended in record.open
        if status == "READY" or not waiting_only
    )


def _judge_waits(verdict: Verdict, records: dict[str, History], faults: Explanations, most: float) -> None:
    for record in records.values():
        for since, until, what in record.waits:
            if (waited := faults.outside(since, until)) > most:
                verdict.starved.append(f"job {record.job} {what}: {waited:.1f} s of that without a fault")


def _judge_policies(verdict: Verdict, found: Expected, rows: list[Row]) -> None:
    fired = {(row.due_at, row.enqueued_at) for row in rows if row.until is None}
    known = sorted(found.required.keys() | found.optional)
    for row in rows:
        said = found.required.get(row.due_at) if row.due_at else None
        if said is None or row.status != "SKIPPED" or row.due_at is None or row.enqueued_at is None:
            continue
        grace = dt.timedelta(seconds=said.misfire_grace)
        if row.reason.startswith(BY_MISFIRE):
            assert row.until is not None
            if said.misfire == "ALL":
                verdict.wrong.append(f"{row.key} was dropped as a misfire, and its policy is ALL")
            elif said.misfire == "SKIP" and row.until >= row.enqueued_at - grace:
                verdict.wrong.append(f"{row.key}: dropped up to {_text(row.until)}, which was still within its grace")
            elif said.misfire == "LATEST":
                if row.due_at >= row.enqueued_at - grace:
                    verdict.wrong.append(f"{row.key} was dropped as a misfire within its grace")
                after = bisect.bisect_right(known, row.until)
                if after < len(known) and (known[after], row.enqueued_at) not in fired:
                    verdict.wrong.append(f"{row.key}: what it dropped was not made up for by {_text(known[after])}")
        elif row.reason.startswith(BY_OVERLAP) and said.overlap == "ALLOW":
            verdict.wrong.append(f"{row.key} was skipped for an overlap, and its policy is ALLOW")
        elif not row.reason.startswith(BY_OVERLAP):
            verdict.wrong.append(f"{row.key} was skipped for no reason that it could have: {row.reason!r}")


def _judge_triggers(verdict: Verdict, history: list[Event], standing: Standing | None, rows: list[Row]) -> None:
    asked = {event.triggered_at for event in history if event.triggered_at is not None}
    # Who deletes a schedule takes back what was asked of it.
    taken_back = {event.triggered_at for event in history if event.what == "delete"}
    made = Counter(row.due_at for row in rows)
    verdict.counts["triggers"] += len(asked)
    name = history[0].name
    for due in asked:
        if not made[due] and due not in taken_back:
            open_still = standing is not None and standing.triggered_at == due
            (verdict.stuck if open_still else verdict.lost).append(f"{name!r}: no row for its trigger at {_text(due)}")
    for due, n in made.items():
        if n > 1:
            verdict.doubled.append(f"{name!r}: {n} rows for its trigger at {_text(due)}")
        if due not in asked:
            verdict.extra.append(f"{name!r}: nobody asked for its trigger at {_text(due)}")


def _judge_standing(verdict: Verdict, history: list[Event], row: Standing | None, ended_at: dt.datetime) -> None:
    last = history[-1]
    if row is None:
        if last.what != "delete":
            verdict.lost.append(f"{last.name!r}: the schedule is gone, and nobody deleted it")
        return
    if row.error:
        verdict.stuck.append(f"{row.name!r} is set aside: {row.error}")
    elif row.replan and not row.paused:
        verdict.stuck.append(f"{row.name!r} is yet to be planned")
    elif not row.paused and (last.cron or last.interval is not None):
        if row.next_run_at is None or row.next_run_at <= ended_at:
            verdict.stuck.append(f"{row.name!r} is due at {_text(row.next_run_at)}, which has passed")
        elif row.next_run_at not in due_times(last, row.next_run_at - INSTANT, row.next_run_at):
            verdict.extra.append(f"{row.name!r} is planned for {_text(row.next_run_at)}, which is no due time of it")


def _judge_keys(verdict: Verdict, rows: Iterable[Row]) -> None:
    keys = Counter(row.key for row in rows)
    verdict.doubled += [f"{n} jobs have the key {key}" for key, n in keys.items() if n > 1]


def _text(instant: dt.datetime | None) -> str:
    return "never" if instant is None else instant.astimezone(dt.UTC).isoformat(timespec="microseconds")
