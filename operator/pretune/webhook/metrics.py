"""The webhook's metrics."""

from __future__ import annotations

from collections.abc import Callable

from pretune.metrics_base import Metrics
from pretune.webhook.admission import FAILED

_ADMISSION_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5)


class WebhookMetrics(Metrics):
    """The webhook's registry.

    `certificate_expires_at` returns Unix seconds. `controller_is_alive` returns whether the
    controller renewed its lease within 15 s, so that pods may be held.
    """

    def __init__(
        self,
        certificate_expires_at: Callable[[], float] = lambda: 0,
        controller_is_alive: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self._seconds = self._add_histogram(
            "pretune_admission_seconds",
            "Seconds from the arrival of an admission request to its answer,"
            " by how the pod's bundle is delivered.",
            _ADMISSION_SECONDS,
            ("delivery",),
        )
        self._admissions = self._add_counter(
            "pretune_admissions",
            "Answers to admission requests, by how the pod's bundle is delivered"
            " (ReadOnly, Overlay, None) and by reason (docs/reasons.md).",
            ("delivery", "reason"),
        )
        self._errors = self._add_counter(
            "pretune_admission_errors",
            "Pods that were admitted unchanged because of an error in the webhook.",
        )
        self._refused = self._add_counter(
            "pretune_admission_refused_requests",
            "Requests that were refused, by HTTP status: 400 (no AdmissionReview), 408 (it did not"
            " come in time), 413 (too large), 415 (no JSON), 503 (too many at a time). The API"
            " server never causes 400, 408, 413 or 415.",
            ("code",),
        )
        self._add_computed_gauge(
            "pretune_certificate_expiry_timestamp_seconds",
            "When the serving certificate in use expires, in Unix seconds.",
            certificate_expires_at,
        )
        self._add_computed_gauge(
            "pretune_controller_alive",
            "1 while this webhook sees the controller's lease renewed;"
            " otherwise 0, and no pod is held.",
            controller_is_alive,
        )

    def record_refusal(self, status: int) -> None:
        """Count a request that was not answered, by its HTTP status."""
        self._refused.labels(str(status)).inc()

    def record_answer(self, mode: str, reason: str, seconds: float) -> None:
        """Count one answer.

        mode: ReadOnly, Overlay or None. reason: a DeliveryReason, Skipped or Failed. seconds: how
        long the answer took.
        """
        self._seconds.labels(mode).observe(seconds)
        self._admissions.labels(mode, reason).inc()
        if reason == FAILED:
            self._errors.inc()
