"""Alerts: late, missed, failing and recovered are told once each, whatever the number of those who look."""

import datetime as dt
import itertools
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import django
import psycopg
import pytest
from django.core import mail
from django.db import IntegrityError, connection, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from pgwerk_django import alerts, signals
from pgwerk_django.models import Alert, Job, Queue, Schedule
from pgwerk_django.scheduler import Scheduler
from tests.time_travel import HOUR, MINUTE, SECOND, make, make_due, now
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def look() -> list[tuple[str, str]]:
    """What one look notices: what is over is `recovered`."""
    changes, _ = alerts.look(using="default")
    return sorted((change.name, "recovered" if change.is_over else change.kind) for change in changes)


def ended(row: Schedule, status: str, ago: dt.timedelta = SECOND, **columns: Any) -> Job:
    at = now() - ago
    return Job.objects.create(
        key=f"{row.name}@{at:%Y-%m-%dT%H:%M:%S.%f}Z",
        schedule=row,
        schedule_name=row.name,
        due_at=at,
        status=status,
        finished_at=at,
        **columns,
    )


def test_nothing_is_told_of_what_is_well() -> None:
    row = make(_name="well", ago=-HOUR)
    ended(row, "SUCCESSFUL")
    make(_name="due", ago=SECOND)
    assert look() == []
    assert not Alert.objects.exists()


# -- what is told of, and when it is over


def test_late_is_what_no_tick_has_taken_within_its_grace(scheduler: Scheduler) -> None:
    make(_name="just due", ago=10 * SECOND)
    make(_name="patient", ago=2 * MINUTE, _misfire_grace=300)
    make(_name="impatient", ago=2 * MINUTE, _misfire_grace=0)
    make(_name="paused", ago=HOUR)
    Schedule.objects.filter(name="paused").pause()
    assert look() == [("impatient", "late")]
    assert look() == []
    scheduler.tick()
    # It was missed, too: nobody was there within its grace.
    assert look() == [("impatient", "missed"), ("impatient", "recovered")]
    assert look() == []


def test_a_trigger_that_nobody_takes_is_late(scheduler: Scheduler) -> None:
    row = make(_name="x", ago=-HOUR)
    scheduler.pause("x")
    Schedule.objects.filter(pk=row.pk).update(triggered_at=now() - 2 * MINUTE)
    assert look() == [("x", "late")]
    scheduler.tick()
    assert look() == []  # it is paused: that it is over is no news
    assert Alert.objects.get().ended_at is not None


def test_late_is_told_of_a_row_that_somebody_has_locked(other_session: psycopg.Connection) -> None:
    make(_name="locked", ago=2 * MINUTE)
    with other_session.transaction():
        other_session.execute("SELECT 1 FROM _pgwerk_schedules FOR UPDATE")
        assert look() == [("locked", "late")]


@pytest.mark.parametrize("target", ["worker", "celery"])
def test_late_is_a_schedule_whose_job_waits(target: str) -> None:
    row = make(_name="x", ago=-HOUR)
    # Of the highest priority some are fresh: that is no excuse for those behind them.
    Job.objects.create(schedule=row, schedule_name="x", target=target, priority=9)
    old = now() - 6 * MINUTE
    Job.objects.create(schedule=row, schedule_name="x", target=target, run_at=old, enqueued_at=old)
    Job.objects.create(target=target, run_at=old, enqueued_at=old)  # which is of no schedule
    assert look() == [("x", "late")]
    assert look() == []
    Job.objects.update(status="RUNNING")
    assert look() == [("x", "recovered")]


def test_a_job_that_cannot_be_handed_over_waits_since_it_was_written() -> None:
    row = make(_name="x", ago=-HOUR)
    Job.objects.create(
        schedule=row,
        schedule_name="x",
        target="celery",
        attempt=5,
        run_at=now() + MINUTE,
        enqueued_at=now() - 6 * MINUTE,
    )
    assert look() == [("x", "late")]


