"""When a held pod is released. Whether a pod is held at all: gate.py.

RELEASE_RULES are asked in their order; the first that answers releases the pod. A rule gets one
HeldPod. It returns why the pod is released, in words that follow "released: "; None, if the rule
does not apply; or Wait, if it may apply later though nothing wakes the controller then. No rule
changes the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pretune.api import reasons
from pretune.api.names import FAILED, HOLD, REFUSED, TUNING_STATE
from pretune.api.status import BundleStatus, ConsumerCounts, ReleaseRefused
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.kube.types import Event
from pretune.manifests.gate import release_patch
from pretune.podspec.workloads import is_recreated
from pretune.policy.bundles.desired import DesiredBundles
from pretune.policy.bundles.job_runs import list_attempt_jobs
from pretune.policy.cache.storage import Storage
from pretune.policy.model import Action, Observed, Patch, Released
from pretune.policy.objects import owner_uid, reference
from pretune.policy.plan_builder import MAX_MESSAGE, PlanBuilder
from pretune.policy.pod_status import (
    find_condition,
    is_deleted,
    is_finished,
    is_job_finished,
    is_suspended,
    suspended_or_resumed_at,
)
from pretune.policy.pods.consumers import Consumer
from pretune.policy.pods.rescue import delete_stuck_pod

# Until pods that were released are looked at again: a patch that meets a conflict counts as done.
RELEASE_RECHECK_SECONDS = 10.0
MAX_NAMED_PODS = 5  # in a message
REFUSED_RECHECK_SECONDS = 2.0  # until an attempt that could not start is looked at again
# Reasons of a bundle whose attempt may never start while pods are held for it.
_CANNOT_START = (reasons.POD_REFUSED, reasons.VOLUME_UNAVAILABLE)
# That a Job may be suspended while a pod waits for it: Kueue admits one in seconds if it can.
SUSPENDED_SECONDS = 30.0
# The API server's refusals to release a pod count once there are so many, and so long after the
# first of them: a webhook may be away while its pod is replaced.
MAX_REFUSALS, REFUSED_SECONDS = 3, 60.0
# Without a new refusal: then one pod may be held again, to see whether it can be released.
RELEASE_REFUSED_SECONDS = 3600.0
KUEUE_PREFIX = "kueue.x-k8s.io/"  # of labels on the pods that Kueue manages, and of its gates
UNREADY_SECONDS = 30.0  # that all older pods may be unready before pods wait for them no longer


@dataclass(frozen=True)
class HeldPod:
    """One pod behind our gate, and what its release depends on."""

    pod: Consumer
    plan: PlanBuilder
    desired: DesiredBundles
    storage: Storage
    others: Sequence[Consumer]  # living consumers that are not held

    @property
    def older_pods(self) -> Iterator[Consumer]:
        """Those others of the same workload that have another engine."""
        return (
            other
            for other in self.others
            if other.workload == self.pod.workload and other.fingerprint != self.pod.fingerprint
        )

    @property
    def bundle_id(self) -> str:
        """What it starts with: what it was given, whatever pods like it would be given now."""
        return self.pod.given_bundle or self.pod.bundle

    @property
    def bundle(self) -> BundleStatus | None:
        """That bundle's status; None: it has none."""
        return self.plan.bundles.get(self.bundle_id)

    @property
    def is_desired(self) -> bool:
        """Whether that bundle is still to be there."""
        return any(each.id == self.bundle_id for each in self.desired.bundles)


@dataclass(frozen=True)
class Wait:
    """A rule may apply from this time on (Unix seconds)."""

    until: float


@dataclass(frozen=True)
class Rule:
    """cause: the metric's label. after_failure: spec.hold.onFailure: Keep makes the pod wait on."""

    cause: str
    check: Callable[[HeldPod], str | Wait | None]
    after_failure: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether a pod is released: by a rule's cause and message; "": it waits on."""

    cause: str = ""
    message: str = ""
    wait_until: float | None = None  # when a rule may apply (Unix seconds)


