"""What the benchmarks' jobs call. The peers' environments import it too, so: the standard library only."""

import asyncio
import os
import time
from pathlib import Path


def nothing() -> None: ...


async def nothing_async() -> None: ...


async def wait(seconds: float) -> None:
    await asyncio.sleep(seconds)


def clock() -> float:
    return time.time()


def note(folder: str, key: str) -> None:
    """Leave a trace that no database knows of: a line in this process's own file."""
    with (Path(folder) / str(os.getpid())).open("a") as lines:
        lines.write(f"{key}\n")
