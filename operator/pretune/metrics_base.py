"""One process's Prometheus registry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
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
        self._refreshes: list[Callable[[], None]] = []  # of the metrics that are computed

    async def expose(self) -> bytes:
        """Return every metric in Prometheus' text format 0.0.4.

        Written in a thread: the 85,000 series of 5,000 caches take seconds.
        """
        for refresh in self._refreshes:
            refresh()
        return await asyncio.to_thread(generate_latest, self.registry)

    def _add_gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _add_computed_gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is computed at each scrape."""
        gauge = self._add_gauge(name, text)
        self._refreshes.append(lambda: gauge.set(float(value())))

    def _add_computed_series(
        self, name: str, text: str, label: str, values: Callable[[], Mapping[str, float]]
    ) -> None:
        """Add a gauge with a series for each item of `values()`, which is called at each scrape."""
        gauge = self._add_gauge(name, text, (label,))

        def refresh() -> None:
            gauge.clear()
            for value, number in values().items():
                gauge.labels(value).set(number)

        self._refreshes.append(refresh)

    def _add_counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _add_histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)
