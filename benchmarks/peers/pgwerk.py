"""pgwerk with an async function: ten jobs at a time, on its event loop."""

import asyncio
import os
import sys

from pgwerk import EnqueueParams, Werk

from benchmarks import functions

app = Werk(os.environ["DATABASE_URL"])


async def fill(count: int) -> None:
    async with app:
        await app.enqueue_many([EnqueueParams(func=functions.nothing_async)] * count)


if __name__ == "__main__":
    asyncio.run(fill(int(sys.argv[1])))
