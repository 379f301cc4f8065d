"""What became of each job: its claims, runs and waits, from the record that a trigger of the harness wrote and from the ledger."""

import datetime as dt
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tests.chaos.evidence import Act, Change, Event, Evidence, Row, Run
from tests.chaos.explanations import SLACK, Explanations

OPEN = ("READY", "RUNNING")
ENDED = ("SUCCESSFUL", "FAILED", "CANCELLED", "SKIPPED")
MOST_FALSE_STARTS = 10  # of a job that is lost before it begins: docs/concepts/leases.md


class Findings(Protocol):
    lost: list[str]
    doubled: list[str]
    stuck: list[str]
    wrong: list[str]
    counts: Counter[str]


@dataclass
class Held:
    """One claim of a job, from its beginning to its end."""

    number: int
    worker: int | None
    at: dt.datetime
    ended: Change | None = None
    runs: list[Run] = field(default_factory=list)

    def ended_at(self, otherwise: dt.datetime) -> dt.datetime:
        return self.ended.at if self.ended else otherwise

    @property
    def gave_back(self) -> bool:
        """Whether its end took the attempt back."""
        return self.ended is not None and self.ended.attempt < (self.ended.attempt_before or 0)

    @property
    def was_taken(self) -> bool:
        """Whether another than its holder ended it."""
        return self.ended is not None and self.ended.by != self.worker


@dataclass
class History:
    job: str
    changes: list[Change]
    acts: list[Act] = field(default_factory=list)
    claims: dict[int, Held] = field(default_factory=dict)
    open: list[tuple[str, dt.datetime, dt.datetime | None]] = field(
        default_factory=list
    )  # READY and RUNNING, from, until
    waits: list[tuple[dt.datetime, dt.datetime, str]] = field(default_factory=list)

    @property
    def inserted_at(self) -> dt.datetime:
        return self.changes[0].at

    def asked(self, did: tuple[str, ...], before: dt.datetime) -> bool:
        return any(act.did in did and act.at <= before + SLACK for act in self.acts)

    def excused(self, faults: Explanations, ended_at: dt.datetime) -> set[int]:
        """The claims whose very holder a fault hit while it held them."""
        return {
            held.number
            for held in self.claims.values()
            if faults.of(held.worker, held.at, held.ended_at(max(ended_at, held.at)))
        }


def histories(evidence: Evidence) -> dict[str, History]:
    found: dict[str, History] = {}
    for change in evidence.changes:
        found.setdefault(change.job, History(change.job, [])).changes.append(change)
    for act in evidence.acts:
        if act.job in found:
            found[act.job].acts.append(act)
    for record in found.values():
        _follow(record)
    for run in evidence.runs:
        if run.job in found and run.claims in found[run.job].claims:
            found[run.job].claims[run.claims].runs.append(run)
    for record in found.values():
        for held in record.claims.values():
            record.waits += [(held.at, run.began, "was held before it began") for run in held.runs]
    return found


def _follow(record: History) -> None:
    """Its claims, and when it was open."""
    held: Held | None = None
    status, since, claims = None, record.inserted_at, 0
    for change in record.changes:
        if held is not None and held.ended is None and change.was == "RUNNING":
            held.ended = change if change.status != "RUNNING" or change.claims > held.number else None
        if change.claims > claims and change.status == "RUNNING":
            held = record.claims[change.claims] = Held(change.claims, change.worker, change.at)
        claims = change.claims
        if change.status != status:
            if status in OPEN:
                record.open.append((status, since, change.at))
            if status == "READY":
                record.waits.append((since, change.at, "waited"))
            status = change.status
            since = change.at
            if status == "READY" and change.run_at is not None:
                since = max(since, change.run_at)
    if status in OPEN:
        record.open.append((status, since, None))


def judge_record(verdict: Findings, record: History, faults: Explanations, ended_at: dt.datetime) -> None:
    """Each change of it was one that could be made."""
    name = f"job {record.job}"
    for change in record.changes:
        if change.status is None:
            if change.was in OPEN:
                verdict.lost.append(f"{name} was deleted while it was {change.was}")
        elif change.was in ENDED and change.status != change.was:
            if change.status != "READY":
                verdict.wrong.append(f"{name} was {change.was}, and became {change.status}")
            elif not record.asked(("retry",), change.at):
                verdict.wrong.append(f"{name} was {change.was}, and nobody asked for it to run again")
    excused = record.excused(faults, ended_at)
    for held in record.claims.values():
        end = held.ended
        if end is None:
            continue
        if end.status == "RUNNING":
            verdict.wrong.append(
                f"{name} was claimed by process {end.worker} while process {held.worker} held it (claim {held.number})"
            )
        elif held.was_taken and held.runs and held.number not in excused:
            verdict.wrong.append(f"{name} was taken from process {held.worker}, to which nothing had happened")
        elif held.gave_back and held.runs and held.number not in excused:
            verdict.wrong.append(
                f"{name} began under claim {held.number}, and its attempt was given back for no reason"
            )
        never_began = held.was_taken and not held.runs and end.prefetched
        false_starts = held.number - (end.attempt_before or 0)
        if never_began and not held.gave_back and end.status != "CANCELLED" and false_starts < MOST_FALSE_STARTS:
            verdict.wrong.append(f"{name} spent an attempt on claim {held.number}, under which it never began")


