"""What our commands share: signals that stop them, log lines, and one clear line where `migrate` was forgotten."""

import contextlib
import datetime as dt
import gc
import getpass
import logging
import os
import signal
import threading
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import IntegrityError, ProgrammingError

from pgwerk_django import conf, schema
from pgwerk_django.exceptions import ExtraMissing, UnsupportedProcess, shown
from pgwerk_django.loop import hearing
from pgwerk_django.models import Schedule
from pgwerk_django.worker import Worker

HANDED_BACK, UNSETTLED = 3, 1  # exit codes
MOST_NAMED = 10  # jobs
SAME_REQUEST = 0.1  # seconds in which a signal that comes twice (to a process, and to its group) is one request
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class PgwerkCommand(BaseCommand):
    def execute(self, *args: Any, **options: Any) -> str | None:
        try:
            return super().execute(*args, **options)
        except (ProgrammingError, IntegrityError) as error:
            if wrong := schema.explained(error, conf.current().DATABASE):
                raise CommandError(wrong) from error
            raise
        except UnsupportedProcess as error:
            raise CommandError(str(error)) from error


def text_of(instant: dt.datetime | None = None) -> str:
    return "-" if instant is None else instant.astimezone(dt.UTC).isoformat(timespec="seconds")


def upcoming(row: Schedule, n: int, now: dt.datetime) -> list[dt.datetime]:
    try:
        return row.upcoming(n, now)
    except ValueError:  # a recurrence that nobody can read: the next tick sets the row aside
        return []


def whoami() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"


def seconds(text: str) -> float:
    try:
        given = float(text)
    except ValueError:
        given = -1
    if not 0 <= given < float("inf"):
        raise ArgumentTypeError(f"must be seconds, 0 or more, got {shown(text)}")
    return given


def positive(text: str) -> int:
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise ArgumentTypeError(f"must be a whole number, 1 or more, got {shown(text)}")
    return int(text)


def port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise ArgumentTypeError(f"must be a port from 0 to 65535, got {text!r}")
    return int(text)


@contextlib.contextmanager
def stopping(
    stop: Callable[[], None], hurry: Callable[[], None] | None = None, last: Callable[[], None] | None = None
) -> Iterator[None]:
    """Call `stop` at SIGTERM or SIGINT, and `hurry` at a second one. At a further one call `last`, and end the process at once.

    Without `hurry` the second signal ends it. None of the three may wait for anything. Only in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    steps = [stop, *([hurry] if hurry else [])]
    asked = float("-inf")

    def tell(number: int) -> None:
        nonlocal asked
        if time.monotonic() - asked < SAME_REQUEST:
            return
        asked = time.monotonic()
        if steps:
            steps.pop(0)()
        else:
            if last is not None:
                last()
            os._exit(128 + number)

    with hearing(signal.SIGTERM, signal.SIGINT, tell=tell):
        yield


def add_worker_options(parser: Any) -> None:
    parser.add_argument(
        "--concurrency",
        type=positive,
        metavar="N",
        help="processes that run jobs (default: the CPUs that this process may use)",
    )
    parser.add_argument(
        "--threads",
        "--jobs-per-child",
        type=positive,
        default=1,
        metavar="M",
        help="jobs at a time in each of them, async ones as well (default: %(default)s)",
    )
    parser.add_argument(
        "--max-jobs-per-child",
        type=positive,
        metavar="N",
        help="replace a process that has run so many (default: never)",
    )
    parser.add_argument(
        "--shutdown-timeout",
        type=seconds,
        default=30,
        metavar="S",
        help="seconds that jobs get to finish; what does not is handed back (default: %(default)s)",
    )


def add_metrics_options(parser: Any) -> None:
    parser.add_argument(
        "--metrics-port", type=port, metavar="N", help="show metrics to Prometheus there (0: any free port)"
    )
    parser.add_argument(
        "--metrics-host",
        default="0.0.0.0",  # noqa: S104  # as each exporter does: whoever scrapes is rarely on the same host
        metavar="ADDRESS",
        help="on this address (default: %(default)s)",
    )


@contextlib.contextmanager
def showing_metrics(options: Mapping[str, Any], *, state: bool = False) -> Iterator[None]:
    """Raises `CommandError` where they cannot be shown."""
    with contextlib.ExitStack() as stack:
        if options["metrics_port"] is not None:
            try:
                from pgwerk_django import metrics

                stack.enter_context(metrics.showing(options["metrics_port"], host=options["metrics_host"], state=state))
            except (ExtraMissing, OSError) as error:
                raise CommandError(f"--metrics-port={options['metrics_port']}: {error}") from error
        yield


def worker_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("concurrency", "threads", "max_jobs_per_child", "shutdown_timeout")}


def tell_if_not_finished(worker: Worker) -> None:
    """End with an exit code of its own: these jobs begin anew elsewhere; at once, or (1) when their leases are over."""
    if worker.unsettled:
        raise CommandError(
            f"{len(worker.unsettled)} jobs could neither be finished nor handed back: {', '.join(worker.unsettled[:MOST_NAMED])}",
            returncode=UNSETTLED,
        )
    if worker.handed_back:
        raise CommandError(f"{worker.handed_back} running jobs were stopped and handed back", returncode=HANDED_BACK)


def spare_the_collector() -> None:
    """For a process that lives on: a full collection takes 40 ms for what Django has loaded, amid a tick or a claim.

    Not for who calls a command and goes on with something else: what is garbage later would stay for ever.
    """
    gc.freeze()


def show_log_lines(verbosity: int) -> None:
    """Print our log lines to stderr, unless the project has its own handlers for them."""
    logger = logging.getLogger("pgwerk_django")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(LOG_FORMAT))
        logger.addHandler(handler)
        logger.setLevel([logging.WARNING, logging.INFO, logging.DEBUG][min(verbosity, 2)])
