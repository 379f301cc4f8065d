"""`python -m tests.chaos.process runscheduler …`: a management command of ours, with the harness's schedules in it.

`CHAOS_VERSION` says which version of the code it is, `CHAOS_POINT` where it ends or freezes, `CHAOS_BREAK` what is broken.
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time

import django

PR_SET_PDEATHSIG = 1


def main() -> None:
    if sys.platform == "linux":  # a harness that is killed leaves nobody behind
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.chaos.settings")
    os.environ["PGAPPNAME"] = f"chaos-{os.getpid()}"  # says in the record of jobs which process made a change
    if "FAKETIME_TIMESTAMP_FILE" in os.environ:
        # libfaketime moves the deadlines of `time.sleep`, too, although they are monotonic: it was refused with EINVAL.
        time.sleep = threading.Event().wait  # type: ignore[assignment]  # noqa: TID251
    django.setup()
    from django.core.management import execute_from_command_line

    from tests.chaos import broken, points, workload

    workload.declare(os.environ["CHAOS_VERSION"])
    broken.apply(json.loads(os.environ["CHAOS_BREAK"]))
    if told := os.environ.get("CHAOS_POINT"):
        points.arm(*json.loads(told))
    execute_from_command_line(["manage.py", *sys.argv[1:]])


if __name__ == "__main__":
    main()
