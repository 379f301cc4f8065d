"""Hand-over: nothing is lost while an engine is away, and one that hangs holds up nobody else."""

import contextlib
import datetime as dt
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.db import connection, connections
from django.db.models import F

from pgwerk_django import handover, outbox, signals, targets
from pgwerk_django.handover import HandOver, Sender, hand_over, retry_delay
from pgwerk_django.housekeeping import recover_old
from pgwerk_django.jobs import pause_queue, resume_queue
from pgwerk_django.models import Job, Schedule, database_now
from pgwerk_django.outbox import Outbox
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.targets import ForeignTarget
from tests import django_tasks
from tests.time_travel import MINUTE, SECOND
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


class Fake(ForeignTarget):
    """An engine in this process, which a test makes fail and hang."""

    honours = frozenset()

    def __init__(self, name: str) -> None:
        self.name = name
        self.sent: list[str] = []
        self.failing: dict[str, Exception] = {}
        self.hanging: set[str] = set()
        self.gate = threading.Event()
        self.threads: set[str] = set()
        self.also = lambda job: None

    def function_problems(self, function: str) -> Iterator[str]:
        yield from ()

    def send(self, job: Job) -> str:
        self.threads.add(threading.current_thread().name)
        if job.key in self.failing:
            raise self.failing[job.key]
        if job.key in self.hanging:
            self.gate.wait(30)
        self.sent.append(job.key)
        self.also(job)
        return f"their-{job.key}"


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    fakes = {name: Fake(name) for name in ("apple", "pear")}
    for name, fake in fakes.items():
        monkeypatch.setitem(targets.TARGETS, name, fake)
    return fakes


@pytest.fixture
def apple(engines: dict[str, Fake]) -> Fake:
    return engines["apple"]


@pytest.fixture
def over() -> Iterator[HandOver]:
    one = HandOver("host:1", using="default")
    yield one
    one.close()


def put(*keys: str, target: str = "apple", **columns: Any) -> list[Job]:
    return [Job.objects.create(key=key, target=target, function="a.b", **columns) for key in keys]


def status(key: str) -> str:
    return Job.objects.get(key=key).status


def work(over: HandOver) -> None:
    over.step(Schedule.objects.all().look()[2])


# -- what goes well --------------------------------------------------------------------------------------------------


def test_each_job_is_handed_over_once_and_the_row_says_by_whom(apple: Fake) -> None:
    put("one", "two")
    put("later", run_at=database_now("default") + MINUTE)
    put("ours", target="worker")
    assert hand_over("host:1", using="default") == 2
    assert hand_over("host:1", using="default") == 0
    assert apple.sent == ["one", "two"]
    one = Job.objects.get(key="one")
    assert (one.status, one.external_id, one.worker_name, one.attempt) == ("FORWARDED", "their-one", "host:1", 1)
    assert (status("later"), status("ours")) == ("READY", "READY")


def test_the_higher_priority_goes_first(apple: Fake) -> None:
    put("low")
    put("high", priority=5)
    hand_over("host:1", using="default")
    assert apple.sent == ["high", "low"]


