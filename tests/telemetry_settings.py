"""A site that uses OpenTelemetry: spans go to a file that a test reads, in one batch: at the end."""

import json
import os
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from tests import settings as base
from tests.settings import *  # noqa: F403

PGWERK = {**base.PGWERK, "TELEMETRY": True}


class ToFile(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with open(os.environ["PGWERK_TEST_FOLDER"] + "/spans", "ab", buffering=0) as lines:
            lines.writelines(json.dumps(json.loads(span.to_json())).encode() + b"\n" for span in spans)
        return SpanExportResult.SUCCESS


provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(ToFile(), schedule_delay_millis=3_600_000))
trace.set_tracer_provider(provider)