def release_pods(
    plan: PlanBuilder, pods: Sequence[Consumer], desired: DesiredBundles, storage: Storage
) -> None:
    """Release held pods that need not, or must not, wait any longer."""
    released: dict[tuple[str, str, str], list[float]] = {}
    _record_refusals(plan, pods)
    others = sorted(
        (pod for pod in pods if pod.is_living and not pod.is_held), key=lambda pod: not pod.is_ready
    )
    for pod in pods:
        if not pod.is_held:
            continue
        held = HeldPod(pod, plan, desired, storage, others)
        verdict = judge(held)
        if not verdict.cause:
            plan.requeue_at(verdict.wait_until)
            continue
        waited = max(0.0, plan.now - pod.created_at)
        plan.requeue_at(plan.now + RELEASE_RECHECK_SECONDS)
        release = _release(pod.pod, plan.observed)
        plan.after += release
        if len(release) > 1:
            continue
        plan.released.append(Released(verdict.cause, waited))
        key = (held.bundle_id, verdict.cause, verdict.message)
        released.setdefault(key, []).append(waited)
    for (bundle_id, cause, message), waits in sorted(released.items()):
        text = (
            f"{_count_pods(len(waits))} of bundle {bundle_id or '(unknown)'}: {message};"
            f" waited {max(waits):.0f} s"
        )
        plan.events.append(Event(reasons.RELEASED, text, warning=cause != SEALED.cause))


def emit_held_event(plan: PlanBuilder, pods: Sequence[Consumer], counted: ConsumerCounts) -> None:
    """Add an event of the pods that wait, if the status newly counts more of them.

    counted: status.consumers.
    """
    before = plan.status.consumers
    if counted.held <= (before.held if before is not None else 0):
        return
    waiting: dict[str, int] = {}
    for pod in pods:
        if pod.is_held:
            bundle_id = pod.given_bundle or pod.bundle
            waiting[bundle_id] = waiting.get(bundle_id, 0) + 1
    counts = ", ".join(
        f"{_count_pods(number)} for bundle {bundle_id}"
        for bundle_id, number in sorted(waiting.items())
    )
    limit = f"{plan.spec.hold.timeout_seconds} s (spec.hold.timeoutSeconds)"
    message = f"{counts}: they start when it is sealed, at the latest after {limit}"
    plan.events.append(Event(reasons.HELD, message))


def judge(held: HeldPod) -> Verdict:
    """Return the verdict of the first rule that applies; else when one may."""
    keeps = held.plan.spec.hold.on_failure == "Keep"
    waits = []
    for rule in RELEASE_RULES:
        answer = None if rule.after_failure and keeps else rule.check(held)
        if isinstance(answer, Wait):
            waits.append(answer.until)
        elif answer:
            return Verdict(rule.cause, answer)
    return Verdict(wait_until=min(waits, default=None))


def release_all(pods: Sequence[Object], observed: Observed | None = None) -> list[Action]:
    """Return the actions that release all of these pods: their cache is gone, for example.

    observed: of their key, if it was read.
    """
    return [action for pod in pods for action in _release(pod, observed)]


def _release(pod: Object, observed: Observed | None) -> list[Action]:
    """Return the actions that release a pod.

    If the API server refuses that again and again, a pod that is recreated is deleted, unless it
    can be released now: then it has changed, and the deletion meets a conflict. The webhook holds
    no pod while status.releaseRefused is set.
    """
    name = pod["metadata"]["name"]
    patch = Patch(f"release Pod {name}", reference(pod), release_patch(), strategic=True)
    if observed is not None and _is_refused(pod, observed) and is_recreated(pod):
        return [patch, delete_stuck_pod(pod)]
    return [patch]


def _is_refused(pod: Object, observed: Observed) -> bool:
    refusal = observed.release_refusals.get(pod["metadata"]["uid"])
    return (
        refusal is not None
        and refusal.count >= MAX_REFUSALS
        and refusal.last_at >= refusal.first_at + REFUSED_SECONDS
    )


def _record_refusals(plan: PlanBuilder, pods: Sequence[Consumer]) -> None:
    """Set status.releaseRefused if held pods could not be released; remove it when it is old."""
    refused = [pod for pod in pods if pod.is_held and _is_refused(pod.pod, plan.observed)]
    before = plan.status.release_refused
    if refused:
        names = ", ".join(pod.name for pod in refused[:MAX_NAMED_PODS])
        answer = plan.observed.release_refusals[refused[0].pod["metadata"]["uid"]].message
        message = f"{names}: the gate {HOLD} cannot be removed: {answer}"[:MAX_MESSAGE]
        # One event and one status write for all that are refused in this time.
        is_new = before is None or plan.now >= before.at + RELEASE_REFUSED_SECONDS / 2
        plan.release_refused = ReleaseRefused(plan.timestamp, message) if is_new else before
    elif before is not None and plan.now < before.at + RELEASE_REFUSED_SECONDS:
        plan.release_refused = before
    if plan.release_refused is not None:
        plan.requeue_at(plan.release_refused.at + RELEASE_REFUSED_SECONDS)


