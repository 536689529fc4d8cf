"""What a new consumer is given: nothing, or its bundle by a delivery mode; now, or once sealed.

LEFT_ALONE_RULES are asked in their order: the first that answers is why the pod gets nothing. A pod
whose bundle is not there yet is held, or starts at once: policy/hold/gate.py.
"""

from __future__ import annotations

from collections.abc import Callable

from pretune.api import delivery_reasons, reasons
from pretune.api.delivery_reasons import DeliveryReason
from pretune.api.names import FAILED, REFUSED
from pretune.api.reasons import Refused
from pretune.api.spec import claim_name
from pretune.api.status import BundleStatus
from pretune.api.types import Object
from pretune.intake import EXCESS
from pretune.manifests.delivery_modes import NONE, Choice, Delivery, choose_mode, find_mode
from pretune.manifests.injection import find_collision
from pretune.podspec.preflight import find_refusal
from pretune.podspec.template import engine_type
from pretune.policy.hold.gate import describe_limit, find_cause_to_start
from pretune.policy.model import Origin
from pretune.policy.pods.admission import PodAdmission

Rule = Callable[[PodAdmission], str | None]


def decide_delivery(
    namespace: str,
    cache: Object | None,
    pod: Object,
    origin: Origin,
    can_hold: bool,
    agent: str,
) -> Delivery:
    """Return what one pod of a CREATE request is given.

    cache: as last seen, None if there is none of the name. It is used as it is, also where its
    status is of an older generation. pod: without any parts of ours (manifests.injection).
    origin: where its template comes from. can_hold: the controller renewed its lease within 15 s.
    agent: the agent ConfigMap's name.
    """
    admission = PodAdmission(namespace, cache or {}, pod, origin, can_hold)
    for left_alone_reason, rule in LEFT_ALONE_RULES:
        if message := rule(admission):
            warning = f"pretune: {left_alone_reason}: {message}"
            return Delivery(NONE, left_alone_reason, message, warnings=(warning,))
    need = admission.need
    reason: DeliveryReason
    if admission.is_given:
        reason, message = delivery_reasons.GIVEN, f"bundle {need.bundle_id} is sealed"
    elif (cause := find_cause_to_start(admission)) is None:
        limit = describe_limit(admission.spec)
        reason = delivery_reasons.HELD
        message = f"waits for bundle {need.bundle_id} of cache {admission.key}, {limit}"
    else:
        reason = delivery_reasons.NOT_SEALED_YET
        message = (
            f"bundle {need.bundle_id} is not {admission.missing_state} yet; the pod is not held:"
            f" {cause}"
        )
    mode, warning = choose_mode(_choice(admission))
    return Delivery(
        mode=mode,
        reason=reason,
        message=message,
        held=reason == delivery_reasons.HELD,
        engine=need.engine,
        bundle=need.bundle_id,
        inputs=need.inputs,
        claim=claim_name(admission.key.name, admission.spec),
        sub_path=admission.spec.claim.sub_path,
        folder=admission.key.folder,
        agent=agent,
        proven=admission.spec.verify == "BeforeRelease",
        warnings=(warning,) if warning else (),
    )


def _choice(a: PodAdmission) -> Choice:
    assert a.engine is not None
    ready = a.status.condition("Ready")
    return Choice(
        asked=a.spec.delivery,
        bundle=a.need.bundle_id,
        layout=a.bundle.layout if a.bundle is not None else None,
        parts=engine_type(a.engine).parts,
        is_given=a.is_given,
        is_trusted=a.bundle is not None and not _is_of_unknown_origin(a.bundle),
        is_current=a.status.observed_generation == a.cache["metadata"].get("generation"),
        is_inspecting=ready is not None and ready.reason == reasons.INSPECTING,
        image_may_have_moved=a.image_may_have_moved,
    )


def _is_of_unknown_origin(bundle: BundleStatus) -> bool:
    """Whether only a person says that the bundle is this engine's: imports were not tuned here."""
    return not bundle.tuned_seconds and not bundle.proven


def no_cache(a: PodAdmission) -> str | None:
    """The cache does not exist, or is being deleted."""
    if not a.cache:
        return "the namespace has no AutotuneCache of the name in the pod's label pretune.dev/cache"
    if a.cache["metadata"].get("deletionTimestamp"):
        return f"AutotuneCache {a.key} is being deleted"
    return None


def too_large(a: PodAdmission) -> str | None:
    """The cache or the template exceeds a bound of what is read (intake.py)."""
    if excess := a.cache.get(EXCESS):
        return f"AutotuneCache {a.key} {excess}"
    is_large = isinstance(a.template, Refused) and a.template.reason == reasons.TOO_LARGE
    return owner_unreadable(a) if is_large else None


def switched_off(a: PodAdmission) -> str | None:
    """The spec turns delivery off."""
    return "spec.delivery.mode is None" if a.spec.delivery == NONE else None


def owner_unreadable(a: PodAdmission) -> str | None:
    """The object with the pod's template could not be read."""
    return a.template.message if isinstance(a.template, Refused) else None


def target_unknown(a: PodAdmission) -> str | None:
    """The pod fits none of the targets, or several."""
    if a.target is not None:
        return None
    names = ", ".join(target.name for target in a.spec.targets)
    return (
        f"the pod's target is unknown, or its nodeSelector or affinity excludes that target's nodes;"
        f" cache {a.key} has {names}"
    )


