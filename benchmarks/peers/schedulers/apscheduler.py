"""APScheduler 4 (alpha) in the role of a scheduler, with its SQLAlchemy data store and its psycopg event broker."""

import asyncio
import datetime as dt
import os
import random
import sys

from apscheduler import AsyncScheduler, SchedulerRole
from apscheduler.datastores.sqlalchemy import SQLAlchemyDataStore
from apscheduler.eventbrokers.psycopg import PsycopgEventBroker
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks import functions


def scheduler() -> AsyncScheduler:
    engine = create_async_engine("postgresql+psycopg" + os.environ["DATABASE_URL"].removeprefix("postgres"))
    broker = PsycopgEventBroker.from_async_sqla_engine(engine)
    return AsyncScheduler(SQLAlchemyDataStore(engine), broker, role=SchedulerRole.scheduler)


async def fill(count: int, seconds: int) -> None:
    start = dt.datetime.now(dt.UTC)
    every = dt.timedelta(seconds=1 / count if seconds == 1 else 0)
    async with scheduler() as found:
        for n in range(count):
            trigger = IntervalTrigger(seconds=seconds, start_time=start + n * every)
            await found.add_schedule(functions.nothing, trigger, id=f"nothing_{n}")


async def wake(count: int) -> None:
    """From this process, a schedule that is due now, again and again."""
    async with scheduler() as found:
        for n in range(count):
            await asyncio.sleep(random.uniform(0.05, 0.3))
            trigger = IntervalTrigger(seconds=86400, start_time=dt.datetime.now(dt.UTC))
            await found.add_schedule(functions.nothing, trigger, id=f"wake_{n}")


async def run() -> None:
    async with scheduler() as found:
        await found.run_until_stopped()


if __name__ == "__main__":
    what, count, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    asyncio.run({"fill": lambda: fill(count, seconds), "wake": lambda: wake(count), "run": run}[what]())
