"""Turns telemetry on where a process is started by `opentelemetry-instrument`. Nothing of ours imports this."""

from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from pgwerk_django import telemetry


class PgwerkInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    def instrumentation_dependencies(self) -> Collection[str]:
        return ()

    def _instrument(self, **options: Any) -> None:
        telemetry.instrument()

    def _uninstrument(self, **options: Any) -> None:
        telemetry.uninstrument()