def _count_pods(number: int) -> str:
    return "1 pod" if number == 1 else f"{number} pods"


# --- the rules


def sealed(held: HeldPod) -> str | None:
    is_given = held.bundle is not None and held.bundle.may_be_given(held.plan.spec)
    return "its bundle is sealed" if is_given else None


def switched_off(held: HeldPod) -> str | None:
    spec = held.plan.spec
    if spec.suspend:
        return "spec.suspend is true"
    if spec.hold.when == "Never":
        return "spec.hold.when is Never"
    return "spec.delivery.mode is None" if spec.delivery == "None" else None


def unknown(held: HeldPod) -> str | None:
    if held.pod.bundle:
        return None
    refused = held.desired.refused
    if refused is not None:
        return f"{refused.reason}: {refused.message}"
    return "which bundle it needs is unknown"


def unserved(held: HeldPod) -> str | Wait | None:
    """A hold is only worth it while other pods serve.

    They do not for the strategy Recreate, nor where the older pods died meanwhile.
    """
    if held.plan.spec.hold.when != "WhenServing":
        return None
    if any(pod.is_ready for pod in held.older_pods):
        return None
    changes = [
        parse_timestamp(found["lastTransitionTime"])
        for pod in held.older_pods
        if pod.is_running
        and (found := find_condition(pod.pod, "Ready"))
        and found.get("lastTransitionTime")
    ]
    if changes and held.plan.now < max(changes) + UNREADY_SECONDS:
        return Wait(max(changes) + UNREADY_SECONDS)
    return "no older pod serves meanwhile"


def outdated(held: HeldPod) -> str | None:
    """spec.revision or a target was changed during the hold.

    What the pod waits for is not tuned any more, and no other bundle would be its own.
    """
    if held.bundle_id == held.pod.bundle or held.is_desired:
        return None
    return f"pods like it need bundle {held.pod.bundle} by now"


def source_refused(held: HeldPod) -> str | None:
    refused = held.desired.refused
    return f"{refused.reason}: {refused.message}" if refused else None


def not_desired(held: HeldPod) -> str | None:
    if held.is_desired:
        return None
    if held.desired.churn:
        return f"{reasons.TOO_MANY_FINGERPRINTS}: {held.desired.churn}"
    return "nothing tunes its bundle"


def failed(held: HeldPod) -> str | None:
    bundle = held.bundle
    if bundle is None or bundle.state not in (FAILED, REFUSED):
        return None
    return f"{bundle.reason}: {bundle.message}"


def undeliverable(held: HeldPod) -> str | None:
    """Not where pods of one node only could not start: this one may get another node."""
    mark = held.bundle.undeliverable if held.bundle is not None else None
    if mark is None or mark.node is not None:
        return None
    return f"{mark.reason}: {mark.message}"


def cannot_start(held: HeldPod) -> str | Wait | None:
    """What held pods have may be what the attempt lacks: a quota, a node for a claim's volume.

    Two reconciles must see it: an API server has bad moments.
    """
    bundle, before = held.bundle, held.plan.before.get(held.bundle_id)
    if bundle is None or bundle.state == TUNING_STATE or bundle.reason not in _CANNOT_START:
        return None
    if before is None or before.reason != bundle.reason:
        return Wait(held.plan.now + REFUSED_RECHECK_SECONDS)
    return f"the attempt cannot start: {bundle.message}"


