"""Statements that a live process repeats: prepared in a session of its own, as planning one takes longer than running it."""

import contextlib
import contextvars
import hashlib
import time
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from django.db import NotSupportedError, OperationalError, ProgrammingError
from django.db.backends.utils import CursorWrapper
from psycopg import ClientCursor, Connection

# Seconds. A plan for a table that is all but empty serves it badly once it is full, and PostgreSQL makes plans anew only
# after the next ANALYZE.
OLDEST_PLAN = 10.0
# SQLSTATEs: the statement is not there, or is there already (so the session is shared after all), or a migration has changed
# the type of a column in it.
_USELESS = ("26000", "42P05", "0A000")


class _Session:
    """What is prepared in one connection."""

    def __init__(self, cursor: CursorWrapper) -> None:
        cursor.execute("SELECT pg_backend_pid()")
        # A pooler tells its clients a process of its own invention, as those of PostgreSQL come and go behind it.
        # EXECUTE takes no parameters: they must be in the text, as Django's usual cursors have it.
        is_direct = cursor.fetchone()[0] == cursor.connection.info.backend_pid
        self.is_own = is_direct and isinstance(cursor.cursor, ClientCursor)
        self._names: dict[str, str] = {}  # of what is prepared, by its text
        self._planned_at = float("-inf")

    def execute(self, cursor: CursorWrapper, label: str, statement: str, values: Mapping[str, Any]) -> None:
        if time.monotonic() > self._planned_at + OLDEST_PLAN:
            # Else PostgreSQL would plan it for the values at hand, each time: that looks cheaper to it than it is.
            cursor.execute("SET plan_cache_mode = force_generic_plan; DISCARD PLANS")
            self._planned_at = time.monotonic()
        if statement not in self._names:
            # With the text in the name, nobody's other statement is ever taken for it.
            name = f"pgwerk_{label}_{hashlib.sha256(statement.encode()).hexdigest()[:8]}"
            numbered = {value: f"${number}" for number, value in enumerate(values, 1)}
            cursor.execute(f"PREPARE {name} AS {statement % numbered}")
            self._names[statement] = name
        places = ", ".join(f"%({value})s" for value in values)
        cursor.execute(f"EXECUTE {self._names[statement]}" + (f" ({places})" if values else ""), values or None)


class _Sessions:
    """Of one thread, which has another connection after each outage."""

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[Connection[Any], _Session] = WeakKeyDictionary()
        self._given_up = False

    def execute(self, cursor: CursorWrapper, label: str, statement: str, values: Mapping[str, Any]) -> bool:
        """Whether that was done: not where a session is shared."""
        if self._given_up:
            return False
        session = self._of.get(cursor.connection)
        if session is None:
            session = self._of[cursor.connection] = _Session(cursor)
        if not session.is_own:
            return False
        try:
            session.execute(cursor, label, statement, values)
        except (ProgrammingError, NotSupportedError) as error:
            if getattr(error.__cause__, "sqlstate", None) not in _USELESS:
                raise
            # Whoever runs the loop comes again with another connection, and finds that we do without.
            self._given_up = True
            raise OperationalError(f"a prepared statement is of no use any more: {error}") from error
        return True


_kept: contextvars.ContextVar[_Sessions | None] = contextvars.ContextVar("pgwerk_kept", default=None)


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """Have this thread prepare what it gives to `execute`: for processes that repeat it, and own their connection."""
    token = _kept.set(_Sessions())
    try:
        yield
    finally:
        _kept.reset(token)


def execute(cursor: CursorWrapper, label: str, statement: str, values: Mapping[str, Any]) -> None:
    """Run a statement with `%(name)s` in it (and `%%`), prepared if this thread is `keeping()` them.

    `label` is what `pg_stat_activity` shows of one that is prepared: `EXECUTE pgwerk_label_…`. A plan that is kept knows no
    values, nor how many an array holds: give it none that hold many.
    """
    sessions = _kept.get()
    if sessions is None or not sessions.execute(cursor, label, statement, values):
        cursor.execute(statement, values)