def test_a_job_of_a_paused_queue_is_not_late() -> None:
    row = make(_name="x", ago=-HOUR)
    Job.objects.create(schedule=row, schedule_name="x", run_at=now() - HOUR)
    Queue.objects.create(name="default", paused=True)
    assert look() == []
    Queue.objects.all().resume()
    assert look() == [("x", "late")]


def test_failing_until_it_succeeds() -> None:
    row = make(_name="x", ago=-HOUR)
    ended(row, "SUCCESSFUL", 3 * MINUTE)
    ended(row, "FAILED", 2 * MINUTE, error="Traceback …\n  File …\nValueError: no luck\n")
    (change,), _ = alerts.look(using="default")
    assert alerts._event(change) == (
        signals.schedule_failing,
        {"name": "x", "key": change.job_key, "error": "ValueError: no luck"},
    )
    ended(row, "FAILED", MINUTE)  # fails again: it is known to
    assert look() == []
    running = ended(row, "RUNNING", SECOND)
    assert look() == []
    Job.objects.filter(pk=running.pk).update(status="SUCCESSFUL")
    assert look() == [("x", "recovered")]
    assert look() == []
    ended(row, "FAILED")
    assert look() == [("x", "failing")]


def test_a_failure_that_was_made_up_for_is_not_told() -> None:
    row = make(_name="x", ago=-HOUR)
    ended(row, "FAILED", MINUTE)
    ended(row, "SUCCESSFUL")
    assert look() == []


def test_an_attempt_that_is_not_the_last_is_no_failure() -> None:
    row = make(_name="x", ago=-HOUR)
    ended(row, "READY", MINUTE, attempt=1, max_attempts=2)
    assert look() == []


def test_a_failed_job_that_is_retried_is_well_once_it_succeeds() -> None:
    row = make(_name="x", ago=-HOUR)
    ended(row, "SUCCESSFUL", 3 * MINUTE)
    failed = ended(row, "FAILED")
    assert look() == [("x", "failing")]
    failed.retry()
    assert look() == []  # the success before it proves nothing
    Job.objects.filter(pk=failed.pk).update(status="SUCCESSFUL", finished_at=now())
    assert look() == [("x", "recovered")]


def test_set_aside_is_failing_until_a_tick_has_planned_it(scheduler: Scheduler) -> None:
    row = make(_name="x", ago=SECOND, cron="0 9 * * *")
    Schedule.objects.filter(pk=row.pk).update(timezone="Mars/Phobos", replan=False)
    scheduler.tick()
    (change,), _ = alerts.look(using="default")
    assert (change.kind, change.job_key) == ("failing", "")
    assert "Mars/Phobos" in change.why
    # As schedulers do at their start and each hour: nothing is well by that.
    Schedule.objects.all().retry_set_aside()
    assert look() == []
    scheduler.tick()
    assert look() == []
    Schedule.objects.filter(pk=row.pk).update(timezone="Europe/Paris")
    scheduler.tick()
    assert look() == [("x", "recovered")]


@pytest.mark.parametrize("misfire", ["LATEST", "SKIP"])
def test_missed_once_for_an_unbroken_run_of_due_times(scheduler: Scheduler, misfire: str) -> None:
    make(_name="x", ago=HOUR, interval=300, _misfire=misfire)
    scheduler.tick()
    (change,), _ = alerts.look(using="default")
    assert (change.kind, change.job_key) == ("missed", Job.objects.get(status="SKIPPED").key)
    assert change.why.startswith("misfire: due from ")
    assert look() == []


def test_missed_is_what_did_not_start_in_time() -> None:
    row = make(_name="x", ago=-HOUR)
    Job.objects.create(schedule=row, schedule_name="x", start_by=now() - SECOND)
    Job.objects.all().skip_not_started(10)
    assert look() == [("x", "missed")]
    assert look() == []


