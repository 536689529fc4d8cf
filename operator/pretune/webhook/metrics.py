"""The webhook's metrics."""

from __future__ import annotations

from collections.abc import Callable

from pretune.metrics_base import Metrics
from pretune.webhook.admission import FAILED

_ADMISSION = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5)


class WebhookMetrics(Metrics):
    def __init__(
        self,
        certificate_ends: Callable[[], float] = lambda: 0,
        controller_alive: Callable[[], bool] = lambda: False,
    ) -> None:
        """certificate_ends: Unix seconds. controller_alive: whether its lease was renewed within 15 s, so that pods may be held."""
        super().__init__()
        self._seconds = self._add_histogram(
            "pretune_admission_seconds",
            "Time from a read request to its answer, in seconds, by what the pod was given.",
            _ADMISSION,
            ("delivery",),
        )
        self._admissions = self._add_counter(
            "pretune_admissions",
            "Pods that were asked about, by what they were given (ReadOnly, Overlay, None) and why (docs/reasons.md).",
            ("delivery", "reason"),
        )
        self._errors = self._add_counter(
            "pretune_admission_errors",
            "Pods that were left as they came because of an error of the webhook's own.",
        )
        self._add_computed_gauge(
            "pretune_certificate_expiry_timestamp_seconds",
            "When the serving certificate that is in use ends, in Unix seconds.",
            certificate_ends,
        )
        self._add_computed_gauge(
            "pretune_controller_alive",
            "1 while the controller's lease is renewed, as this webhook sees it; else 0, and no pod is held.",
            controller_alive,
        )

    def admitted(self, delivery: str, reason: str, took: float) -> None:
        """One answer: delivery is ReadOnly, Overlay or None; reason a DeliveryReason, Skipped or Failed; took: seconds."""
        self._seconds.labels(delivery).observe(took)
        self._admissions.labels(delivery, reason).inc()
        if reason == FAILED:
            self._errors.inc()
