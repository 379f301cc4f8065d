"""procrastinate's periodic tasks, which are declared in code and fired by its worker; that one runs none of them."""

import asyncio
import logging
import os
import sys

from procrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector(conninfo=os.environ["DATABASE_URL"]))


async def nothing(timestamp: int) -> None: ...


async def fill() -> None:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


async def run(count: int, seconds: int) -> None:
    task = app.task(name="nothing")(nothing)
    for n in range(count):
        # It fires at its start what was due within the last ten minutes: once for each of these.
        app.periodic(cron="* * * * * *" if seconds == 1 else "*/5 * * * *", periodic_id=f"nothing_{n}")(task)
    async with app.open_async():
        await app.run_worker_async(queues=["none"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    what, count, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    asyncio.run(fill() if what == "fill" else run(count, seconds))
