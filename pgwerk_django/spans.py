"""Where telemetry looks in. Until `pgwerk_django.telemetry` is turned on, nobody does, and that costs nothing."""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

AUTO_INSTRUMENTATION = "opentelemetry.instrumentation.auto_instrumentation"

_NOTHING: AbstractContextManager[Any] = contextlib.nullcontext(lambda outcome: outcome)


class Watch:
    """Sees nothing. Who sees something derives from it, and takes its place in `watch`."""

    patience = 0.0  # seconds that a process which ends gives it, to send the last of what it saw

    def tick(self) -> AbstractContextManager[object]:
        return _NOTHING

    def hand_over(self, jobs: Sequence[Any]) -> AbstractContextManager[object]:
        return _NOTHING

    def job(self, job: Any) -> AbstractContextManager[Callable[[Any], Any]]:
        """Gives what the `Outcome` of this job is to be told to, which gives it back."""
        return _NOTHING

    def traceparent(self) -> str:
        """Of whatever enqueues a job here."""
        return ""

    def flush(self) -> None:
        """This process is about to end."""


watch = Watch()
