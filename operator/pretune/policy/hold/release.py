"""Who is let go: a list of small checks, asked in their order; the first that answers releases the pod.

A check gets one Held and says why, in words that follow "released: ", or None. Adding a rule is adding a line to CHECKS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pretune.api import reasons
from pretune.api.names import FAILED, REFUSED
from pretune.api.status import BundleStatus, ConsumerCounts
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.kube.types import Event
from pretune.manifests.gate import release_patch
from pretune.policy.bundles.attempt_state import condition
from pretune.policy.bundles.desired import DesiredBundles
from pretune.policy.cache.storage import Storage
from pretune.policy.model import Patch, Released
from pretune.policy.objects import reference
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pods.consumers import Consumer

AGAIN = 2.0  # seconds until an attempt that could not start is looked at again
LET_GO = 10.0  # seconds until pods that were let go are looked at again: a patch that meets a conflict counts as done
UNREADY = 30.0  # seconds that older pods may all be unready before nobody waits for them any more


@dataclass(frozen=True)
class Held:
    """One pod behind our gate, and what bears on it."""

    pod: Consumer
    plan: PlanBuilder
    wants: DesiredBundles
    storage: Storage
    free: Sequence[Consumer]  # living consumers that are not held

    @property
    def others(self) -> Iterator[Consumer]:
        """Those of other fingerprints."""
        return (one for one in self.free if one.fingerprint != self.pod.fingerprint)

    @property
    def bundle(self) -> str:
        """What it will start with: what it was given when it was made, whatever pods like it would be given now."""
        return self.pod.given_bundle or self.pod.bundle

    @property
    def status(self) -> BundleStatus | None:
        """That bundle's; None: it has none."""
        return self.plan.bundles.get(self.bundle)


Check = Callable[[Held], str | None]


def hold(
    plan: PlanBuilder, pods: Sequence[Consumer], wants: DesiredBundles, storage: Storage
) -> None:
    """Release whoever need not, or must not, wait any longer; look again when the next one's time is over."""
    let_go: dict[tuple[str, str, str], list[float]] = {}
    free = sorted(
        (one for one in pods if one.is_living and not one.is_held), key=lambda one: not one.is_ready
    )
    for pod in pods:
        if not pod.is_held:
            continue
        cause, why = judge(Held(pod, plan, wants, storage, free))
        if not cause:
            until = pod.created_at + plan.spec.hold.timeout_seconds
            plan.requeue_at(
                until if until > plan.now else None
            )  # past it onFailure: Keep waits for news alone
            continue
        waited = max(0.0, plan.now - pod.created_at)
        plan.requeue_at(plan.now + LET_GO)
        plan.after.append(
            Patch(f"release Pod {pod.name}", reference(pod.pod), release_patch(), strategic=True)
        )
        plan.released.append(Released(cause, waited))
        let_go.setdefault((pod.given_bundle or pod.bundle, cause, why), []).append(waited)
    for (bundle, cause, why), waits in sorted(let_go.items()):
        words = f"{_pods(len(waits))} of bundle {bundle or '(unknown)'}: {why}; waited {max(waits):.0f} s"
        plan.events.append(Event(reasons.RELEASED, words, warning=cause != "Sealed"))


def tell(plan: PlanBuilder, pods: Sequence[Consumer], counted: ConsumerCounts) -> None:
    """Say who waits, when status.consumers (`counted`) says that there are more than before."""
    before = plan.status.consumers
    if counted.held <= (before.held if before is not None else 0):
        return
    waiting: dict[str, int] = {}
    for pod in pods:
        if pod.is_held:
            bundle = pod.given_bundle or pod.bundle
            waiting[bundle] = waiting.get(bundle, 0) + 1
    words = ", ".join(
        f"{_pods(number)} for bundle {bundle}" for bundle, number in sorted(waiting.items())
    )
    limit = f"{plan.spec.hold.timeout_seconds} s (spec.hold.timeoutSeconds)"
    plan.events.append(
        Event(reasons.HELD, f"{words}: they start when it is sealed, at the latest after {limit}")
    )


def judge(held: Held) -> tuple[str, str]:
    """(cause, why) of a release; ("", "") for a pod that goes on waiting."""
    keep = held.plan.spec.hold.on_failure == "Keep"
    for cause, failure, check in CHECKS:
        if (why := check(held)) and not (failure and keep):
            return cause, why
    return "", ""