def test_what_overlaps_is_not_missed(scheduler: Scheduler) -> None:
    row = make(_name="x", ago=SECOND)
    scheduler.tick()
    make_due(row)
    scheduler.tick()
    assert sorted(Job.objects.values_list("status", flat=True)) == ["READY", "SKIPPED"]
    assert look() == []


def test_the_alerts_of_a_deleted_schedule_end_in_silence(scheduler: Scheduler) -> None:
    failing, late = make(_name="failing", ago=-HOUR), make(_name="late", ago=HOUR)
    ended(failing, "FAILED")
    assert len(look()) == 2
    scheduler.delete(late.name)
    scheduler.delete(failing.name)
    assert look() == []
    assert not Alert.objects.filter(ended_at=None).exists()


def test_the_alerts_of_a_paused_schedule_end_in_silence(scheduler: Scheduler, settings: Any) -> None:
    settings.PGWERK = {**settings.PGWERK, "MAIL_ADMINS": True}
    row = make(_name="late", ago=HOUR)
    assert look() == [("late", "late")]
    Alert.objects.update(news=False)  # it was mailed
    scheduler.pause(row.name)
    assert look() == []
    assert not Alert.objects.filter(ended_at=None).exists()
    assert not Alert.objects.filter(news=True).exists()


@pytest.mark.parametrize("status", ["FAILED", "SKIPPED"])
def test_what_happened_long_ago_is_told_to_nobody(status: str) -> None:
    """As after a restore, or an upgrade from a version without alerts."""
    ended(make(_name="x", ago=-HOUR), status, ago=HOUR, reason="misfire: …")
    assert look() == []


def test_a_job_of_a_paused_queue_that_is_to_be_handed_over_is_not_late() -> None:
    row = make(_name="x", ago=-HOUR)
    Job.objects.create(schedule=row, schedule_name=row.name, run_at=now() - HOUR, target="celery", queue="held")
    held = Queue.objects.create(name="held", paused=True)
    assert look() == []
    held.delete()
    assert look() == [("x", "late")]


def test_an_alert_that_lies_ahead_of_the_clock_ends_and_holds_up_no_mail(settings: Any) -> None:
    """What PostgreSQL's clock has left that was ahead for a moment."""
    settings.PGWERK = {**settings.PGWERK, "MAIL_ADMINS": True} if hasattr(settings, "PGWERK") else {"MAIL_ADMINS": True}
    row = make(_name="x", ago=-HOUR)
    ended(row, "FAILED", ago=MINUTE)
    assert look() == [("x", "failing")]
    ahead = now() + 24 * HOUR
    Alert.objects.update(since=ahead, noticed_at=ahead, mailed_at=ahead)
    assert alerts.look(using="default")[1]  # a mail is due
    assert [each.name for each in alerts.take_news(using="default")] == ["x"]
    ended(row, "SUCCESSFUL", ago=SECOND)
    assert look() == [("x", "recovered")]


def test_alerts_that_are_long_over_are_deleted() -> None:
    for days in (6, 8):
        Alert.objects.create(kind="late", schedule_name="x", ended_at=now() - dt.timedelta(days=days))
    Alert.objects.create(kind="late", schedule_name="x", since=now() - dt.timedelta(days=30))
    assert Alert.objects.all().delete_old() == 1


# -- once each


def test_only_one_looks_at_a_time(other_session: psycopg.Connection) -> None:
    """Two that wrote the same rows in another order would wait for each other."""
    make(_name="x", ago=HOUR)
    with other_session.transaction():
        other_session.execute("SELECT pg_advisory_xact_lock(%s, %s)", alerts.ADVISORY_LOCK)
        assert look() == []
    assert look() == [("x", "late")]


