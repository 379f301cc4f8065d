"""What a failed statement means: judged on errors that a real PostgreSQL gives."""

import contextlib
import select
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, InterfaceError, OperationalError, connection, transaction

from pgwerk_django.sqlstates import Refusal, described, refusal_of
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def error_of(statement: str, parameters: Any = None) -> Exception:
    """What Django raises for it in a transaction of its own."""
    with pytest.raises((DatabaseError, InterfaceError)) as caught, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, parameters)
    return caught.value


@pytest.mark.parametrize(
    ("statement", "parameters", "meaning"),
    [
        ("SET LOCAL statement_timeout = '10ms'; SELECT pg_sleep(5)", None, Refusal.TOO_LONG),
        ("SELECT 'x'::integer", None, Refusal.BAD_VALUE),
        ("SELECT %s::jsonb", ['"\\u0000"'], Refusal.BAD_VALUE),
        ("SELECT %s::text", ["\0"], Refusal.BAD_VALUE),  # refused by psycopg, without a code
        ("INSERT INTO _pgwerk_jobs (status) VALUES (NULL)", None, Refusal.BAD_VALUE),
        ("SELECT repeat('x', 2000000000)", None, Refusal.BAD_VALUE),  # 54000; XX000 before PostgreSQL 15
        ("DO $$ BEGIN RAISE EXCEPTION 'not this row'; END $$", None, Refusal.BAD_VALUE),
        ("DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$", None, Refusal.CONFLICT),
        ("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$", None, Refusal.CONFLICT),
        ("DO $$ BEGIN RAISE SQLSTATE '53100' USING MESSAGE = 'no space'; END $$", None, Refusal.OUTAGE),
        ("SET TRANSACTION READ ONLY; DELETE FROM _pgwerk_jobs", None, Refusal.OUTAGE),
        ("SELECT nothing", None, Refusal.OTHER),
    ],
)
def test_the_meaning_of_a_code(statement: str, parameters: Any, meaning: Refusal) -> None:
    assert refusal_of(error_of(statement, parameters)) is meaning


def test_a_lock_of_somebody_else_is_busy(other_session: psycopg.Connection) -> None:
    with other_session.transaction():
        other_session.execute("LOCK TABLE _pgwerk_jobs")
        error = error_of("SET LOCAL lock_timeout = '10ms'; SELECT FROM _pgwerk_jobs")
    assert refusal_of(error) is Refusal.BUSY
    assert described(error) == "LockNotAvailable (55P03): canceling statement due to lock timeout"


def ended_by(setting: str) -> Exception:
    """The error of a session that PostgreSQL has ended for idling too long."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET {setting} = 50")
        if "transaction" in setting:
            cursor.execute("BEGIN")
        session = cursor.connection
        wait_until(lambda: _is_over(session))
        with pytest.raises((DatabaseError, InterfaceError)) as caught:
            cursor.execute("SELECT 1")
    connection.close()
    return caught.value


def _is_over(session: Any) -> bool:
    """The server has said so: there is something to read."""
    return bool(select.select([session.fileno()], [], [], 0)[0])


def test_time_limits_that_end_the_session() -> None:
    assert refusal_of(ended_by("idle_in_transaction_session_timeout")) is Refusal.TOO_LONG
    assert refusal_of(ended_by("idle_session_timeout")) is Refusal.OUTAGE


@pytest.mark.parametrize("end", ["terminate", "close"])
def test_a_connection_that_is_gone_is_an_outage(end: str, other_session: psycopg.Connection) -> None:
    ends: dict[str, Callable[[Any], object]] = {
        "terminate": lambda session: other_session.execute(
            "SELECT pg_terminate_backend(%s, 5000)", [session.info.backend_pid]
        ),
        "close": lambda session: session.close(),
    }
    with connection.cursor() as cursor:
        ends[end](cursor.connection)
        with pytest.raises((OperationalError, InterfaceError)) as caught:
            cursor.execute("SELECT 1")
    with contextlib.suppress(InterfaceError, OperationalError):
        connection.close()
    assert refusal_of(caught.value) is Refusal.OUTAGE