def release_all(pods: Sequence[Object]) -> list[Any]:
    """Every one of these: their cache is gone."""
    return [
        Patch(
            f"release Pod {one['metadata']['name']}",
            reference(one),
            release_patch(),
            strategic=True,
        )
        for one in pods
    ]


def _pods(number: int) -> str:
    return "1 pod" if number == 1 else f"{number} pods"


# --- the checks


def sealed(held: Held) -> str | None:
    bundle = held.status
    is_given = bundle is not None and bundle.may_be_given(held.plan.spec)
    return "its bundle is sealed" if is_given else None


def switched_off(held: Held) -> str | None:
    spec = held.plan.spec
    if spec.suspend:
        return "spec.suspend is true"
    if spec.hold.when == "Never":
        return "spec.hold.when is Never"
    return "spec.delivery.mode is None" if spec.delivery == "None" else None


def unknown(held: Held) -> str | None:
    if held.pod.bundle:
        return None
    if held.wants.refused is not None:
        return f"{held.wants.refused.reason}: {held.wants.refused.message}"
    return "which bundle it needs cannot be told"


def unserved(held: Held) -> str | None:
    """A hold is worth something only while others serve: not for Recreate, nor where the older pods died meanwhile."""
    if held.plan.spec.hold.when != "WhenServing":
        return None
    if any(one.is_ready for one in held.others):
        return None
    flips = [
        parse_timestamp(found["lastTransitionTime"])
        for one in held.others
        if one.is_running
        and (found := condition(one.pod, "Ready"))
        and found.get("lastTransitionTime")
    ]
    if flips and held.plan.now < max(flips) + UNREADY:
        held.plan.requeue_at(max(flips) + UNREADY)
        return None
    return "no older pod serves meanwhile"


def outdated(held: Held) -> str | None:
    """spec.revision or a target was changed under the hold: what it waits for is not made any more, and no other would be its own."""
    if held.bundle == held.pod.bundle or any(want.id == held.bundle for want in held.wants.bundles):
        return None
    return f"pods like it need bundle {held.pod.bundle} by now"


def source_refused(held: Held) -> str | None:
    refused = held.wants.refused
    return f"{refused.reason}: {refused.message}" if refused else None


def not_wanted(held: Held) -> str | None:
    if any(want.id == held.bundle for want in held.wants.bundles):
        return None
    return (
        f"TooManyFingerprints: {held.wants.churn}"
        if held.wants.churn
        else "nothing tunes its bundle"
    )


def failed(held: Held) -> str | None:
    bundle = held.status
    if bundle is None or bundle.state not in (FAILED, REFUSED):
        return None
    return f"{bundle.reason}: {bundle.message}"


def undeliverable(held: Held) -> str | None:
    mark = held.status.undeliverable if held.status is not None else None
    return f"{mark.reason}: {mark.message}" if mark is not None else None


def cannot_start(held: Held) -> str | None:
    """Held pods count in a quota: what they use up may be what the attempt lacks. Once is no proof: an API server has bad moments."""
    bundle, plan = held.status, held.plan
    if bundle is None or bundle.reason != reasons.POD_REFUSED:
        return None
    before = plan.before.get(held.bundle)
    if before is None or before.reason != reasons.POD_REFUSED:
        plan.requeue_at(plan.now + AGAIN)
        return None
    return f"the attempt cannot start: {bundle.message}"


def storage_not_ready(held: Held) -> str | None:
    """It was ready when the pod was made. Older pods may keep a deleted claim for as long as they serve: nobody waits for that."""
    return None if held.storage.ready else f"{held.storage.reason}: {held.storage.message}"


def timed_out(held: Held) -> str | None:
    limit = held.plan.spec.hold.timeout_seconds
    return (
        f"spec.hold.timeoutSeconds ({limit} s) is over"
        if held.plan.now >= held.pod.created_at + limit
        else None
    )


# cause, whether spec.hold.onFailure: Keep makes the pod wait on, and the check.
CHECKS: tuple[tuple[str, bool, Check], ...] = (
    ("Sealed", False, sealed),
    ("SwitchedOff", False, switched_off),
    ("Unknown", False, unknown),
    ("Unserved", False, unserved),
    ("Outdated", False, outdated),
    ("SourceRefused", True, source_refused),
    ("NotWanted", True, not_wanted),
    ("Failed", True, failed),
    ("Undeliverable", True, undeliverable),
    ("CannotStart", True, cannot_start),
    ("StorageNotReady", True, storage_not_ready),
    ("TimedOut", True, timed_out),
)
