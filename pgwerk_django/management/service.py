"""What our commands share: signals that stop them, log lines, and one clear line where `migrate` was forgotten."""

import contextlib
import getpass
import logging
import os
import signal
import threading
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from typing import Any

import psycopg.errors
from django.core.management.base import BaseCommand, CommandError
from django.db import ProgrammingError

from pgwerk_django.loop import hearing

LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class PgwerkCommand(BaseCommand):
    def execute(self, *args: Any, **options: Any) -> str | None:
        try:
            return super().execute(*args, **options)
        except ProgrammingError as error:
            if isinstance(error.__cause__, psycopg.errors.UndefinedTable) and "_pgwerk_" in str(error):
                raise CommandError("the tables are missing: run 'manage.py migrate' first") from error
            raise


def whoami() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be a whole number, 1 or more, got {text!r}")
    return int(text)


@contextlib.contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at SIGTERM and SIGINT; the same one again ends the process at once. Only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = set()

    def tell(number: int) -> None:
        if number in asked:
            os._exit(128 + number)
        asked.add(number)
        stop()

    with hearing(signal.SIGTERM, signal.SIGINT, tell=tell):
        yield


def show_log_lines(verbosity: int) -> None:
    """Print our log lines to stderr, unless the project has its own handlers for them."""
    logger = logging.getLogger("pgwerk_django")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(LOG_FORMAT))
        logger.addHandler(handler)
        logger.setLevel([logging.WARNING, logging.INFO, logging.DEBUG][min(verbosity, 2)])
