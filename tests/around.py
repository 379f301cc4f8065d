"""What `PGWERK["AROUND_JOB"]` leads to in tests of real processes: it notes what it sees, and what is logged of jobs."""

import contextlib
import contextvars
import logging
import os
from collections.abc import Iterator
from typing import Any

from tests.functions import write

around_key: contextvars.ContextVar[str] = contextvars.ContextVar("around_key", default="")


class Records(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raised = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
        write("record", [record.name, record.levelname, getattr(record, "job_key", ""), raised, around_key.get()])


# In the processes that a test starts, and not in that of all tests.
for name in () if "PGWERK_TEST_AROUND" not in os.environ else ("pgwerk_django.job", "django.tasks", "django_tasks"):
    logging.getLogger(name).addHandler(Records())


class OnlyAsync:
    async def __aenter__(self) -> None:
        write("around", "entered by async with")

    async def __aexit__(self, *raised: Any) -> None:
        pass


def around(job: Any) -> Any:
    if job.meta.get("around") == "is none":
        return 42
    return OnlyAsync() if job.meta.get("around") == "is async" else _around(job)


@contextlib.contextmanager
def _around(job: Any) -> Iterator[None]:
    around_key.set(job.key)
    if job.meta.get("around") == "raises before":
        raise LookupError("before")
    try:
        yield
    except BaseException as error:
        write("around", f"saw {type(error).__name__}")
        if job.meta.get("around") != "suppresses":
            raise
    if job.meta.get("around") == "raises after":
        raise LookupError("after")
