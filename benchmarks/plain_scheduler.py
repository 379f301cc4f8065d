"""The least that a scheduler can be: sleep until something is due, then one statement (`benchmarks.tick.PLAIN`)."""

import os
import time

import psycopg

from benchmarks.tick import PLAIN

MOST_FOR_A_KEPT_PLAN = 10  # as `pgwerk_django.tick` has it

_NEXT = """
SELECT extract(epoch FROM least(CASE WHEN NOT paused THEN next_run_at END, triggered_at) - clock_timestamp()) FROM _pgwerk_schedules
WHERE (NOT paused OR triggered_at IS NOT NULL) AND least(CASE WHEN NOT paused THEN next_run_at END, triggered_at) IS NOT NULL
ORDER BY least(CASE WHEN NOT paused THEN next_run_at END, triggered_at) LIMIT 1
"""


def main() -> None:
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        few = False
        while True:
            found = connection.execute(_NEXT, prepare=True).fetchone()
            delay = min(float(found[0]), 1) if found else 1
            if delay > 0:
                time.sleep(delay)  # noqa: TID251  # what it is for
            else:
                # A plan that is kept was made while there were no jobs, and scans a table of many for each of a thousand rows.
                few = connection.execute(PLAIN, prepare=few).rowcount <= MOST_FOR_A_KEPT_PLAN


if __name__ == "__main__":
    main()