def engine_unknown(a: PodAdmission) -> str | None:
    """The template has no engine that is recognised, or the pod does not have it any more."""
    try:
        name = a.need.engine
    except Refused as refused:
        return refused.message
    if a.engine is not None:
        return None
    names = ", ".join(container["name"] for container in a.pod["spec"]["containers"])
    return f"admission took container {name} out of the pod, which has {names}"


def override_set(a: PodAdmission) -> str | None:
    """The engine sets a variable that we would set."""
    assert a.engine is not None
    names = [variable["name"] for variable in a.engine.get("env") or ()]
    own = next((name for name in engine_type(a.engine).variables if name in names), None)
    return f"container {a.need.engine} sets {own} itself" if own else None


def names_collide(a: PodAdmission) -> str | None:
    """The pod has a volume, a container or a mount by one of our names."""
    assert a.engine is not None
    return find_collision(a.pod, a.engine)


def undeliverable(a: PodAdmission) -> str | None:
    """Pods could not start with the bundle (policy/pods/rescue.py)."""
    mark = a.bundle.undeliverable if a.bundle is not None else None
    return f"bundle {a.need.bundle_id}: {mark.reason}: {mark.message}" if mark is not None else None


def seed_cannot_run(a: PodAdmission) -> str | None:
    """Seed could not run in this image, in a pod of any bundle."""
    marks = (bundle.undeliverable for bundle in a.status.bundles)
    found = next((mark for mark in marks if mark and mark.image == a.written_image), None)
    if found is None or not _gets_seed(a):
        return None
    return f"image {a.written_image}: {found.reason}: {found.message}"


def seed_is_untried(a: PodAdmission) -> str | None:
    """If seed could not run, nothing could replace the pod.

    An attempt, or an import, has run the agent in the image before a bundle is sealed.
    """
    if a.is_recreated or not _gets_seed(a) or (a.is_given and not a.image_may_have_moved):
        return None
    why = "a Job counts it as a failure" if a.origin.kind == "Job" else "no controller recreates it"
    return (
        f"pretune-seed has not run in image {a.written_image} yet, and a pod that it keeps from"
        f" starting could not be replaced: {why}"
    )


def _gets_seed(a: PodAdmission) -> bool:
    """Whether the pod would get a container of ours, and not only a mount."""
    mode = find_mode(choose_mode(_choice(a))[0])
    return mode is not None and mode.makes_a_copy


def nothing_to_tune(a: PodAdmission) -> str | None:
    """The engine tuned nothing, so its bundle is empty."""
    is_empty = a.bundle is not None and a.bundle.is_empty
    return f"bundle {a.need.bundle_id} is empty" if is_empty else None


def not_tunable(a: PodAdmission) -> str | None:
    """The template cannot be tuned: the status says so, or will once the controller reads it."""
    if a.state == REFUSED:
        assert a.bundle is not None
        return f"bundle {a.need.bundle_id}: {a.bundle.reason}: {a.bundle.message}"
    if a.is_given:
        return None
    assert not isinstance(a.template, Refused) and a.target is not None
    refusal = find_refusal(a.template, a.spec, a.target)
    return f"{refusal.reason}: {refusal.message}" if refusal else None


def tuning_failed(a: PodAdmission) -> str | None:
    """All attempts failed.

    Without the status' message: it may quote the engine's log, and everybody who reaches the
    webhook may ask.
    """
    if a.state != FAILED:
        return None
    assert a.bundle is not None
    return (
        f"bundle {a.need.bundle_id}: {a.bundle.reason}: see status.bundles of AutotuneCache {a.key}"
    )


def suspended(a: PodAdmission) -> str | None:
    """The spec stops tuning, and the bundle is not there."""
    if a.spec.suspend and not a.is_given:
        return (
            f"spec.suspend of cache {a.key} is true, and bundle {a.need.bundle_id} is not"
            f" {a.missing_state}"
        )
    return None


def storage_not_ready(a: PodAdmission) -> str | None:
    """The claim cannot be used, or its state is unknown."""
    ready = a.status.condition("StorageReady")
    if ready is None:
        return f"the storage of cache {a.key} was not checked yet"
    return None if ready.status == "True" else f"{ready.reason}: {ready.message}"


# In order; the first that answers counts. The reasons are those of api/delivery_reasons.py.
LEFT_ALONE_RULES: tuple[tuple[DeliveryReason, Rule], ...] = (
    (delivery_reasons.NO_CACHE, no_cache),
    (delivery_reasons.TOO_LARGE, too_large),
    (delivery_reasons.DELIVERY_OFF, switched_off),
    (delivery_reasons.OWNER_UNREADABLE, owner_unreadable),
    (delivery_reasons.TARGET_UNKNOWN, target_unknown),
    (delivery_reasons.ENGINE_UNKNOWN, engine_unknown),
    (delivery_reasons.OVERRIDE_SET, override_set),
    (delivery_reasons.NAMES_COLLIDE, names_collide),
    (delivery_reasons.UNDELIVERABLE, undeliverable),
    (delivery_reasons.NOTHING_TO_TUNE, nothing_to_tune),
    (delivery_reasons.NOT_TUNABLE, not_tunable),
    (delivery_reasons.TUNING_FAILED, tuning_failed),
    (delivery_reasons.SUSPENDED, suspended),
    (delivery_reasons.STORAGE_NOT_READY, storage_not_ready),
    (delivery_reasons.UNDELIVERABLE, seed_cannot_run),
    (delivery_reasons.SEED_UNTRIED, seed_is_untried),
)
