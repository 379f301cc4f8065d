"""The least that a scheduler can be: sleep until something is due, then one statement (`benchmarks.tick.PLAIN`)."""

import os
import time

import psycopg

from benchmarks.tick import PLAIN

_NEXT = """
SELECT extract(epoch FROM least(next_run_at, triggered_at) - clock_timestamp()) FROM _pgwerk_schedules
WHERE (NOT paused OR triggered_at IS NOT NULL) AND least(next_run_at, triggered_at) IS NOT NULL
ORDER BY least(next_run_at, triggered_at) LIMIT 1
"""


def main() -> None:
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        while True:
            found = connection.execute(_NEXT, prepare=True).fetchone()
            delay = min(float(found[0]), 1) if found else 1
            if delay > 0:
                time.sleep(delay)  # noqa: TID251  # what it is for
            else:
                connection.execute(PLAIN, prepare=True)


if __name__ == "__main__":
    main()
