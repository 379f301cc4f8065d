"""Writes to many jobs at once, each guarded by its claim. Somebody's lock on one row delays that row only.

Each statement waits `LOCK_TIMEOUT` for locks at most. The setting goes to PostgreSQL in the same message as the statement,
which makes both one transaction: no further round trip, and nothing that outlives it, as a pooler requires.
"""

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from django.db import DatabaseError, connections, transaction
from psycopg import ClientCursor

from pgwerk_django.arrays import array
from pgwerk_django.sqlstates import Refusal, refusal_of

LOCK_TIMEOUT = "SET LOCAL lock_timeout = '100ms'"
# What passes by itself, without anything being wrong with what was sent.
PASSING = (Refusal.BUSY, Refusal.CONFLICT)

Key = tuple[uuid.UUID, int]  # a job's id, and its `claims`
Sent = Callable[[str, dict[str, Any]], tuple[str, dict[str, Any]]]


def execute(cursor: Any, statement: str, parameters: Mapping[str, Any] | None = None) -> None:
    """Execute one statement under the lock timeout; `fetchall()` gives its rows. In a transaction of the caller: without."""
    if cursor.db.in_atomic_block:  # the setting would be the caller's from then on
        cursor.execute(statement, parameters)
    elif isinstance(cursor.cursor, ClientCursor):
        cursor.execute(f"{LOCK_TIMEOUT}; {statement}", parameters)
        cursor.nextset()
    else:  # `server_side_binding`: a message holds one statement
        with transaction.atomic(using=cursor.db.alias):
            cursor.execute(LOCK_TIMEOUT)
            cursor.execute(statement, parameters)


@contextlib.contextmanager
def impatient(using: str) -> Iterator[None]:
    """A transaction under the lock timeout; in one of the caller's nothing is set."""
    if transaction.get_connection(using).in_atomic_block:
        yield
        return
    with transaction.atomic(using=using):
        with transaction.get_connection(using).cursor() as cursor:
            cursor.execute(LOCK_TIMEOUT)
        yield


class Written(dict[uuid.UUID, Any]):
    """What a statement wrote, by the ids of the jobs. An id that is neither here nor `busy` nor `refused` is held no more."""

    def __init__(self, rows: Mapping[uuid.UUID, Any] | None = None) -> None:
        super().__init__(rows or {})
        self.busy: set[uuid.UUID] = set()  # locked by somebody, or its table is: still held, and to be tried again
        self.refused: dict[uuid.UUID, Exception] = {}  # sent alone, and refused for its value or its time: still held


