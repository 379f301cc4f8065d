"""Functions that tests schedule. They stand at the top level of a module, so that a worker can import them."""

import os
import signal
import threading
from typing import Any

from pgwerk_django.jobs import current_job

calls: list[Any] = []
gate = threading.Event()


def noop() -> None:
    pass


def add(a: int, b: int = 0) -> int:
    return a + b


def log_in(password: str, **kwargs: Any) -> None:
    pass


def remember(*args: Any, **kwargs: Any) -> None:
    calls.append((args, kwargs))


def job_seen() -> dict[str, Any]:
    job = current_job()
    assert job is not None
    return {"name": job.schedule_name, "attempt": job.attempt, "meta": job.meta, "due_at": str(job.due_at)}


async def async_add(a: int, b: int = 0) -> int:
    return a + b


async def async_forever() -> None:
    import asyncio

    await asyncio.Event().wait()


def wait_for_gate() -> str:
    gate.wait(30)
    return "through"


def fail(text: str = "no luck") -> None:
    raise ValueError(text)


def fail_with_nul() -> None:
    raise ValueError("a zero \0 byte and half a pair \ud800")


def fail_with_notes() -> None:
    error = ValueError("the first line\nthe second line")
    error.add_note("a note")
    raise error


def produce() -> Any:
    yield 1


def fail_first() -> str:
    job = current_job()
    assert job is not None
    if job.attempt == 1:
        raise ValueError("the first time")
    return f"attempt {job.attempt}"


def not_json() -> object:
    return object()


def nul_result() -> str:
    return "a\0b"


def leave() -> None:
    raise SystemExit(3)


def kill_own_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


not_a_function = 42
