"""Functions that do to their own process what a job should not, or what a library does to it."""

import asyncio
import contextvars
import decimal
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection

from pgwerk_django.jobs import current_job
from tests import functions
from tests.functions import write

# -- copies


def fork(how: str, *args: Any) -> Any:
    """Fork, end the copy in one of `COPIES`, and return how it ended."""
    pid = os.fork()
    if pid == 0:
        return COPIES[how](*args)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def async_fork(how: str) -> Any:
    return fork(how)


async def async_fork_and_await() -> Any:
    pid = os.fork()
    if pid == 0:
        await asyncio.sleep(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fork_in_a_thread() -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(fork("os._exit")))
    thread.start()
    thread.join()
    return found


def _raise() -> None:
    raise ValueError("of the copy")


def _query() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        write("copy", cursor.fetchone()[0])
    sys.exit()


def _progress() -> None:
    job = current_job()
    assert job is not None
    job.progress(1)


COPIES: dict[str, Any] = {
    "returns": lambda: "a result that is not the job's",
    "sys.exit()": lambda: sys.exit(),
    "sys.exit(3)": lambda: sys.exit(3),
    "sys.exit(text)": lambda: sys.exit("text"),
    "os._exit": lambda: os._exit(4),
    "raises": _raise,
    "queries": _query,
    "says progress": _progress,
    "is killed": lambda: os.kill(os.getpid(), 15),
}


def fork_amid_queries() -> list[int]:
    """The sessions before and after a copy used the database: the copy must not end, or use, that of its parent."""
    sessions = []
    for _ in range(2):
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            sessions.append(cursor.fetchone()[0])
        if len(sessions) == 1:
            assert fork("queries") == 0
    return sessions


def use_processes(method: str) -> list[int]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        found = list(pool.map(abs, [-1, -2, -3]))
    process = context.Process(target=abs, args=[1])
    process.start()
    process.join()
    return [*found, process.exitcode or 0]


def terminate(how: str) -> int:
    """Start a program in one of several ways, terminate it, and return how it ended."""
    command = ["sleep", "30"]
    if how == "preexec_fn":
        program = subprocess.Popen(command, preexec_fn=lambda: None)
    elif how == "shell":
        program = subprocess.Popen("exec sleep 30", shell=True)
    elif how == "posix_spawn":
        pid = os.posix_spawn("/bin/sleep", command, os.environ)
        os.kill(pid, 15)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    elif how == "multiprocessing":
        import multiprocessing

        process = multiprocessing.get_context("fork").Process(target=functions.sleep)
        process.start()
        functions_read_until("asleep")
        process.terminate()
        process.join(10)
        return process.exitcode or 0
    else:
        program = subprocess.Popen(command)
    program.terminate()
    return program.wait(10)


def functions_read_until(word: str) -> None:
    pause = threading.Event()
    while not any(note[0] == word for note in functions.read()):
        pause.wait(0.02)


def inherited_by_a_program() -> dict[str, Any]:
    """What a program sees that a job starts with `close_fds=False`: signals ignored and blocked, open files."""
    script = (
        "import json, os, re\n"
        "status = open('/proc/self/status').read()\n"
        "masks = {name: int(re.search(name + r':\\s+(\\w+)', status)[1], 16) for name in ('SigIgn', 'SigBlk')}\n"
        "files = [os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if int(n) > 2"
        " and os.path.exists(f'/proc/self/fd/{n}')]\n"
        "print(json.dumps({**masks, 'sockets': [each for each in files if each.startswith('socket')]}))\n"
    )
    import json

    output = subprocess.run([sys.executable, "-c", script], close_fds=False, check=True, capture_output=True).stdout
    return json.loads(output)  # type: ignore[no-any-return]


# -- what no job should do


def forget_our_modules() -> None:
    for name in [name for name in sys.modules if name.startswith("pgwerk_django")]:
        del sys.modules[name]


def forget_all_modules() -> None:
    sys.modules.clear()


def lower_the_recursion_limit() -> None:
    sys.setrecursionlimit(60)


def close_stdout() -> None:
    sys.stdout.close()


def without_streams() -> None:
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None  # type: ignore[misc,assignment]


def close_files() -> None:
    os.closerange(3, 256)


def close_files_and_open_another() -> None:
    os.closerange(3, 256)
    for number in range(5):
        Path(os.environ["PGWERK_TEST_FOLDER"], f"mine-{number}").open("w")  # noqa: SIM115


