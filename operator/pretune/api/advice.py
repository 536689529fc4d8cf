"""What a person should change although everything works.

It is listed in status.warnings, and is a Warning event when it appears.
"""

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
    "A hold may last longer than the progressDeadlineSeconds of the Deployment or Argo Rollout:"
    " kubectl rollout status, Helm and Argo CD would report a failure until the pods are released,"
    " and a Rollout with progressDeadlineAbort would be aborted.",
    "Set spec.progressDeadlineSeconds of the workload above spec.hold.timeoutSeconds of the cache.",
)
RELEASE_REFUSED = _advice(
    "ReleaseRefused",
    "The API server refuses to remove the gate of held pods, three times at least, for 60 s or"
    " longer: an admission policy or webhook does not allow the patch, or does not answer. Held pods that have a"
    " controller are deleted, and recreated without a gate. No pod is held for one hour.",
    "Change what the message names so that the controller's ServiceAccount may remove"
    " pretune.dev/hold from pods. Release pods that stay held yourself (docs/operations.md).",
)
STARTUP_PROBE_SHORT = _advice(
    "StartupProbeShort",
    "The engine's startup probe allows less time than a cold start took: a pod that starts cold is"
    " killed before it is ready.",
    "Raise failureThreshold or periodSeconds of the startup probe.",
)
MOVING_TAG = _advice(
    "MovingTag",
    "The engine's image has a tag that can move: new content under the same name would get the old"
    " bundle.",
    "Name the image by a version or a digest. Change spec.revision after the tag has moved.",
)
LABEL_IN_SELECTOR = _advice(
    "LabelInSelector",
    "The workload's selector contains the label pretune.dev/cache, where it can never be changed.",
    "Put the label in the pod template only.",
)
STALE_IMAGE = _advice(
    "StaleImage",
    "Serving pods run another image than the one that the bundle was tuned with, under the same"
    " name.",
    "Change spec.revision, so that a new bundle is tuned.",
)
