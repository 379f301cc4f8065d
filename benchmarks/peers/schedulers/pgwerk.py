"""pgwerk: its `Scheduler` with the defaults; a tick takes up to 100 schedules."""

import asyncio
import os
import sys

from pgwerk import Werk
from pgwerk.scheduler import Scheduler

from benchmarks import functions

app = Werk(os.environ["DATABASE_URL"])


async def fill(count: int, seconds: int, every: float) -> None:
    scheduler = Scheduler(app, on_unregistered="keep")
    async with app:
        for n in range(count):
            await scheduler.schedule_in(n * every, functions.nothing, interval=seconds, _name=f"nothing_{n}")


async def run() -> None:
    async with app:
        await Scheduler(app, on_unregistered="keep").run()


if __name__ == "__main__":
    what, count, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    # Schedules of a second are spread evenly over one; longer ones are all due at once.
    asyncio.run(fill(count, seconds, 1 / count if seconds == 1 else 0) if what == "fill" else run())
