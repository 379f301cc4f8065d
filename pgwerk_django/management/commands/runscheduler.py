"""`manage.py runscheduler`: sync what code declares, then make jobs of what is due. Run as many as you like."""

from argparse import ArgumentParser
from typing import Any

from pgwerk_django.management.service import (
    PgwerkCommand,
    add_metrics_options,
    add_worker_options,
    positive,
    show_log_lines,
    showing_metrics,
    spare_the_collector,
    stopping,
    tell_if_not_finished,
    worker_options,
)
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.sync import ON_UNREGISTERED
from pgwerk_django.worker import Worker


class Command(PgwerkCommand):
    help = "Makes a job of each due time. Any number may run; SIGTERM or Ctrl-C ends one after the tick at hand."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--on-unregistered",
            choices=ON_UNREGISTERED,
            default="pause",
            help="what becomes of rows that came from code and that code no longer declares (default: %(default)s)",
        )
        parser.add_argument("--once", action="store_true", help="sync, tick until nothing is due, and return")
        parser.add_argument("--batch-size", type=positive, metavar="N", help="schedules a tick (PGWERK['BATCH_SIZE'])")
        parser.add_argument("--with-worker", action="store_true", help="run jobs too: one service for a small site")
        add_metrics_options(parser)
        add_worker_options(parser.add_argument_group("with --with-worker"))

    def handle(self, *args: Any, **options: Any) -> None:
        show_log_lines(options["verbosity"])
        if not options["once"]:
            spare_the_collector()
        scheduler = Scheduler(on_unregistered=options["on_unregistered"])
        worker = Worker(burst=options["once"], **worker_options(options)) if options["with_worker"] else None

        def stop() -> None:
            scheduler.stop()
            if worker:
                worker.stop()

        def hurry() -> None:
            scheduler.hurry()
            if worker:
                worker.hurry()

        # Without jobs to be handed back, the second signal may end the process: what a tick has not committed, another makes.
        signals = stopping(stop, hurry, worker.kill_children) if worker else stopping(stop)
        with showing_metrics(options, state=True), signals:
            if options["once"]:
                scheduler.run_once(options["batch_size"])
                if worker:
                    worker.run()
            elif worker:
                scheduler.run(worker, batch_size=options["batch_size"], bell=worker.bell)
            else:
                scheduler.run(batch_size=options["batch_size"])
        if worker:
            tell_if_not_finished(worker)
