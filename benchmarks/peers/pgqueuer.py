"""pgqueuer as its documentation has it: one asyncpg connection, and an async function, which it runs on its event loop.

With DRIVER=psycopg, over the driver that Django has.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator

import asyncpg
import pgqueuer
import psycopg
import uvloop
from pgqueuer.db import AsyncpgDriver, Driver, PsycopgDriver
from pgqueuer.queries import Queries

from benchmarks import functions


async def driver() -> Driver:
    url = os.environ["DATABASE_URL"]
    if os.environ.get("DRIVER") == "psycopg":
        return PsycopgDriver(await psycopg.AsyncConnection.connect(url, autocommit=True))
    return AsyncpgDriver(await asyncpg.connect(url))


@contextlib.asynccontextmanager
async def worker() -> AsyncIterator[pgqueuer.PgQueuer]:
    found = pgqueuer.PgQueuer(await driver())

    @found.entrypoint("nothing")
    async def nothing(job: object) -> None:
        await functions.nothing_async()

    yield found


async def fill(count: int) -> None:
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    await queries.enqueue(["nothing"] * count, [None] * count, [0] * count)
    await connection.close()


if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(fill(int(sys.argv[1])))
    else:
        # What `pgq run` does, on the same event loop; with the newest typer the command itself does not start.
        uvloop.run(pgqueuer.run(worker))
