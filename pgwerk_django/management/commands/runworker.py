"""`manage.py runworker`: run the jobs."""

from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from pgwerk_django.management.service import PgwerkCommand, positive, show_log_lines, stopping
from pgwerk_django.worker import Worker


def queue_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        # An empty variable of a shell must not come to mean every queue.
        raise ArgumentTypeError(f"must be names of queues between commas, got {text!r}")
    return names


class Command(PgwerkCommand):
    help = "Runs jobs. Any number may run; SIGTERM or Ctrl-C ends one after the jobs at hand."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--queues",
            type=queue_names,
            default=[],
            metavar="A,B",
            help="take jobs from these, the first preferred (default: from all)",
        )
        parser.add_argument("--concurrency", type=positive, metavar="N", help="jobs at a time (default: the CPUs)")
        parser.add_argument("--burst", action="store_true", help="return when nothing is waiting")

    def handle(self, *args: Any, **options: Any) -> None:
        show_log_lines(options["verbosity"])
        worker = Worker(queues=options["queues"], concurrency=options["concurrency"], burst=options["burst"])
        with stopping(worker.stop):
            worker.run()
