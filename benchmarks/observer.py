"""Hears of each job when it is there for others: a row trigger notifies, which PostgreSQL delivers after the commit."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg
import psycopg.sql

from benchmarks.peer import connect

_WATCH = """
CREATE FUNCTION bench_seen() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('bench', concat_ws(' ', extract(epoch FROM {due}), extract(epoch FROM {acted})));
    RETURN NULL;
END $$;
CREATE TRIGGER bench_seen AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION bench_seen()
"""


class Seen(NamedTuple):
    """Seconds after the due time, both by the clock of PostgreSQL's host."""

    acted: float  # the statement or transaction that wrote the row began
    seen: float  # another session heard that it was committed


class Observer:
    """Our own clock is compared with that of PostgreSQL's host first."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._ahead = min((self._compared() for _ in range(20)), key=lambda found: found[1])[0]

    def _compared(self) -> tuple[float, float]:
        """How far PostgreSQL's clock is ahead of ours, and how long it took to ask."""
        before = time.time()
        answer = self._connection.execute("SELECT extract(epoch FROM clock_timestamp())").fetchone()
        after = time.time()
        assert answer is not None
        return float(answer[0]) - (before + after) / 2, after - before

    def now(self) -> float:
        return time.time() + self._ahead

    def seen(self, *, within: float, at_most: int | None = None) -> Iterator[Seen]:
        """One for each job that appears within so many seconds."""
        for notify in self._connection.notifies(timeout=within):
            now = self.now()
            due, acted = map(float, notify.payload.split())
            yield Seen(acted - due, now - due)
            if at_most is not None:
                at_most -= 1
                if not at_most:
                    return


@contextlib.contextmanager
def observer(url: str, table: str, due: str, acted: str = "statement_timestamp()") -> Iterator[Observer]:
    """`due` and `acted`: SQL for instants of the row `NEW`."""
    with connect(url) as connection:
        statement = _WATCH.format(table=table, due=due, acted=acted)
        connection.execute("DROP FUNCTION IF EXISTS bench_seen CASCADE")
        connection.execute(psycopg.sql.SQL(statement))  # type: ignore[arg-type]
        connection.execute("LISTEN bench")
        yield Observer(connection)
        connection.execute("DROP FUNCTION bench_seen CASCADE")


def percentile(values: list[float], share: float) -> float:
    ranked = sorted(values)
    return ranked[min(int(len(ranked) * share), len(ranked) - 1)]
