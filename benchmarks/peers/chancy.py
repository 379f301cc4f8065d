"""Chancy with its default executor, a process for each CPU; with EXECUTOR=async, the one on its event loop.

Polling is eager: without, it looks for jobs that are there already each 5 seconds, and takes one for each CPU.
"""

import asyncio
import os
import sys

from chancy import Chancy, Queue, job

from benchmarks import functions

app = Chancy(os.environ["DATABASE_URL"])


@job()
def nothing() -> None:
    functions.nothing()


@job()
async def nothing_async() -> None:
    await functions.nothing_async()


async def fill(count: int) -> None:
    async with app:
        await app.migrate()
        chosen, executor = nothing, Chancy.Executor.Process
        if os.environ.get("EXECUTOR") == "async":
            chosen, executor = nothing_async, Chancy.Executor.Async
        await app.declare(Queue("default", executor=executor, eager_polling=True))
        async for _ in app.push_many([chosen.job] * count):
            pass


if __name__ == "__main__":
    # Its path must be one that the worker can import.
    from benchmarks.peers import chancy

    asyncio.run(chancy.fill(int(sys.argv[1])))