def test_what_one_tells_another_does_not(other_session: psycopg.Connection) -> None:
    """Nor does one whose snapshot is older than what the first wrote: the database refuses the second."""
    make(_name="x", ago=HOUR)
    make(_name="y", ago=HOUR)
    assert look() == [("x", "late"), ("y", "late")]
    with pytest.raises(IntegrityError, match="pgwerk_alert_open"):
        Alert.objects.create(schedule_name="x", kind="late")


def late(name: str) -> None:
    make(_name=name, ago=HOUR)


def waiting(name: str) -> None:
    row = make(_name=name, ago=-HOUR)
    Job.objects.create(schedule=row, schedule_name=name, run_at=now() - HOUR)


def outgoing(name: str) -> None:
    row = make(_name=name, ago=-HOUR)
    Job.objects.create(schedule=row, schedule_name=name, run_at=now() - HOUR, target="celery")


def failing(name: str) -> None:
    ended(make(_name=name, ago=-HOUR), "FAILED")


def set_aside(name: str) -> None:
    make(_name=name, ago=-HOUR)
    Schedule.objects.filter(name=name).update(error="no such zone")


def missed(name: str) -> None:
    ended(make(_name=name, ago=-HOUR), "SKIPPED", reason="misfire: …")


@pytest.mark.parametrize("happens", [late, waiting, outgoing, failing, set_aside, missed])
def test_what_is_told_of_one_hides_no_other(happens: Any) -> None:
    for name in ("a", "b"):
        happens(name)
        assert [told for told, _kind in look()] == [name]
        assert look() == []


# -- what it costs


def test_a_look_at_nothing_is_one_statement_and_writes_nothing() -> None:
    for number in range(20):
        ended(make(_name=f"s{number}", ago=-HOUR), "SUCCESSFUL")
    with transaction.atomic(), connection.cursor() as cursor:
        with CaptureQueriesContext(connection) as captured:
            assert look() == []
        cursor.execute("SELECT pg_current_xact_id_if_assigned()")
        assert cursor.fetchone() == (None,)
    assert len(captured) == 1


