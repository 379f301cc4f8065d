"""Tests wait for a condition with a deadline, never for a time."""

import threading
from collections.abc import Callable

from django.db import connection


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    pause = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError(f"not so within {seconds} s")


def waiting_for_a_lock() -> bool:
    """Whether some session waits for another's lock."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        return bool(cursor.fetchone()[0])
