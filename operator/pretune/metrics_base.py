"""One process's Prometheus registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)


class Metrics:
    """One process's registry, with what Python and the kernel report of that process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def exposition(self) -> bytes:
        """Return every metric in Prometheus' text format 0.0.4."""
        return generate_latest(self.registry)

    def _add_gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _add_computed_gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is computed at each scrape."""
        self._add_gauge(name, text).set_function(lambda: float(value()))

    def _add_computed_series(
        self, name: str, text: str, label: str, values: Callable[[], Mapping[str, float]]
    ) -> None:
        """Add a gauge with a series for each item of `values()`, which is called at each scrape."""
        series = _ComputedSeries(name, text, (label,), registry=self.registry)
        series.values = values

    def _add_counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _add_histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)


class _ComputedSeries(Gauge):
    """A gauge whose series are computed at each scrape: by the value of its only label."""

    values: Callable[[], Mapping[str, float]] = dict

    def collect(self) -> Iterable[Metric]:
        """Return the metric with the series of this moment."""
        self.clear()
        for value, number in self.values().items():
            self.labels(value).set(number)
        return super().collect()
