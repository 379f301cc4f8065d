"""What a failed statement means for those who sent it, judged by PostgreSQL's error code (SQLSTATE)."""

import enum

import psycopg
from django.db import DataError, IntegrityError, InterfaceError, InternalError, OperationalError


class Refusal(enum.StrEnum):
    """Why a statement failed, by what can be done about it."""

    BUSY = "busy"  # another session's lock: pass over that row or table, and try again
    CONFLICT = "conflict"  # a deadlock or a serialization failure: repeat the same statement
    TOO_LONG = "too_long"  # cancelled by a time limit (or by a person): send less at a time
    BAD_VALUE = "bad_value"  # a value, or a trigger, refuses one row: find that row and leave it out
    OUTAGE = "outage"  # the database is away, full, restarting or read-only: keep everything, and try again
    OTHER = "other"  # a fault of the program or of the schema: raise it


# The first prefix that fits decides.
_MEANINGS = {
    "55P03": Refusal.BUSY,  # lock_not_available
    "40001": Refusal.CONFLICT,  # serialization_failure
    "40P01": Refusal.CONFLICT,  # deadlock_detected
    "57014": Refusal.TOO_LONG,  # query_canceled
    "25P03": Refusal.TOO_LONG,  # idle_in_transaction_session_timeout; this and the next one end the session
    "25P04": Refusal.TOO_LONG,  # transaction_timeout
    "22": Refusal.BAD_VALUE,  # data exception
    "23": Refusal.BAD_VALUE,  # integrity constraint violation
    "40002": Refusal.BAD_VALUE,  # a deferred constraint
    "44": Refusal.BAD_VALUE,  # WITH CHECK OPTION violation
    "54": Refusal.BAD_VALUE,  # program limit exceeded
    "P0": Refusal.BAD_VALUE,  # RAISE and ASSERT in a trigger of the site
    "08": Refusal.OUTAGE,  # connection exception
    "53": Refusal.OUTAGE,  # disk full, out of memory, too many connections
    "57": Refusal.OUTAGE,  # shutdown, crash, cannot connect now, idle_session_timeout
    "58": Refusal.OUTAGE,  # system error
}


def sqlstate_of(error: BaseException) -> str:
    """Return PostgreSQL's code for `error` (Django's or psycopg's), or "" where the server gave none."""
    return getattr(error, "sqlstate", None) or getattr(error.__cause__, "sqlstate", None) or ""


def refusal_of(error: BaseException) -> Refusal:
    """Return what the failure of a statement means. Without a code from PostgreSQL, the class of `error` decides."""
    sqlstate = sqlstate_of(error)
    for prefix, refusal in _MEANINGS.items():
        if sqlstate.startswith(prefix):
            return refusal
    if sqlstate == "XX000" and "invalid memory alloc request size" in str(error):
        return (
            Refusal.BAD_VALUE
        )  # 54000 in newer versions: more than a gigabyte. PostgreSQL never translates this text.
    # No code: psycopg refused the value itself (a NUL character), or lost the connection.
    if isinstance(error, DataError | IntegrityError):
        return Refusal.BAD_VALUE
    # InternalError: a connection that ends during COMMIT, and a database that is read-only.
    if isinstance(error, OperationalError | InterfaceError | InternalError):
        return Refusal.OUTAGE
    return Refusal.OTHER


def described(error: BaseException) -> str:
    """Return the error in one line, with the name and the code by which PostgreSQL's manual lists it."""
    cause = error.__cause__ if isinstance(error.__cause__, psycopg.Error) else error
    if isinstance(cause, psycopg.Error) and cause.sqlstate and cause.diag.message_primary:
        return f"{type(cause).__name__} ({cause.sqlstate}): {cause.diag.message_primary}"
    return " ".join(str(error).split())