def test_many_schedulers_share_them(apple: Fake) -> None:
    keys = [f"{n}" for n in range(300)]
    put(*keys)
    threads = [
        threading.Thread(target=lambda: (hand_over("host", using="default"), connections.close_all())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(apple.sent) == sorted(keys)
    assert set(Job.objects.values_list("status", flat=True)) == {"FORWARDED"}


def test_a_paused_queue_holds_them(apple: Fake) -> None:
    put("one", queue="mail")
    pause_queue("mail")
    assert hand_over("host:1", using="default") == 0
    resume_queue("mail")
    assert hand_over("host:1", using="default") == 1


def test_a_schedule_with_one_waiting_skips_as_with_our_worker(scheduler: Scheduler, apple: Fake) -> None:
    row = scheduler.interval(60, "a.b", _target="apple", _name="s")
    for _ in range(2):
        Schedule.objects.update(next_run_at=database_now("default") - SECOND, replan=False)
        scheduler.tick()
    kinds = Job.objects.filter(schedule=row).order_by("due_at").values_list("status", flat=True)
    assert list(kinds) == ["READY", "SKIPPED"]


# -- what fails ------------------------------------------------------------------------------------------------------


def test_what_is_refused_waits_with_its_error_and_delays_no_other(engines: dict[str, Fake]) -> None:
    apple, pear = engines["apple"], engines["pear"]
    apple.failing["bad"] = ConnectionError("the broker is down\0")
    put("bad", "good")
    put("other", target="pear")
    assert hand_over("host:1", using="default") == 2
    assert (apple.sent, pear.sent) == (["good"], ["other"])
    bad = Job.objects.get(key="bad")
    assert (bad.status, bad.attempt, bad.exception) == ("READY", 1, "builtins.ConnectionError")
    assert "the broker is down" in bad.error
    assert bad.run_at > database_now("default")
    apple.failing.clear()
    Job.objects.update(run_at=database_now("default"))
    assert hand_over("host:1", using="default") == 1
    bad.refresh_from_db()
    assert (bad.status, bad.error, bad.attempt) == ("FORWARDED", "", 2)


def test_the_wait_doubles_up_to_a_minute() -> None:
    for attempt, ceiling in ((0, 1), (1, 2), (3, 8), (6, 60), (60, 60)):
        delays = [retry_delay(attempt) for _ in range(50)]
        assert all(ceiling / 2 <= delay <= ceiling for delay in delays)
        assert len(set(delays)) > 1  # not all at once


def test_what_has_failed_often_waits_longer(apple: Fake) -> None:
    put("bad", attempt=6)
    apple.failing["bad"] = ConnectionError("down")
    hand_over("host:1", using="default")
    job = Job.objects.get()
    assert (job.status, job.attempt) == ("READY", 7)
    assert job.run_at - database_now("default") > 25 * SECOND


def test_a_job_that_was_sent_expires_when_it_says(apple: Fake) -> None:
    put("one", result_ttl=10)
    hand_over("host:1", using="default")
    job = Job.objects.get()
    assert job.expires_at - job.finished_at == 10 * SECOND


def test_one_line_says_it_once(apple: Fake, caplog: pytest.LogCaptureFixture) -> None:
    put(*(f"{n}" for n in range(5)))
    apple.failing = {f"{n}": ConnectionError("down") for n in range(5)}
    assert hand_over("host:1", using="default") == 0
    (line,) = [record.getMessage() for record in caplog.records if "handover_failed" in record.getMessage()]
    assert "target=apple" in line
    assert 'error="ConnectionError: down"' in line


def test_a_target_that_cannot_even_be_reached_fails_all_of_its_own(
    engines: dict[str, Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    def connected(self: Fake) -> Any:
        raise targets.base.TargetUnavailable("nowhere") if self.name == "apple" else AssertionError

    put("one", "two")
    put("other", target="pear")
    monkeypatch.setattr(engines["apple"], "connected", lambda: connected(engines["apple"]))
    assert hand_over("host:1", using="default") == 1
    assert {job.attempt for job in Job.objects.filter(target="apple")} == {1}
    assert status("other") == "FORWARDED"


def test_a_target_of_newer_code_is_left_to_it(over: HandOver, caplog: pytest.LogCaptureFixture) -> None:
    put("new", target="fax")
    work(over)
    work(over)
    assert hand_over("host:1", using="default") == 0
    job = Job.objects.get()
    assert (job.status, job.claims, job.error) == ("READY", 0, "")
    over.close()
    assert sum("does not know" in record.getMessage() for record in caplog.records) == 1


# -- what hangs ------------------------------------------------------------------------------------------------------


def test_a_send_that_hangs_holds_up_neither_its_own_target_nor_others(engines: dict[str, Fake], over: HandOver) -> None:
    apple, pear = engines["apple"], engines["pear"]
    apple.hanging.add("stuck")
    put("stuck", *(f"{n}" for n in range(20)))
    put("other", target="pear")
    wait_until(lambda: (work(over), status("other") == "FORWARDED" and len(apple.sent) == 20)[1])
    assert pear.sent == ["other"]
    assert status("stuck") == "READY"
    apple.gate.set()
    wait_until(lambda: status("stuck") == "FORWARDED")
    assert sorted(apple.sent) == sorted(["stuck", *(f"{n}" for n in range(20))])
    assert set(Job.objects.values_list("attempt", "error")) == {(1, "")}  # to wait behind it was no failure


def test_a_slow_engine_leaves_others_something_to_send(apple: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is claimed than is sent in about a second."""
    claimed: list[int] = []
    claim = Outbox.claim

    def counted(self: Outbox, target: str, limit: int) -> list[Job]:
        claimed.append(limit)
        return claim(self, target, limit)

    monkeypatch.setattr(Outbox, "claim", counted)
    monkeypatch.setattr(handover, "BATCH_TAKES", 0.0)  # as if each took very long
    put(*(f"{n}" for n in range(handover.FIRST_BATCH + 2)))
    assert hand_over("host:1", using="default") == handover.FIRST_BATCH + 2
    assert claimed == [handover.FIRST_BATCH, 1, 1, 1]


def test_a_quick_engine_is_sent_more_at_a_time_up_to_a_limit(apple: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed: list[int] = []
    claim = Outbox.claim

    def counted(self: Outbox, target: str, limit: int) -> list[Job]:
        claimed.append(limit)
        return claim(self, target, limit)

    monkeypatch.setattr(Outbox, "claim", counted)
    monkeypatch.setattr(handover, "BATCH_TAKES", 1e6)  # as if each took no time
    put(*(f"{n}" for n in range(handover.FIRST_BATCH + 1)))
    hand_over("host:1", using="default")
    assert claimed == [handover.FIRST_BATCH, handover.BATCH, handover.BATCH]


def test_one_that_hangs_while_it_connects_is_told_on_the_rows(
    engines: dict[str, Fake], over: HandOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    apple = engines["apple"]

    @contextlib.contextmanager
    def connected() -> Iterator[Any]:
        apple.gate.wait(30)
        yield apple.send_all

    monkeypatch.setattr(handover, "STUCK", 0.05)
    monkeypatch.setattr(apple, "connected", connected)
    put("one", "two")
    put("other", target="pear")
    wait_until(lambda: (work(over), Job.objects.filter(target="apple").exclude(error="").count() == 2)[1])
    assert "could not be connected to" in Job.objects.get(key="one").error
    assert status("other") == "FORWARDED"
    apple.gate.set()
    wait_until(lambda: (work(over), len(apple.sent) == 2)[1])


def test_an_id_that_cannot_be_stored_is_no_reason_to_send_twice(apple: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apple, "send", lambda job: "a\0b\ud800" + "c" * 300)
    put("one")
    assert hand_over("host:1", using="default") == 1
    assert Job.objects.get().external_id.startswith("a\\0b?ccc")


def test_a_cancel_amid_a_transaction_takes_the_send_back() -> None:
    from django_tasks_db.models import DBTaskResult

    Job.objects.create(key="one", target="django_tasks", function="tests.django_tasks.database")
    own = Outbox("host:1", using="default")
    (job,) = own.claim("django_tasks", 10)
    job.cancel()
    sender = Sender("django_tasks", own)
    sender._todo.append(job)
    sender._send_some()
    assert (DBTaskResult.objects.count(), status("one")) == (0, "CANCELLED")


def test_what_is_being_sent_is_not_skipped_when_its_time_to_start_is_over(apple: Fake, over: HandOver) -> None:
    """Its engine may have it already."""
    apple.hanging.add("one")
    put("one", "two", start_by=database_now("default") + MINUTE)
    try:
        wait_until(lambda: (work(over), apple.threads)[1])
        Job.objects.update(start_by=database_now("default") - SECOND)
        put("waits", start_by=database_now("default") - SECOND)
        assert Job.objects.all().skip_not_started(10) == 1
    finally:
        apple.gate.set()
    wait_until(lambda: (work(over), status("one") == status("two") == "FORWARDED")[1])
    assert status("waits") == "SKIPPED"


def test_no_more_than_a_few_threads_hang(apple: Fake, over: HandOver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "STUCK", 0.05)
    apple.hanging = {f"{n}" for n in range(10)}
    put(*apple.hanging)
    wait_until(lambda: (work(over), len([s for s in over._senders if s.is_stuck()]) == handover.MOST_SENDERS)[1])
    for _ in range(5):
        work(over)
    assert len(over._senders) == handover.MOST_SENDERS
    apple.gate.set()
    wait_until(lambda: (work(over), len(apple.sent) == 10)[1])
    assert len(set(apple.sent)) == 10


def test_its_lease_is_renewed_while_it_is_being_sent(apple: Fake, settings: Any) -> None:
    settings.PGWERK = {"LEASE": 5}
    apple.hanging.add("long")
    put("long")
    one, another = HandOver("host:1", using="default"), HandOver("host:2", using="default")
    try:
        wait_until(lambda: (work(one), apple.threads)[1])
        first = Job.objects.get().lease_until
        wait_until(lambda: (work(one), work(another), Job.objects.get().lease_until > first + SECOND)[2])
        apple.gate.set()
        wait_until(lambda: status("long") == "FORWARDED")
    finally:
        apple.gate.set()
        one.close()
        another.close()
    assert apple.sent == ["long"]


def test_whoever_stops_leaves_what_it_has_not_begun_to_others(apple: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "STOPS_WITHIN", 0.1)
    apple.hanging.add("stuck")
    put("stuck", "one", "two")
    over = HandOver("host:1", using="default")
    wait_until(lambda: (work(over), apple.threads)[1])
    over.close()
    apple.hanging.clear()
    assert hand_over("host:2", using="default") == 2
    assert sorted(apple.sent) == ["one", "two"]
    apple.gate.set()


# -- races -----------------------------------------------------------------------------------------------------------


def test_a_cancel_that_comes_too_late_is_on_record(apple: Fake) -> None:
    put("one")
    apple.also = lambda job: job.cancel(by="ada")
    hand_over("host:1", using="default")
    job = Job.objects.get()
    assert (job.status, job.external_id) == ("CANCELLED", "their-one")
    assert job.reason == "cancelled by ada (too late: it had been handed over)"


def test_of_a_job_that_its_engine_has_ended_nobody_says_too_late(apple: Fake) -> None:
    put("one")
    apple.also = lambda job: Job.objects.update(status="SUCCESSFUL")
    hand_over("host:1", using="default")
    job = Job.objects.get()
    assert (job.status, job.external_id, job.reason) == ("SUCCESSFUL", "their-one", "")


def test_a_send_whose_job_another_has_taken_is_told(apple: Fake, caplog: pytest.LogCaptureFixture) -> None:
    (job,) = put("one")
    apple.also = lambda job: Job.objects.update(claims=F("claims") + 1)
    hand_over("host:1", using="default")
    assert (status("one"), Job.objects.get().external_id) == ("READY", "")
    assert f"lease_lost job_id={job.pk}" in caplog.text


def test_a_cancel_before_is_obeyed(apple: Fake) -> None:
    (job,) = put("one")
    assert job.cancel()
    assert hand_over("host:1", using="default") == 0
    assert job.retry()
    assert hand_over("host:1", using="default") == 1


def test_an_expired_lease_is_anothers_to_take(apple: Fake, caplog: pytest.LogCaptureFixture) -> None:
    put("one")
    first = Outbox("host:1", using="default")
    (job,) = first.claim("apple", 10)
    assert hand_over("host:2", using="default") == 0
    Job.objects.update(lease_until=database_now("default") - MINUTE - SECOND)
    assert hand_over("host:2", using="default") == 0  # an outage may be just over
    recover_old(using="default")
    assert hand_over("host:2", using="default") == 1
    assert first.forward([(job, "mine")]) == first.note_sent([(job, "mine")]) == set()
    assert first.renew([job]) == first.put_back([job], ValueError(), [1]) == set()
    assert Job.objects.get().external_id == "their-one"


def test_what_goes_into_our_own_database_is_there_exactly_once(apple: Fake) -> None:
    """Whoever lost the claim takes back what it wrote, since both are one transaction."""
    from django_tasks_db.models import DBTaskResult

    Job.objects.create(key="one", target="django_tasks", function="tests.django_tasks.database", args=[1])
    own = Outbox("host:1", using="default")
    (job,) = own.claim("django_tasks", 10)
    Job.objects.update(claims=F("claims") + 1)  # another has it
    sender = Sender("django_tasks", own)
    sender._todo.append(job)
    sender._send_some()
    assert DBTaskResult.objects.count() == 0
    Job.objects.update(lease_until=None)
    assert hand_over("host:2", using="default") == 1
    assert [str(row.pk) for row in DBTaskResult.objects.all()] == [Job.objects.get().external_id]


def test_a_database_lost_after_the_send_has_nothing_sent_twice(
    apple: Fake, over: HandOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent is remembered, and marked over the next connection."""
    forward, cuts = Outbox.forward, iter([True])

    def cut_and_forward(self: Outbox, sent: Any) -> Any:
        if next(cuts, False):
            cutter = threading.Thread(target=cut_off, args=[connections["default"].connection.info.backend_pid])
            cutter.start()
            cutter.join()
        return forward(self, sent)

    monkeypatch.setattr(Outbox, "forward", cut_and_forward)
    put("one")
    wait_until(lambda: (work(over), status("one") == "FORWARDED")[1])
    assert apple.sent == ["one"]


def cut_off(pid: int) -> None:
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    connections["default"].close()


def test_signals(apple: Fake) -> None:
    heard: list[Any] = []

    def hear(sender: Any, signal: Any, **event: Any) -> None:
        heard.append(event)

    put("good", "bad")
    apple.failing["bad"] = ValueError("no")
    signals.jobs_forwarded.connect(hear)
    signals.handover_failed.connect(hear)
    try:
        hand_over("host:1", using="default")
    finally:
        signals.jobs_forwarded.disconnect(hear)
        signals.handover_failed.disconnect(hear)
    forwarded = next(event for event in heard if "error" not in event)
    failed = next(event for event in heard if "error" in event)
    assert (forwarded["target"], forwarded["jobs"]) == ("apple", ["good"])
    assert (failed["jobs"], failed["error"]) == (["bad"], "ValueError: no")


# -- locks -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(session: psycopg.Connection, key: str) -> Iterator[None]:
    with session.transaction():
        session.execute("SELECT FROM _pgwerk_jobs WHERE key = %s FOR NO KEY UPDATE", [key])
        yield


def test_a_locked_row_delays_its_own_mark_only_and_nothing_is_sent_twice(
    apple: Fake, over: HandOver, other_session: psycopg.Connection
) -> None:
    apple.hanging.add("one")
    put("one", "two", "three")
    wait_until(lambda: (work(over), apple.threads)[1])
    with locked(other_session, "one"):
        apple.gate.set()
        wait_until(lambda: (work(over), status("two") == status("three") == "FORWARDED")[1])
        assert status("one") == "READY"
        put("four")
        wait_until(lambda: (work(over), status("four") == "FORWARDED")[1])
    wait_until(lambda: (work(over), status("one") == "FORWARDED")[1])
    assert sorted(apple.sent) == ["four", "one", "three", "two"]


@pytest.mark.parametrize("write", ["forward", "put back", "hand back", "renew"])
def test_each_statement_passes_over_locked_rows(write: str, other_session: psycopg.Connection) -> None:
    put("one", "two")
    box = Outbox("host:1", using="default")
    one, two = sorted(box.claim("apple", 10), key=lambda job: job.key)
    writes = {
        "forward": lambda jobs: box.forward([(job, "id") for job in jobs]),
        "put back": lambda jobs: box.put_back(jobs, ValueError("no"), [1.0 for _ in jobs]),
        "hand back": box.hand_back,
        "renew": box.renew,
    }
    with locked(other_session, "one"):
        marked = writes[write]([one, two])
        assert (set(marked), marked.busy) == ({two.pk}, {one.pk})
    assert writes[write]([one]) == {one.pk}


def test_what_goes_into_our_own_database_waits_for_the_lock_of_its_row_only(
    over: HandOver, other_session: psycopg.Connection
) -> None:
    from django_tasks_db.models import DBTaskResult

    for key in ("one", "two", "three"):
        Job.objects.create(key=key, target="django_tasks", function="tests.django_tasks.database", args=[key])
    box = Outbox("host:1", using="default")
    sender = Sender("django_tasks", box)
    sender._todo.extend(box.claim("django_tasks", 10))
    with locked(other_session, "one"):
        while sender._todo:
            sender._send_some()
        assert (status("one"), status("two"), status("three")) == ("READY", "FORWARDED", "FORWARDED")
        assert DBTaskResult.objects.count() == 2
        assert [job.key for job in sender.held()] == ["one"]
    wait_until(lambda: (sender.drain(), status("one") == "FORWARDED")[1])
    assert DBTaskResult.objects.count() == 3


def test_a_claim_that_is_cancelled_takes_fewer(apple: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, limits = Outbox.claim, list[int]()

    def slow(self: Outbox, target: str, limit: int) -> list[Job]:
        limits.append(limit)
        with connection.cursor() as cursor:
            cursor.execute("SET statement_timeout = '50ms'")
            try:
                cursor.execute("SELECT pg_sleep(%s)", [5 if limit > 2 else 0])
            finally:
                cursor.execute("RESET statement_timeout")
        return claim(self, target, limit)

    monkeypatch.setattr(Outbox, "claim", slow)
    put(*(f"{n}" for n in range(4)))
    assert hand_over("host:1", using="default") == 4
    assert limits[:3] == [10, 5, 2]


# -- plans -----------------------------------------------------------------------------------------------------------


def test_the_index_leads_to_what_waits() -> None:
    now = database_now("default")
    Job.objects.bulk_create(Job(key=f"{n}", target="worker", run_at=now) for n in range(2000))
    Job.objects.bulk_create(Job(key=f"f{n}", target="celery", run_at=now - dt.timedelta(1)) for n in range(2000))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE _pgwerk_jobs")
        parameters = {"target": "celery", "limit": 10, "lease": SECOND, "name": "x"}
        cursor.execute(f"EXPLAIN {outbox._CLAIM}", parameters)
        assert "pgwerk_outbox" in "\n".join(row[0] for row in cursor.fetchall())
        cursor.execute(f"EXPLAIN SELECT {targets_waiting()}")
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert plan.count("pgwerk_outbox") >= 2
    assert "Seq Scan" not in plan


def targets_waiting() -> str:
    from pgwerk_django.models import WAITING_TARGETS

    return WAITING_TARGETS


def test_tasks_that_run_at_once_leave_no_transaction_and_no_language_behind(over: HandOver) -> None:
    Job.objects.create(key="one", target="django_tasks", function=django_tasks.immediate.module_path, args=[1])
    wait_until(lambda: (work(over), status("one") == "FORWARDED")[1])


def test_of_jobs_that_go_together_only_the_culprit_waits(apple: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apple, "goes_together", lambda job: True)
    apple.failing["bad"] = ValueError("no")
    put("one", "bad", "two")
    assert hand_over("host:1", using="default") == 2
    assert (status("one"), status("two"), status("bad")) == ("FORWARDED", "FORWARDED", "READY")
    assert Job.objects.get(key="bad").attempt == 1


def test_tasks_of_our_own_database_go_together_in_one_transaction() -> None:
    from django_tasks_db.models import DBTaskResult

    for number in range(50):
        Job.objects.create(
            key=f"{number}", target="django_tasks", function="tests.django_tasks.database", args=[number]
        )
    Job.objects.create(key="gone", target="django_tasks", function="tests.django_tasks.gone")
    assert hand_over("host:1", using="default") == 50
    assert sorted(row.args_kwargs["args"][0] for row in DBTaskResult.objects.all()) == list(range(50))
    assert "cannot be imported" in Job.objects.get(key="gone").error
    ids = set(Job.objects.filter(status="FORWARDED").values_list("external_id", flat=True))
    assert ids == {str(row.pk) for row in DBTaskResult.objects.all()}
