"""pgwerk's own workers: jobs are enqueued through its public API, and its unique keys drop what was sent before."""

import asyncio
import contextlib
import datetime as dt
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
from django.utils.module_loading import import_string
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgwerk_django import conf
from pgwerk_django.exceptions import FunctionNotFound, TargetUnavailable, named, text_of
from pgwerk_django.loop import connection_parameters
from pgwerk_django.models import Job
from pgwerk_django.targets.base import EVERYTHING, ForeignTarget, found_at

OUR_PREFIX = "_pgwerk"
SMALLINT = (-(2**15), 2**15 - 1)  # its priorities


def library() -> Any:
    """The package. The one place where it is imported."""
    try:
        import pgwerk
    except ImportError as error:
        raise TargetUnavailable("pgwerk is not installed: pip install 'pgwerk-django[pgwerk]'") from error
    return pgwerk


def werk() -> Any:
    """The project's `Werk` (`PGWERK["WERK"]`), else one on our database, with its tables in the schema `pgwerk`.

    Raises `TargetUnavailable` where it would share the names of our own tables.
    """
    module, path = library(), conf.current().WERK
    if path is None:
        return module.Werk(make_conninfo(**_text(connection_parameters(conf.current().DATABASE))))
    try:
        found = import_string(path)
        found = found if isinstance(found, module.Werk) else found()
    except Exception as error:
        raise TargetUnavailable(f"PGWERK['WERK'] must lead to a pgwerk.Werk, got {path!r}: {named(error)}") from error
    if shares_our_tables(found):
        raise TargetUnavailable(
            f"PGWERK['WERK'] must have a schema or a prefix of its own: {path!r} has schema={found.schema!r} and"
            f" prefix={found.prefix!r}, so its tables would be ours"
        )
    return found


def shares_our_tables(found: Any) -> bool:
    """Whether its tables would bear our own names in our own database, as far as can be told without connecting."""
    if found.prefix != OUR_PREFIX:
        return False
    ours, theirs = connection_parameters(conf.current().DATABASE), conninfo_to_dict(found.dsn)
    search_path = [
        part.strip().strip('"') for part in str(ours.get("options", "")).rpartition("search_path=")[2].split(",")
    ]
    in_our_schema = found.schema in (None, "", "public") or found.schema in search_path
    return in_our_schema and str(theirs.get("dbname", "")) == str(ours.get("dbname", ""))


def _text(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if isinstance(value, str | int)}


class PgwerkTarget(ForeignTarget):
    name = "pgwerk"
    honours = EVERYTHING

    def function_problems(self, function: str) -> Iterator[str]:
        try:
            werk()
            found = found_at(function)
            if not callable(found):
                raise FunctionNotFound(f"{function!r} is not a function, but {type(found).__name__}")
        except (TargetUnavailable, FunctionNotFound) as error:
            yield text_of(error)

    def demand_problems(self, row: Any) -> Iterator[str]:
        yield from super().demand_problems(row)
        if not SMALLINT[0] <= row.priority <= SMALLINT[1]:
            yield f"_priority must be from {SMALLINT[0]} to {SMALLINT[1]} for the target 'pgwerk', got {row.priority}"
        for name in row.kwargs:
            if name.startswith("_"):
                yield f"kwargs must have no names with a leading underscore for the target 'pgwerk', got {name!r}"

    def goes_together(self, job: Job) -> bool:
        return True

    @contextlib.contextmanager
    def connected(self) -> Iterator[Callable[[Sequence[Job]], list[str]]]:
        with asyncio.Runner() as runner:
            app = werk()
            runner.run(app.connect())
            connection = runner.run(psycopg.AsyncConnection.connect(app.dsn, autocommit=True))
            try:
                yield lambda jobs: runner.run(self._enqueue_all(app, jobs, connection))
            finally:
                runner.run(connection.close())

    def send(self, job: Job) -> str:
        with self.connected() as send_all:
            return send_all([job])[0]

    async def _enqueue_all(self, app: Any, jobs: Sequence[Job], connection: Any) -> list[str]:
        async with connection.transaction():
            return [await self._enqueue(app, job, connection) for job in jobs]

    async def _enqueue(self, app: Any, job: Job, connection: Any) -> str:
        enqueued = await app.enqueue(
            job.function,
            *job.args,
            **job.kwargs,
            _key=job.key,
            _queue=job.queue,
            _priority=job.priority,
            _retry=self._retry(job),
            _timeout=job.timeout,
            _result_ttl=job.result_ttl,
            _failure_ttl=job.failure_ttl,
            _ttl=self._ttl(job),
            _meta=job.meta or None,
            _conn=connection,
        )
        return str(enqueued.id) if enqueued else job.key  # it was there before

    def _retry(self, job: Job) -> Any:
        """Without a back-off of the schedule's own, pgwerk's doubles as ours does."""
        if job.backoff is None:
            return job.max_attempts
        return library().Retry(max=job.max_attempts, intervals=job.backoff)

    def _ttl(self, job: Job) -> int | None:
        """In seconds from now, by the clock of this host, as pgwerk counts."""
        if job.start_by is None:
            return None
        return max(math.ceil((job.start_by - dt.datetime.now(dt.UTC)).total_seconds()), 1)
