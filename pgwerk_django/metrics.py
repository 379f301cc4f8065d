"""Metrics for Prometheus (the extra `prometheus`): a view for what is in the database, and a port for what a process does.

path("metrics", pgwerk_django.metrics.view)                # to be protected: it tells names of queues
manage.py runscheduler --metrics-port 9101
REGISTRY.register(pgwerk_django.metrics.StateCollector())  # beside the metrics of your own
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from pgwerk_django import signals
from pgwerk_django.exceptions import ExtraMissing
from pgwerk_django.gauges import Reading, State
from pgwerk_django.measurements import COUNTERS, GAUGES, HISTOGRAMS, Counting, Measure

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, start_http_server
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ExtraMissing("prometheus_client", "prometheus") from error


class StateCollector(Collector):
    """What is in the database, asked at each scrape. Of a database that is away it says so, in a few seconds at most."""

    def __init__(self, using: str | None = None) -> None:
        self._state = State(using)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Without a look at the database: it is asked for when the collector is registered."""
        return map(_family, GAUGES)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        readings: defaultdict[Measure, list[Reading]] = defaultdict(list)
        for reading in self._state.readings():
            readings[reading.measure].append(reading)
        for measure, found in readings.items():
            family = _family(measure)
            for reading in found:
                family.add_metric(reading.labels, reading.value)
            yield family


def _family(measure: Measure) -> GaugeMetricFamily:
    return GaugeMetricFamily(measure.prometheus_name, measure.help, labels=measure.labels)


class Counters:
    """What happens in this process, as counters and histograms of a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._metrics: dict[Measure, Any] = {
            **{each: Counter(*_described(each), registry=registry) for each in COUNTERS},
            **{each: Histogram(*_described(each), buckets=each.buckets, registry=registry) for each in HISTOGRAMS},
        }

    def __iter__(self) -> Iterator[Collector]:
        return iter(self._metrics.values())

    def add(self, counter: Measure, amount: int, *labels: str) -> None:
        self._child(counter, labels).inc(amount)

    def observe(self, histogram: Measure, value: float, *labels: str) -> None:
        self._child(histogram, labels).observe(value)

    def _child(self, measure: Measure, labels: tuple[str, ...]) -> Any:
        return self._metrics[measure].labels(*labels) if labels else self._metrics[measure]


def _described(measure: Measure) -> tuple[str, str, tuple[str, ...]]:
    return measure.prometheus_name, measure.help, measure.labels


_of_the_database = CollectorRegistry()
_of_the_database.register(StateCollector())


@never_cache
@require_safe
def view(request: HttpRequest) -> HttpResponse:
    """What is in the database, as text for Prometheus. Any web process can serve it. It asks nobody who they are."""
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return HttpResponse(encode(_of_the_database), content_type=content_type)


@contextlib.contextmanager
def showing(port: int, *, host: str, state: bool, registry: CollectorRegistry = REGISTRY) -> Iterator[str]:
    """Count what this process does, and show it at `/metrics` of this port (0: any that is free), whose address it gives.

    With `state` also what is in the database. Raises `OSError` where the port cannot be had.
    """
    server, thread = start_http_server(port, host, registry)
    collectors: list[Collector] = [StateCollector()] if state else []
    for collector in collectors:
        registry.register(collector)
    counters = Counters(registry)
    counting = Counting(counters)
    counting.start()
    address = f"{host}:{server.server_port}"
    signals.send_now(signals.metrics_served, address=address)
    try:
        yield address
    finally:
        counting.stop()
        for collector in [*collectors, *counters]:
            registry.unregister(collector)
        server.shutdown()
        server.server_close()
        thread.join()
