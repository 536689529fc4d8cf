"""Whether a new consumer is held behind our scheduling gate, if its bundle is not there yet.

It is, unless one of HOLD_RULES answers: why the pod starts at once. The rules are asked in their
order; the first that answers counts. When a held pod is released: release.py.
"""

from __future__ import annotations

from collections.abc import Callable

from pretune.api import reasons
from pretune.api.spec import Spec
from pretune.podspec.workloads import held_kinds
from pretune.policy.pods.admission import PodAdmission


def find_cause_to_start(admission: PodAdmission) -> str | None:
    """Return why a pod whose bundle is not there yet starts at once; None: it is held."""
    return next((cause for rule in HOLD_RULES if (cause := rule(admission))), None)


def describe_limit(spec: Spec) -> str:
    """Return how long a pod is held at most."""
    if spec.hold.on_failure == "Keep":
        return "as long as it takes (spec.hold.onFailure is Keep)"
    return f"at most {spec.hold.timeout_seconds} s from its creation (spec.hold.timeoutSeconds)"


def never_held(a: PodAdmission) -> str | None:
    """The spec turns holds off."""
    return "spec.hold.when is Never" if a.spec.hold.when == "Never" else None


def nothing_serves(a: PodAdmission) -> str | None:
    """A hold is only worth it while older pods of the same workload serve.

    Others of the cache may do another part of the work: prefill and decode, canary and stable.
    """
    if a.spec.hold.when == "Always":
        return None
    fingerprint, workload = a.need.inputs.fingerprint, a.origin.workload_name
    serves = any(
        workload in (bundle.serving_workloads or ())
        for bundle in a.status.bundles
        if bundle.fingerprint != fingerprint
    )
    return None if serves else f"no pod of another revision of {workload} serves"


def runs_already(a: PodAdmission) -> str | None:
    """A revision that runs may be scaled up, and its pods may be replaced."""
    if a.spec.hold.when == "Always":
        return None
    fingerprint = a.need.inputs.fingerprint
    runs = any(bundle.running for bundle in a.status.bundles if bundle.fingerprint == fingerprint)
    return "pods of the same revision run" if runs else None


def replaces_a_serving_pod(a: PodAdmission) -> str | None:
    """A StatefulSet's pod, for example, takes the place of one that serves.

    It would be missing for as long as tuning takes.
    """
    kinds = held_kinds()
    if a.spec.hold.when == "Always" or a.origin.kind in kinds:
        return None
    return f"only a {' or a '.join(kinds)}'s pods are held unless spec.hold.when is Always"


def has_node(a: PodAdmission) -> str | None:
    """The API server refuses a scheduling gate on such a pod."""
    has_node = bool(a.pod["spec"].get("nodeName"))
    return "spec.nodeName is set, which no scheduling gate goes with" if has_node else None


def controller_is_gone(a: PodAdmission) -> str | None:
    """No hold without a controller that can end it."""
    if a.can_hold:
        return None
    return "the controller has not renewed its lease, so that nothing could release the pod"


def release_is_refused(a: PodAdmission) -> str | None:
    """No hold where the API server would refuse the patch that ends it."""
    refused = a.status.release_refused
    if refused is None:
        return None
    return f"the API server does not let the controller release pods: {refused.message}"


def will_not_be_tuned(a: PodAdmission) -> str | None:
    """Too many engines ask for tactics, and this one is not among those that get them."""
    stalled = a.status.condition("Stalled")
    if a.bundle is not None or stalled is None or stalled.status != "True":
        return None
    if stalled.reason != reasons.TOO_MANY_FINGERPRINTS:
        return None
    return f"{stalled.reason}: {stalled.message}"


def attempt_cannot_start(a: PodAdmission) -> str | None:
    """Held pods count in a quota: what they use up may be what the attempt lacks."""
    if a.bundle is None or a.bundle.reason != reasons.POD_REFUSED:
        return None
    return f"the attempt cannot start: {a.bundle.message}"


HOLD_RULES: tuple[Callable[[PodAdmission], str | None], ...] = (
    never_held,
    nothing_serves,
    runs_already,
    replaces_a_serving_pod,
    has_node,
    controller_is_gone,
    release_is_refused,
    will_not_be_tuned,
    attempt_cannot_start,
)