def quota_is_used_up(held: HeldPod) -> str | Wait | None:
    """Kueue counts the pod in its quota, which may be what the suspended attempt waits for."""
    meta, gates = held.pod.pod["metadata"], held.pod.pod["spec"].get("schedulingGates") or ()
    is_managed = any(name.startswith(KUEUE_PREFIX) for name in meta.get("labels") or ())
    if not is_managed or any(gate["name"].startswith(KUEUE_PREFIX) for gate in gates):
        return None
    suspended = [
        job
        for job in list_attempt_jobs(held.plan, held.bundle_id)
        if is_suspended(job) and not is_job_finished(job)
    ]
    if not suspended:
        return None
    suspended_at = [
        suspended_or_resumed_at(job) or parse_timestamp(job["metadata"]["creationTimestamp"])
        for job in suspended
    ]
    since = max(held.pod.created_at, *suspended_at)
    if held.plan.now < since + SUSPENDED_SECONDS:
        return Wait(since + SUSPENDED_SECONDS)
    return (
        f"Kueue suspends the attempt's Job {suspended[0]['metadata']['name']}, and counts this pod"
        " in its quota"
    )


def no_node(held: HeldPod) -> str | Wait | None:
    """The cluster is full: no pod waits for long that an attempt finds a node."""
    limit = held.plan.spec.node_wait_seconds
    since = _without_node_since(held)
    if since is None:
        return None
    if held.plan.now < since + limit:
        return Wait(since + limit)
    return f"the attempt has found no node for {limit} s (spec.tuning.nodeWaitSeconds)"


def no_turn(held: HeldPod) -> str | Wait | None:
    """Attempts of other caches come first: no pod waits for long because of those."""
    if held.bundle is None or held.bundle.reason != reasons.WAITING_FOR_TURN:
        return None
    limit = held.plan.spec.node_wait_seconds
    until = held.pod.created_at + limit
    if held.plan.now < until:
        return Wait(until)
    return f"{held.bundle.message}; its turn has not come for {limit} s"


def _without_node_since(held: HeldPod) -> float | None:
    """Return since when the attempt that the pod waits for has a pod without a node.

    If none of the pod's bundle lives, since it is queued behind another of its target, that one's
    attempt. None: there is no such pod, or one with a node.
    """
    plan, bundle = held.plan, held.bundle
    pods = _list_living_pods(plan, [held.bundle_id])
    if not pods and bundle is not None:
        same_target = [each.id for each in plan.bundles.values() if each.target == bundle.target]
        pods = _list_living_pods(plan, same_target)
    if not pods or any((pod.get("spec") or {}).get("nodeName") for pod in pods):
        return None
    return min(parse_timestamp(pod["metadata"]["creationTimestamp"]) for pod in pods)


def _list_living_pods(plan: PlanBuilder, ids: Sequence[str]) -> list[Object]:
    """Return the pods of our attempts at these bundles that have not ended, and are not ending."""
    ours = {job["metadata"]["uid"] for job in plan.jobs}
    return [
        pod
        for bundle_id in ids
        for pod in plan.find_pods(bundle_id)
        if owner_uid(pod) in ours and not is_finished(pod) and not is_deleted(pod)
    ]


def storage_not_ready(held: HeldPod) -> str | None:
    """It was ready when the pod was created.

    Older pods may keep a deleted claim for as long as they serve: no pod waits for that.
    """
    return None if held.storage.ready else f"{held.storage.reason}: {held.storage.message}"


def timed_out(held: HeldPod) -> str | Wait | None:
    limit = held.plan.spec.hold.timeout_seconds
    until = held.pod.created_at + limit
    if held.plan.now < until:
        return Wait(until)
    return f"spec.hold.timeoutSeconds ({limit} s) is over"


SEALED = Rule("Sealed", sealed)
RELEASE_RULES: tuple[Rule, ...] = (
    SEALED,
    Rule("SwitchedOff", switched_off),
    Rule("Unknown", unknown),
    Rule("Unserved", unserved),
    Rule("Outdated", outdated),
    Rule("SourceRefused", source_refused, after_failure=True),
    Rule("NotWanted", not_desired, after_failure=True),
    Rule("Failed", failed, after_failure=True),
    Rule("Undeliverable", undeliverable, after_failure=True),
    Rule("CannotStart", cannot_start, after_failure=True),
    Rule("QuotaUsedUp", quota_is_used_up, after_failure=True),
    Rule("NoNode", no_node, after_failure=True),
    Rule("NoTurn", no_turn, after_failure=True),
    Rule("StorageNotReady", storage_not_ready, after_failure=True),
    Rule("TimedOut", timed_out, after_failure=True),
)