def test_a_look_is_led_by_the_indexes() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO _pgwerk_schedules (name, interval, next_run_at, replan)
            SELECT 's' || n, 60, now() + interval '1 hour', false FROM generate_series(1, 5000) n;
            INSERT INTO _pgwerk_jobs (key, schedule_id, schedule_name, status, target, queue, run_at, finished_at)
            SELECT name || '@' || m, id, name,
                (ARRAY['SUCCESSFUL', 'SUCCESSFUL', 'FAILED', 'READY', 'SKIPPED'])[m],
                CASE WHEN m = 4 AND id % 2 = 0 THEN 'celery' ELSE 'worker' END, 'q' || id % 5, now(),
                CASE WHEN m <> 4 THEN now() - id * interval '1 minute' END
            FROM _pgwerk_schedules, generate_series(1, 5) m;
            INSERT INTO _pgwerk_alerts (schedule_name, kind, job_key) SELECT 's' || n, 'late', '' FROM generate_series(1, 20) n;
            ANALYZE _pgwerk_schedules; ANALYZE _pgwerk_jobs; ANALYZE _pgwerk_alerts;
            """
        )
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(alerts._SETTINGS)
        cursor.execute("EXPLAIN " + alerts._LOOK.replace("%(mail)s", "true"))
        plan = "\n".join(line for (line,) in cursor.fetchall())
    for index in ("pgwerk_due", "pgwerk_set_aside", "pgwerk_ended_badly", "pgwerk_claim", "pgwerk_outbox"):
        assert index in plan, plan
    for table in ("_pgwerk_schedules", "_pgwerk_jobs"):
        assert f"Seq Scan on {table}" not in plan, plan
    assert "hashed SubPlan" not in plan, plan


def test_a_process_that_starts_lets_a_tick_come_first() -> None:
    """What waited for this very process is not late."""
    make(_name="x", ago=HOUR)
    watch = alerts.Watch(using="default")
    watch.step()
    watch.close()
    assert not Alert.objects.exists()
    assert look() == [("x", "late")]


def test_a_look_that_takes_long_is_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    clock = iter(itertools.count(0, 2.5))  # each look at the clock is 2.5 s after the one before
    waits: list[float] = []
    monkeypatch.setattr(alerts, "time", SimpleNamespace(monotonic=clock.__next__))
    watch = alerts.Watch(using="default")
    monkeypatch.setattr(watch, "look", lambda: looks.append(1))
    monkeypatch.setattr(watch._time_to_look, "again", waits.append)
    watch._time_to_look._next = 0
    watch.step()
    assert (looks, waits) == ([1], [50])


# -- mail


@pytest.fixture
def mails(settings: Any) -> list[Any]:
    settings.PGWERK = {**settings.PGWERK, "MAIL_ADMINS": True}
    return mail.outbox


def gathered(ago: dt.timedelta = MINUTE) -> None:
    """As if what is news were noticed that long ago."""
    Alert.objects.filter(news=True).update(noticed_at=now() - ago, ended_at=F("ended_at") - ago)


def sent_long_ago() -> None:
    Alert.objects.exclude(mailed_at=None).update(mailed_at=now() - HOUR)


def post() -> None:
    """One look, and whatever mail comes of it."""
    watch = alerts.Watch(using="default")
    watch.look()
    watch.close()


def test_ten_thousand_schedules_that_are_late_are_one_mail(mails: list[Any]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO _pgwerk_schedules (name, interval, next_run_at, replan)
            SELECT 's' || lpad(n::text, 5, '0'), 60, now() - interval '1 hour', false FROM generate_series(1, 10000) n
            """
        )
    post()
    assert Alert.objects.count() == 10_000
    gathered()
    post()
    post()
    (message,) = mails
    assert message.subject == "[Django] 10000 schedules: 10000 late"
    assert "- s00001: due since " in message.body
    assert "no scheduler has taken it" in message.body
    assert "- and 9950 more" in message.body
    Schedule.objects.update(next_run_at=now() + HOUR)
    post()
    gathered()
    post()
    assert len(mails) == 1  # there was one a moment ago
    sent_long_ago()
    post()
    post()
    assert [message.subject for message in mails[1:]] == ["[Django] 10000 schedules: 10000 recovered"]


def test_one_mail_says_all_that_happened(mails: list[Any]) -> None:
    late, failing, missed = (make(_name=name, ago=-HOUR) for name in ("late", "failing", "missed"))
    make_due(late, ago=HOUR)
    ended(failing, "FAILED", error="Traceback …\n  File …\nValueError: no luck\n")
    ended(missed, "SKIPPED", reason="misfire: due from … to …")
    post()
    make_due(late, ago=-HOUR)
    post()
    gathered()
    post()
    (message,) = mails
    assert message.subject == "[Django] 3 schedules: 1 late, 1 failing, 1 missed"
    lines = message.body.splitlines()
    assert lines[:2] == ["Late:", lines[1]]
    assert "- late: due since " in lines[1]
    assert "; over since " in lines[1]  # before anybody was told
    assert "ValueError: no luck" in message.body
    assert "- missed: misfire: due from … to …" in lines
    assert message.to == ["ada@example.org"]


def test_one_schedule_stands_in_the_subject(mails: list[Any]) -> None:
    row = make(_name="reports.daily", ago=-HOUR)
    ended(row, "FAILED", error="ValueError: no luck")
    post()
    gathered(SECOND)
    post()
    assert mails == []  # more may come
    gathered()
    post()
    ended(row, "SUCCESSFUL", -SECOND)
    post()
    gathered()
    sent_long_ago()
    post()
    subjects = [message.subject for message in mails]
    assert subjects == ["[Django] reports.daily: failing", "[Django] reports.daily: recovered"]
    assert "- reports.daily: was failing since " in mails[1].body
    assert "ValueError: no luck" in mails[1].body


