"""`manage.py runworker`: run the jobs."""

from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from pgwerk_django.exceptions import shown
from pgwerk_django.management.service import (
    PgwerkCommand,
    add_metrics_options,
    add_worker_options,
    show_log_lines,
    showing_metrics,
    spare_the_collector,
    stopping,
    tell_if_not_finished,
    worker_options,
)
from pgwerk_django.worker import Worker


def queue_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        # An empty variable of a shell must not come to mean every queue.
        raise ArgumentTypeError(f"must be names of queues between commas, got {shown(text)}")
    return names


class Command(PgwerkCommand):
    help = (
        "Runs jobs in child processes. Any number may run. SIGTERM or Ctrl-C lets the jobs at hand finish (exit code 0; 3"
        " when some had to be stopped and handed back, 1 when some could not be written), a second one stops them now, a"
        " third one kills everything."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--queues",
            type=queue_names,
            default=[],
            metavar="A,B",
            help="take jobs from these, the first preferred (default: from all)",
        )
        add_worker_options(parser)
        parser.add_argument("--burst", action="store_true", help="return when nothing is waiting")
        add_metrics_options(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        show_log_lines(options["verbosity"])
        if not options["burst"]:
            spare_the_collector()
        worker = Worker(queues=options["queues"], burst=options["burst"], **worker_options(options))
        with showing_metrics(options), stopping(worker.stop, worker.hurry, worker.kill_children):
            worker.run()
        tell_if_not_finished(worker)
