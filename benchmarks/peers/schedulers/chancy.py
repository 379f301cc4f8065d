"""Chancy's cron plugin, looking each second (its least; the default is a minute). No queue is declared: nothing is run."""

import asyncio
import os
import sys

from chancy import Chancy, Worker, job
from chancy.plugins.cron import Cron

from benchmarks import functions

app = Chancy(os.environ["DATABASE_URL"], plugins=[Cron(poll_interval=1)])


@job()
def nothing() -> None:
    functions.nothing()


async def fill(count: int) -> None:
    # Its path must be one that can be imported.
    from benchmarks.peers.schedulers import chancy

    async with app:
        await app.migrate()
        jobs = [chancy.nothing.job.with_unique_key(f"nothing_{n}") for n in range(count)]
        await Cron.schedule(app, "0 0 1 1 *", *jobs)
        async with app.pool.connection() as connection:
            await connection.execute("UPDATE chancy_cron SET next_run = now()")


async def run() -> None:
    async with app, Worker(app) as worker:
        await worker.wait_for_shutdown()


if __name__ == "__main__":
    asyncio.run(fill(int(sys.argv[2])) if sys.argv[1] == "fill" else run())