def test_no_mail_where_nobody_asked_for_it(mails: list[Any], settings: Any) -> None:
    settings.PGWERK = {**settings.PGWERK, "MAIL_ADMINS": False}
    make(_name="x", ago=HOUR)
    post()
    gathered()
    post()
    settings.PGWERK = {**settings.PGWERK, "MAIL_ADMINS": True}
    gathered()
    post()  # nor of what happened before
    assert mails == []


def test_a_mail_that_cannot_be_sent_is_logged_and_harms_nothing(
    mails: list[Any], settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    if django.VERSION >= (6, 1):
        settings.MAILERS = {"default": {"BACKEND": "tests.functions.NoMail"}}
    else:
        settings.EMAIL_BACKEND = "tests.functions.NoMail"
    make(_name="x", ago=HOUR)
    post()
    gathered()
    post()
    assert 'mail_failed names=x error="nobody takes it"' in caplog.text


def test_two_that_mail_at_once_send_one(mails: list[Any], other_session: psycopg.Connection) -> None:
    make(_name="x", ago=HOUR)
    post()
    gathered()
    with other_session.transaction():
        other_session.execute("SELECT pg_advisory_xact_lock(%s, %s)", alerts.ADVISORY_LOCK)
        assert alerts.take_news(using="default") == []
    assert len(alerts.take_news(using="default")) == 1
    assert alerts.take_news(using="default") == []


# -- real processes


def test_two_schedulers_and_a_worker_tell_once(manage: Any, notes: Path) -> None:
    """Each event is one log line, and all of them are in one mail."""
    mails = notes / "mails"
    failing, missed = make("tests.functions.noop", _name="failing", ago=-HOUR), make(_name="missed", ago=-HOUR)
    ended(failing, "FAILED", error="ValueError: no luck")
    ended(missed, "SKIPPED", reason="misfire: due from … to …")
    commands = (["runscheduler", "--on-unregistered=keep"],) * 2 + (["runworker", "--concurrency=1"],)
    running = [manage(*command, PGWERK_TEST_MAILS=str(mails)) for command in commands]
    wait_until(lambda: mails.exists() and any("Subject" in path.read_text() for path in mails.iterdir()), 90)
    Scheduler().trigger("failing")
    wait_until(lambda: not Alert.objects.filter(ended_at=None).exists(), 60)
    wait_until(lambda: any("schedule_recovered" in one.text() for one in running))
    for one in running:
        assert one.stop() == 0
    said = "\n".join(one.text() for one in running)
    for event in ("schedule_failing name=failing", "schedule_missed name=missed", "schedule_recovered name=failing"):
        assert said.count(event) == 1, said
    text = "".join(path.read_text() for path in mails.iterdir())
    assert text.count("Subject: [Django] 2 schedules: 1 failing, 1 missed") == text.count("Subject:") == 1
    assert "ValueError: no luck" in text


def test_a_worker_says_late_where_no_scheduler_runs(manage: Any) -> None:
    make(_name="x", ago=HOUR)
    worker = manage("runworker", "--concurrency=1")
    wait_until(lambda: worker.says("schedule_late name=x"), 60)
    assert worker.stop() == 0


def test_a_mail_server_that_hangs_stops_neither_ticks_nor_jobs(manage: Any) -> None:
    make(_name="x", ago=HOUR, interval=3600)
    Alert.objects.create(schedule_name="y", kind="missed", ended_at=now() - HOUR, news=True)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        both = manage("runscheduler", "--with-worker", "--on-unregistered=keep", PGWERK_TEST_SMTP=port)
        silent.settimeout(60)
        connection_of_a_mail, _ = silent.accept()  # and not a word
        make(_name="afterwards", ago=SECOND)
        wait_until(lambda: Job.objects.filter(schedule_name="afterwards", status="SUCCESSFUL").exists())
        assert both.stop() == 0
        connection_of_a_mail.close()
