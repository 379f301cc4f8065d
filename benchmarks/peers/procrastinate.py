"""procrastinate with an async task: one job at a time, on its event loop."""

import asyncio
import os
import sys

from procrastinate import App, PsycopgConnector

from benchmarks import functions

app = App(connector=PsycopgConnector(conninfo=os.environ["DATABASE_URL"]))


@app.task(name="nothing")
async def nothing() -> None:
    await functions.nothing_async()


async def fill(count: int) -> None:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        await nothing.batch_defer_async(*[{}] * count)


if __name__ == "__main__":
    asyncio.run(fill(int(sys.argv[1])))