def write_to_the_pipe() -> None:
    """Bytes that are no message of ours, to every socket that is open."""
    for number in map(int, os.listdir("/proc/self/fd")):
        if os.path.exists(f"/proc/self/fd/{number}") and os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
            os.write(number, b"\0\0\0\4junk")
    functions.sleep()


def remove_the_working_directory(folder: str) -> None:
    Path(folder).mkdir()
    os.chdir(folder)
    Path(folder).rmdir()


def patch_threading() -> None:
    threading.Thread.start = threading.Thread.join = None  # type: ignore[method-assign,assignment]


class FailsInDel:
    def __del__(self) -> None:
        raise SystemExit(5)


def fail_in_del() -> None:
    FailsInDel()


def odd_progress() -> None:
    import enum

    class Steps(enum.IntEnum):
        FIRST = 1

    class Number(float):
        pass

    job = current_job()
    assert job is not None
    job.progress(Steps.FIRST, Number(2.5), type("Note", (str,), {})("note"))


# -- the event loop


async def exit_in_a_task(error: str) -> str:
    async def leave() -> None:
        raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}[error]

    task = asyncio.create_task(leave())
    try:
        await task
    except BaseException as raised:  # noqa: BLE001
        return type(raised).__name__
    return ""


async def exit_in_a_callback() -> str:
    asyncio.get_running_loop().call_soon(sys.exit)
    await asyncio.sleep(0.01)
    return "went on"


async def stop_the_loop() -> str:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.01)
    return "went on"


async def close_the_loop() -> None:
    asyncio.get_running_loop().close()


async def odd_task_factory() -> None:
    asyncio.get_running_loop().set_task_factory(lambda loop, coroutine: None)  # type: ignore[arg-type,return-value]


async def cancel_all_tasks() -> str:
    for task in asyncio.all_tasks():
        if task is not asyncio.current_task():
            task.cancel()
    return "cancelled the others"


async def async_wait() -> None:
    write("waiting")
    await asyncio.Event().wait()


# -- output


def say(text: str, pause: float = 0) -> None:
    print(text)  # noqa: T201
    time.sleep(pause)  # noqa: TID251


def say_half_a_line() -> None:
    print("half a line", end="")  # noqa: T201


class Shipper:
    """As error trackers and log shippers do it: a thread sends, later on, what is put; `atexit` has it send the rest."""

    def __init__(self, *, hangs: bool = False) -> None:
        import atexit
        import queue

        self._todo: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._hangs = hangs
        self._ends = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        atexit.register(self.flush)

    def put(self, text: str) -> None:
        self._todo.put(text)

    def _run(self) -> None:
        self._ends.wait()
        while not self._todo.empty():
            write("shipped", self._todo.get())
        self._done.set()

    def flush(self) -> None:
        write("flushing")
        self._done = threading.Event()
        if self._hangs:
            threading.Event().wait()
        self._ends.set()
        self._done.wait(2)


def ship(*, hangs: bool = False) -> None:
    Shipper(hangs=hangs).put("the last words")


def ship_in_an_executor() -> None:
    from concurrent.futures import ThreadPoolExecutor

    pause = threading.Event()
    ThreadPoolExecutor(1).submit(lambda: (pause.wait(0.2), write("shipped", "in the background")))


def leave_a_thread() -> None:
    threading.Thread(target=threading.Event().wait).start()
    ship()


def buffered_log() -> None:
    import logging.handlers

    class Target(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            write("logged", record.getMessage())

    logger = logging.getLogger("tests.buffered")
    logger.addHandler(logging.handlers.MemoryHandler(100, logging.CRITICAL, Target()))
    logger.setLevel(logging.INFO)
    logger.info("kept in memory")


# -- what is left for the next job

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")


def leave_traces() -> None:
    tenant.set("acme")
    decimal.getcontext().prec = 3
    connection.schema_name = "acme"


async def async_leave_traces() -> None:
    tenant.set("acme")
    decimal.getcontext().prec = 3
    await sync_to_async(leave_traces)()


def traces() -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return [tenant.get(), decimal.getcontext().prec, getattr(connection, "schema_name", "none")]


async def async_traces() -> list[Any]:
    return [tenant.get(), decimal.getcontext().prec, (await sync_to_async(traces)())[2]]


# -- where it hangs


def hang_here(how: str) -> None:
    write("hangs")
    if how == "spins":
        while True:
            pass
    threading.Event().wait() if how == "waits in C" else time.sleep(3600)  # noqa: TID251


async def async_hang_here(how: str) -> None:
    write("hangs")
    if how == "blocks the loop":
        hang_here("sleeps")
    await _deeper()


async def _deeper() -> None:
    await asyncio.Event().wait()  # the innermost line