class Size:
    """How many jobs one statement may hold: halved when PostgreSQL cancels it, doubled as it succeeds."""

    def __init__(self, full: int) -> None:
        self.most = self._full = full

    def shrink(self, size: int) -> None:
        """A statement with so many was cancelled."""
        self.most = max(size // 2, 1)

    def grow(self, size: int) -> None:
        """A statement with so many succeeded."""
        if size >= self.most:
            self.most = min(self.most * 2, self._full)


class Statements:
    """Those of one holder of claims. `holds` is the condition under which it still holds `job` by the claim `mine`."""

    def __init__(self, holds: str, *, using: str, sent: Sent, **parameters: Any) -> None:
        """`parameters` are those of `holds`; `sent` may change what goes to PostgreSQL."""
        self._using = using
        self._sent = sent
        self._parameters = parameters
        mine = f"unnest(%(ids)s::uuid[], %(claims)s::integer[]) AS mine (id, claims) JOIN _pgwerk_jobs job ON {holds}"
        self._lock = f"""
        WITH free AS MATERIALIZED (SELECT job.id FROM {mine} FOR NO KEY UPDATE OF job SKIP LOCKED)
        SELECT job.id, job.id IN (SELECT id FROM free) FROM {mine}
        """  # noqa: S608  our own conditions

    def write(
        self,
        statement: str,
        held: Sequence[Key],
        columns: Mapping[str, Sequence[object]] | None = None,
        *,
        usual: Mapping[str, object] | None = None,
        wait: bool = True,
        **parameters: Any,
    ) -> Written:
        """Write for those that are still held. `columns` have a value for each; `usual` is as in `array()`.

        A row that somebody locks is passed over and told as `busy`; without `wait`, not even the lock timeout is waited for.
        Jobs whose values PostgreSQL refuses are told as `refused`, and the others written. Raises what is an outage, and
        (`Refusal.TOO_LONG`) when several at once took too long: send fewer.
        """
        written = Written()
        if not held:
            return written
        write = _Write(statement, held, columns or {}, usual or {}, parameters)
        if transaction.get_connection(
            self._using
        ).in_atomic_block:  # which any error would break: the caller sees to it
            written.update(self._run(write, range(len(held))))
        else:
            self._write(write, range(len(held)), written, wait)
        return written

    def _write(self, write: "_Write", places: Sequence[int], written: Written, wait: bool) -> None:
        try:
            written.update(self._run(write, places) if wait else self._run_free(write, places, written))
            return
        except DatabaseError as error:
            refusal = refusal_of(error)
            if refusal in PASSING and not wait:  # the whole table is locked
                written.busy.update(write.held[place][0] for place in places)
                return
            if refusal in (Refusal.BAD_VALUE, Refusal.TOO_LONG) and len(places) == 1:
                written.refused[write.held[places[0]][0]] = error
                return
            if refusal not in (*PASSING, Refusal.BAD_VALUE):
                raise
        if refusal in PASSING:
            self._write(write, places, written, wait=False)
        else:
            half = len(places) // 2
            self._write(write, places[:half], written, wait)
            self._write(write, places[half:], written, wait)

    def _run_free(self, write: "_Write", places: Sequence[int], written: Written) -> dict[uuid.UUID, Any]:
        """Lock those rows that are free, and write to them."""
        with impatient(self._using):
            with transaction.get_connection(self._using).cursor() as cursor:
                cursor.execute(*self._sent(self._lock, {**self._mine(write, places), **self._parameters}))
                is_free = dict(cursor.fetchall())
            free = [place for place in places if is_free.get(write.held[place][0])]
            rows = self._run(write, free) if free else {}
        written.busy.update(pk for pk, free in is_free.items() if not free)
        return rows

    def _run(self, write: "_Write", places: Sequence[int]) -> dict[uuid.UUID, Any]:
        columns = {
            name: array(write.chosen(values, places), **write.usual_of(name)) for name, values in write.columns.items()
        }
        parameters = {**self._mine(write, places), **columns, **self._parameters, **write.parameters}
        with transaction.get_connection(self._using).cursor() as cursor:
            execute(cursor, *self._sent(write.statement, parameters))
            return {row[0]: row[1:] for row in cursor.fetchall()}

    def _mine(self, write: "_Write", places: Sequence[int]) -> dict[str, str]:
        held = write.chosen(write.held, places)
        return {"ids": array([pk for pk, _ in held]), "claims": array([claims for _, claims in held])}


class _Write:
    """One write, and what it is for."""

    def __init__(self, statement: str, held: Any, columns: Any, usual: Any, parameters: Any) -> None:
        self.statement = statement
        self.held: Sequence[Key] = held
        self.columns: Mapping[str, Sequence[object]] = columns
        self.parameters: Mapping[str, Any] = parameters
        self._usual: Mapping[str, object] = usual

    def chosen(self, values: Sequence[Any], places: Sequence[int]) -> Sequence[Any]:
        return values if len(places) == len(self.held) else [values[place] for place in places]

    def usual_of(self, name: str) -> dict[str, Any]:
        return {"usual": self._usual[name]} if name in self._usual else {}


def survive(using: str) -> None:
    """After a statement that was cancelled: some time limits end the session, too."""
    connections[using].close_if_unusable_or_obsolete()
