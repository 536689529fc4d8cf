"""What a person should change though everything works: status.warnings, and a Warning event when one appears."""

from __future__ import annotations

from typing import NewType

from pretune.api.reasons import Entry

Advice = NewType("Advice", str)

ADVICE: dict[str, Entry] = {}


def _advice(name: str, means: str, remedy: str) -> Advice:
    """Return the constant, after its entry was put into the catalogue."""
    ADVICE[name] = Entry(means, remedy)
    return Advice(name)


PROGRESS_DEADLINE_SHORT = _advice(
    "ProgressDeadlineShort",
    "A hold may be longer than the Deployment's progressDeadlineSeconds: kubectl rollout status, Helm and Argo CD would report"
    " a failure until the pods are released.",
    "Set spec.progressDeadlineSeconds of the Deployment above spec.hold.timeoutSeconds of the cache.",
)
STARTUP_PROBE_SHORT = _advice(
    "StartupProbeShort",
    "The engine's startup probe allows less time than a cold start took: a pod that starts cold is killed before it is ready.",
    "Raise failureThreshold or periodSeconds of the startup probe.",
)
MOVING_TAG = _advice(
    "MovingTag",
    "The engine's image has a tag that moves: other content under the same name gets the old bundle.",
    "Name the image by a version or a digest; change spec.revision after the tag moved.",
)
LABEL_IN_SELECTOR = _advice(
    "LabelInSelector",
    "The workload's selector contains the label pretune.dev/cache, which can never be changed there.",
    "Put the label in the pod template only.",
)
STALE_IMAGE = _advice(
    "StaleImage",
    "Serving pods run another image under the same name than the bundle was tuned with.",
    "Change spec.revision, so that it is tuned again.",
)