def judge_effects(verdict: Findings, evidence: Evidence, records: Mapping[str, History], faults: Explanations) -> None:
    acts = defaultdict(list)
    for act in evidence.acts:
        acts[act.job].append(act)
    deletes = [event for event in evidence.events if event.what == "delete"]
    runs = defaultdict(list)
    for run in evidence.runs:
        runs[run.job].append(run)
    for row in evidence.rows:
        record = records.get(row.id)
        excused = record.excused(faults, evidence.ended_at) if record else set()
        _count(verdict, row, evidence)
        _judge_status(verdict, row, evidence, len(excused))
        ended = {run.claims for run in runs[row.id] if run.ended is not None}
        if row.status == "FAILED" and row.claims in ended - excused:
            verdict.wrong.append(f"{row.key} ran to its end under its last claim, and is FAILED")
        _judge_doubles(verdict, row, evidence.done.get(row.id, 0), runs[row.id], record, excused)
        if row.status == "CANCELLED" and not _was_cancelled(row, acts[row.id], deletes):
            verdict.wrong.append(f"{row.key} is CANCELLED, and nobody cancelled it")
        if row.deleted_at is not None and (row.expires_at is None or row.deleted_at < row.expires_at):
            verdict.lost.append(f"{row.key} was deleted before its time to live was over")
    _judge_sends(verdict, evidence, faults)
    known = {row.id for row in evidence.rows}
    for job in (evidence.began.keys() | evidence.sent.keys()) - known:
        verdict.wrong.append(f"job {job} ran, and has no row")


def _was_cancelled(row: Row, acts: list[Act], deletes: list[Event]) -> bool:
    """By a person, or with its schedule."""
    at = row.finished_at
    return any(act.did in ("cancel", "force") and (at is None or act.at <= at + SLACK) for act in acts) or any(
        event.name == row.name and (at is None or event.began - SLACK <= at <= event.at + SLACK) for event in deletes
    )


def _count(verdict: Findings, row: Row, evidence: Evidence) -> None:
    began, sent = evidence.began.get(row.id, 0), evidence.sent.get(row.id, 0)
    verdict.counts[f"jobs {row.status}"] += 1
    verdict.counts["runs begun"] += began
    verdict.counts["runs more than attempts"] += max(began - row.max_attempts, 0)
    verdict.counts["sent again"] += max(sent - 1, 0)
    verdict.counts["rows deleted by clean-up"] += row.deleted_at is not None


def _judge_status(verdict: Findings, row: Row, evidence: Evidence, excused: int) -> None:
    began, done, sent = evidence.began.get(row.id, 0), evidence.done.get(row.id, 0), evidence.sent.get(row.id, 0)
    # What came after the end of all faults, nobody need have handed over.
    if row.status == "RUNNING" or (row.status == "READY" and (row.due_at or evidence.ended_at) <= evidence.ended_at):
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
    if row.status in ("SUCCESSFUL", "FAILED") and row.attempt - began > excused:
        verdict.wrong.append(f"{row.key} is {row.status} after {row.attempt} attempts, and began {began} times")
    if row.status in ("SUCCESSFUL", "FAILED") and began - row.attempt > excused:
        verdict.wrong.append(f"{row.key} began {began} times, and its attempts say {row.attempt}")


def _judge_doubles(
    verdict: Findings, row: Row, done: int, runs: list[Run], record: History | None, excused: set[int]
) -> None:
    """A job that ran to its end does not run again, unless its holder was hit before that was written, or a person asks."""
    ends = sorted(run.claims for run in runs if run.ended is not None)
    if len(ends) != done or record is None:  # there is no record of its runs: nothing explains them
        if done > 1:
            verdict.doubled.append(f"{row.key} ran to its end {done} times, and there is no record of why")
        return
    for number, following in itertools.pairwise(ends):
        held = record.claims.get(number)
        retried = held is not None and held.ended is not None and _retried(record, held.ended.at)
        if number == following or not (number in excused or retried):
            verdict.doubled.append(
                f"{row.key} ran to its end under claim {number} and under claim {following}, and no fault explains that"
            )


def _retried(record: History, after: dt.datetime) -> bool:
    return any(change.was in ENDED and change.status == "READY" and change.at >= after for change in record.changes)


def _judge_sends(verdict: Findings, evidence: Evidence, faults: Explanations) -> None:
    """A job is sent again only if whoever sent it was hit, or the database was away, before that was written."""
    sends = defaultdict(list)
    for send in evidence.sends:
        sends[send.job].append(send)
    for job, number in evidence.sent.items():
        if len(sends[job]) != number and number > 1:
            verdict.doubled.append(f"job {job} was sent {number} times, and there is no record of why")
        ordered = sorted(sends[job], key=lambda send: send.at)
        for first, second in itertools.pairwise(ordered):
            if not (faults.of(first.by, first.at, second.at) or faults.of_all(first.at, second.at)):
                verdict.doubled.append(f"job {job} was sent again by process {second.by}, and no fault explains that")
