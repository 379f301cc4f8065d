"""Real processes of ours, on the test's own database."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from django.db import connection

from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent


def database_url() -> str:
    given = connection.settings_dict
    login = f"{given['USER']}:{given['PASSWORD']}@" if given["PASSWORD"] else f"{given['USER']}@"
    return f"postgres://{login}{given['HOST']}:{given['PORT'] or 5432}/{given['NAME']}"


class Started:
    """A process of ours, its log in a file."""

    def __init__(self, *arguments: str, log: Path, **environment: str) -> None:
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "DATABASE_URL": database_url(),
                    "DJANGO_SETTINGS_MODULE": "tests.settings",
                    "PYTHONWARNINGS": "error",
                    **environment,
                },
            )

    def text(self) -> str:
        return self.log.read_text()

    def says(self, text: str) -> bool:
        assert self.process.poll() is None or text in self.text(), self.text()
        return text in self.text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it, once it listens for that (one that still imports Django dies of it), and give its exit code."""
        wait_until(lambda: self._catches(number), 60)
        self.process.send_signal(number)
        return self.process.wait(60)

    def _catches(self, number: int) -> bool:
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except FileNotFoundError:  # no Linux
            return True
        caught = re.search(r"^SigCgt:\s+(\w+)", status, re.MULTILINE)
        return self.process.poll() is not None or bool(caught and int(caught[1], 16) >> (number - 1) & 1)
