"""The auditor: works out from the definitions which due times there were, and compares row by row with what is on record.

It shares nothing with what it judges: its own arithmetic for intervals, the minute-by-minute oracle for cron, and for what
was declared when, a log that the harness's own trigger wrote.
"""

import bisect
import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from zoneinfo import ZoneInfo

from tests import cron_oracle
from tests.chaos.evidence import Event, Evidence, Row, Standing

MINUTE = dt.timedelta(minutes=1)
INSTANT = dt.timedelta(microseconds=1)
BY_MISFIRE = "misfire: "
BY_OVERLAP = "overlap: "


@dataclass
class Verdict:
    """What is wrong, each in a sentence; and counts of what there was."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)  # a due time that no definition has, or one inside a pause
    stuck: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # against its policy or its attempts, or without its effect
    counts: Counter[str] = field(default_factory=Counter)
    lateness: list[float] = field(default_factory=list)  # seconds, of what was to run
    latest: str = ""  # which was the worst

    KINDS = ("lost", "doubled", "extra", "stuck", "wrong")

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
    for name, history in events.items():
        found = expected(history, standing.get(name), evidence.ended_at)
        verdict.counts["expected"] += len(found.required)
        verdict.counts["at a boundary"] += len(found.optional)
        verdict.counts["cut off"] += len(found.cut)
        scheduled = [row for row in rows[name] if row.kind == "scheduled"]
        _compare(verdict, name, found, scheduled)
        _judge_policies(verdict, found, scheduled)
        _judge_triggers(verdict, history, standing.get(name), [row for row in rows[name] if row.kind == "trigger"])
        _judge_standing(verdict, history, standing.get(name), evidence.ended_at)
    for name in rows.keys() - events.keys():
        verdict.extra.append(f"{name!r}: {len(rows[name])} jobs of a schedule that never was")
    _judge_keys(verdict, evidence.rows)
    _judge_effects(verdict, evidence)
    return verdict


# -- which due times there were


def expected(history: list[Event], standing: Standing | None, ended_at: dt.datetime) -> Expected:
    found = Expected()
    said: Event | None = None  # what it says while it fires
    after = opened = ended_at
    for number, event in enumerate(history):
        if said is not None and said.rule == event.rule and event.fires:
            said = event if event.cron or event.interval is not None else said  # no due time moves
            continue
        if said is not None:
            following = history[number + 1] if number + 1 < len(history) else None
            _close(found, said, after, event, following)
            said = None
        if event.fires:
            said, after, opened = event, *_opening(history, number)
            found.optional |= set(due_times(event, opened, after))
    if said is not None and standing is not None:
        end = standing.next_run_at or ended_at + INSTANT
        found.required.update(dict.fromkeys(due_times(said, after, end - INSTANT), said))
    found.optional -= found.required.keys()
    found.cut -= found.required.keys() | found.optional
    return found


def _close(found: Expected, said: Event, after: dt.datetime, event: Event, following: Event | None) -> None:
    """It fires no more as it did: up to `before` each due time was a tick's to record, from there on no tick came to it."""
    reached = event.before or event.at
    found.required.update(dict.fromkeys(due_times(said, after, reached - INSTANT), said))
    found.cut |= set(due_times(said, reached - INSTANT, event.at))
    if following is not None and following.fires and event.what == "update" and following.began == event.began:
        # A new rule, by a sync: the due time that had passed is not lost, and the new rule follows after it.
        if reached <= event.began:
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


# -- what became of the jobs


def _judge_effects(verdict: Verdict, evidence: Evidence) -> None:
    for row in evidence.rows:
        began, done, sent = evidence.began.get(row.id, 0), evidence.done.get(row.id, 0), evidence.sent.get(row.id, 0)
        verdict.counts[f"jobs {row.status}"] += 1
        verdict.counts["runs begun"] += began
        verdict.counts["runs more than attempts"] += max(began - row.max_attempts, 0)
        verdict.counts["sent again"] += max(sent - 1, 0)
        # What came after the end of all faults, nobody need have handed over.
        if row.status == "RUNNING" or (
            row.status == "READY" and (row.due_at or evidence.ended_at) <= evidence.ended_at
        ):
            verdict.stuck.append(f"{row.key} is {row.status}, with nobody left to run it")
        if row.status == "SUCCESSFUL" and not done:
            verdict.wrong.append(f"{row.key} is SUCCESSFUL, and did nothing")
        if row.status == "FORWARDED" and not sent:
            verdict.wrong.append(f"{row.key} is FORWARDED, and was never sent")
        if row.status == "SKIPPED" and began + sent:
            verdict.wrong.append(f"{row.key} is SKIPPED, and ran")
        if row.status == "FAILED" and row.attempt < row.max_attempts:
            verdict.wrong.append(f"{row.key} is FAILED after {row.attempt} of {row.max_attempts} attempts")
        if row.status != "FORWARDED" and row.attempt > row.max_attempts:
            verdict.wrong.append(f"{row.key} was tried {row.attempt} times of {row.max_attempts}")
        if began > row.claims:
            verdict.wrong.append(f"{row.key} ran {began} times, and was claimed {row.claims} times")
    known = {row.id for row in evidence.rows}
    for job in (evidence.began.keys() | evidence.sent.keys()) - known:
        verdict.wrong.append(f"job {job} ran, and has no row")


def _text(instant: dt.datetime | None) -> str:
    return "never" if instant is None else instant.astimezone(dt.UTC).isoformat(timespec="microseconds")
