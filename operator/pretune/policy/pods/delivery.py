"""What a new consumer is given: nothing, the bundle read-only, or a copy of it; now, or once sealed.

Two lists of small checks, in order. LEFT_ALONE_RULES: the first that answers is why the pod gets
nothing. UNHELD: the first that answers is why a pod whose bundle is not there yet starts at once,
and does not wait behind our gate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from pretune.api import delivery_reasons, reasons
from pretune.api.delivery_reasons import DeliveryReason
from pretune.api.names import FAILED, PROVING, REFUSED, SEALED
from pretune.api.reasons import Refused
from pretune.api.spec import Spec, Target, claim_name
from pretune.api.status import BundleStatus, CacheStatus
from pretune.api.types import Key, Object
from pretune.manifests.delivery_modes import NONE, Choice, Delivery, choose_mode
from pretune.manifests.injection import find_collision
from pretune.podspec import identity
from pretune.podspec.preflight import find_refusal
from pretune.podspec.template import engine_of, engine_type, moving_tag
from pretune.podspec.workloads import held_kinds
from pretune.protocol import Inputs


@dataclass(frozen=True)
class Want:
    """What the pods of a template need of a target."""

    engine: str  # the container's name
    inputs: Inputs
    bundle: str  # its id


def want(template: Object, spec: Spec, target: Target) -> Want:
    """Raises Refused as engine_of does."""
    inputs = identity.inputs(template, spec, target)
    engine = engine_of(template, spec.engine_container)["name"]
    return Want(engine, inputs, inputs.bundle_id())


def delivery(
    namespace: str,
    cache: Object | None,
    pod: Object,
    template: Object | Refused,
    owner: str,
    alive: bool,
    agent: str,
) -> Delivery:
    """The answer to one pod of a CREATE request, which has no parts of ours yet (manifests.injection.is_injected).

    cache: as last seen; None: there is none of that name. It is used as it is, also where its status is of an older generation.
    template: as its author wrote it (model.Origin.template). owner: the controlling owner's kind (Origin.kind). alive: the
    controller's lease was renewed within 15 s. agent: the agent ConfigMap's name.
    """
    arrival = Arrival(namespace, cache or {}, pod, template, owner, alive)
    for cause, check in LEFT_ALONE_RULES:
        if message := check(arrival):
            return Delivery(NONE, cause, message, warnings=(f"pretune: {cause}: {message}",))
    given = arrival.given
    why = None if given else next(filter(None, (check(arrival) for check in UNHELD)), None)
    held = not given and why is None
    reason: DeliveryReason
    if given:
        reason, message = delivery_reasons.GIVEN, f"bundle {arrival.want.bundle} is sealed"
    elif held:
        reason, message = (
            delivery_reasons.HELD,
            f"waits for bundle {arrival.want.bundle} of cache {arrival.key}, {_at_most(arrival.spec)}",
        )
    else:
        reason, message = (
            delivery_reasons.NOT_SEALED_YET,
            f"bundle {arrival.want.bundle} is not {arrival.lacks} yet; the pod is not held: {why}",
        )
    mode, warning = choose_mode(_choice(arrival))
    return Delivery(
        mode=mode,
        reason=reason,
        message=message,
        held=held,
        engine=arrival.want.engine,
        bundle=arrival.want.bundle,
        inputs=arrival.want.inputs,
        claim=claim_name(arrival.key.name, arrival.spec),
        sub_path=arrival.spec.claim.sub_path,
        folder=arrival.key.folder,
        agent=agent,
        proven=arrival.spec.verify == "BeforeRelease",
        warnings=(warning,) if warning else (),
    )


def _at_most(spec: Spec) -> str:
    if spec.hold.on_failure == "Keep":
        return "as long as it takes (spec.hold.onFailure is Keep)"
    return f"at most {spec.hold.timeout_seconds} s from its creation (spec.hold.timeoutSeconds)"


def _choice(a: Arrival) -> Choice:
    assert a.engine is not None
    ready = a.status.condition("Ready")
    return Choice(
        asked=a.spec.delivery,
        bundle=a.want.bundle,
        layout=a.bundle.layout if a.bundle is not None else None,
        parts=engine_type(a.engine).parts,
        is_given=a.given,
        is_trusted=a.bundle is not None and not _is_of_unknown_origin(a.bundle),
        is_current=a.status.observed_generation == a.cache["metadata"].get("generation"),
        is_inspecting=ready is not None and ready.reason == reasons.INSPECTING,
        image_may_have_moved=a.may_have_moved,
    )


def _is_of_unknown_origin(bundle: BundleStatus) -> bool:
    """Whether only a person claims that the bundle is this engine's: imports were not tuned here."""
    return not bundle.tuned_seconds and not bundle.proven


@dataclass(frozen=True)
class Arrival:
    """A pod that is being made, and what bears on it. Each check may use what the checks before it have found to be there."""

    namespace: str
    cache: Object  # {}: there is none
    pod: Object
    template: Object | Refused
    owner: str
    alive: bool

    @cached_property
    def key(self) -> Key:
        return Key(self.namespace, self.cache["metadata"]["name"])

    @cached_property
    def spec(self) -> Spec:
        return Spec.from_cache(self.cache)

    @cached_property
    def target(self) -> Target | None:
        return identity.target_of(self.pod, self.spec)

    @cached_property
    def want(self) -> Want:
        assert not isinstance(self.template, Refused) and self.target is not None
        return want(self.template, self.spec, self.target)

    @cached_property
    def engine(self) -> Object | None:
        """The engine as it arrives, by the name that it has in the template: admission may have changed the pod."""
        return next(
            (one for one in self.pod["spec"]["containers"] if one["name"] == self.want.engine), None
        )

    @property
    def may_have_moved(self) -> bool:
        """Whether the image may be other content by now than what was tuned; one that is never pulled is what its node was given."""
        image = self.engine or {}
        return (
            image.get("imagePullPolicy") != "Never"
            and moving_tag(image.get("image") or "") is not None
        )

    @cached_property
    def status(self) -> CacheStatus:
        return CacheStatus.from_cache(self.cache)

    @cached_property
    def bundle(self) -> BundleStatus | None:
        """The bundle's status; None: it has none."""
        return next((each for each in self.status.bundles if each.id == self.want.bundle), None)

    @property
    def state(self) -> str:
        """The bundle's; "": it has none."""
        return self.bundle.state if self.bundle is not None else ""

    @property
    def given(self) -> bool:
        """Whether pods may start with it."""
        return self.bundle is not None and self.bundle.may_be_given(self.spec)

    @property
    def lacks(self) -> str:
        """What the bundle is not, where it is not given."""
        return "proven" if self.state in (SEALED, PROVING) else "sealed"


Check = Callable[[Arrival], str | None]  # says why, or None


# --- why a pod is left alone


def no_cache(a: Arrival) -> str | None:
    """The cache does not exist, or is being deleted."""
    if not a.cache:
        return "the namespace has no AutotuneCache of the name in the pod's label pretune.dev/cache"
    if a.cache["metadata"].get("deletionTimestamp"):
        return f"AutotuneCache {a.key} is being deleted"
    return None


def switched_off(a: Arrival) -> str | None:
    """The spec turns delivery off."""
    return "spec.delivery.mode is None" if a.spec.delivery == NONE else None


def owner_unreadable(a: Arrival) -> str | None:
    """The object with the pod's template could not be read."""
    return a.template.message if isinstance(a.template, Refused) else None


def target_unknown(a: Arrival) -> str | None:
    """The pod fits none of the targets, or several."""
    if a.target is not None:
        return None
    names = ", ".join(target.name for target in a.spec.targets)
    return f"the pod's target is unknown; cache {a.key} has {names}"


def engine_unknown(a: Arrival) -> str | None:
    """The template has no engine that is recognised, or the pod does not have it any more."""
    try:
        name = a.want.engine
    except Refused as refused:
        return refused.message
    if a.engine is not None:
        return None
    names = ", ".join(container["name"] for container in a.pod["spec"]["containers"])
    return f"admission took container {name} out of the pod, which has {names}"


def override_set(a: Arrival) -> str | None:
    """The engine sets a variable that we would set."""
    assert a.engine is not None
    names = [variable["name"] for variable in a.engine.get("env") or ()]
    own = next((name for name in engine_type(a.engine).variables if name in names), None)
    return f"container {a.want.engine} sets {own} itself" if own else None


def names_collide(a: Arrival) -> str | None:
    """The pod has a volume, a container or a mount by one of our names."""
    assert a.engine is not None
    return find_collision(a.pod, a.engine)


def undeliverable(a: Arrival) -> str | None:
    """Pods could not start with the bundle (policy/pods/rescue.py)."""
    mark = a.bundle.undeliverable if a.bundle is not None else None
    return f"bundle {a.want.bundle}: {mark.reason}: {mark.message}" if mark is not None else None


def nothing_to_tune(a: Arrival) -> str | None:
    """The engine tuned nothing, so its bundle is empty."""
    is_empty = a.bundle is not None and a.bundle.is_empty
    return f"bundle {a.want.bundle} is empty" if is_empty else None


def not_tunable(a: Arrival) -> str | None:
    """The template cannot be tuned: the status says so, or will once the controller reads it."""
    if a.state == REFUSED:
        return _status_message(a)
    if a.given:
        return None
    assert not isinstance(a.template, Refused) and a.target is not None
    refusal = find_refusal(a.template, a.spec, a.target)
    return f"{refusal.reason}: {refusal.message}" if refusal else None


def tuning_failed(a: Arrival) -> str | None:
    """All attempts failed."""
    return _status_message(a) if a.state == FAILED else None


def suspended(a: Arrival) -> str | None:
    """The spec stops tuning, and the bundle is not there."""
    if a.spec.suspend and not a.given:
        return f"spec.suspend of cache {a.key} is true, and bundle {a.want.bundle} is not {a.lacks}"
    return None


def storage_not_ready(a: Arrival) -> str | None:
    """The claim cannot be used, or its state is unknown."""
    ready = a.status.condition("StorageReady")
    if ready is None:
        return f"the storage of cache {a.key} was not checked yet"
    return None if ready.status == "True" else f"{ready.reason}: {ready.message}"


def _status_message(a: Arrival) -> str:
    assert a.bundle is not None
    return f"bundle {a.want.bundle}: {a.bundle.reason}: {a.bundle.message}"


# In order; the first that answers counts. The reasons are those of api/delivery_reasons.py.
LEFT_ALONE_RULES: tuple[tuple[DeliveryReason, Check], ...] = (
    (delivery_reasons.NO_CACHE, no_cache),
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
)


# --- why a pod whose bundle is not sealed yet is not held


def never_held(a: Arrival) -> str | None:
    return "spec.hold.when is Never" if a.spec.hold.when == "Never" else None


def nothing_serves(a: Arrival) -> str | None:
    """Waiting is worth it only while others serve."""
    if a.spec.hold.when == "Always":
        return None
    fingerprint = a.want.inputs.fingerprint
    serves = any(bundle.serving for bundle in a.status.bundles if bundle.fingerprint != fingerprint)
    return None if serves else "no pod of another revision serves"


def runs_already(a: Arrival) -> str | None:
    """What runs may be scaled up, and its pods replaced."""
    if a.spec.hold.when == "Always":
        return None
    fingerprint = a.want.inputs.fingerprint
    runs = any(bundle.running for bundle in a.status.bundles if bundle.fingerprint == fingerprint)
    return "pods of the same revision run" if runs else None


def would_be_missed(a: Arrival) -> str | None:
    """A StatefulSet's pod, say, takes the place of one that serves: it would be missing for the whole tuning."""
    kinds = held_kinds()
    if a.spec.hold.when == "Always" or a.owner in kinds:
        return None
    return f"only a {' or a '.join(kinds)}'s pods are held unless spec.hold.when is Always"


def has_node(a: Arrival) -> str | None:
    return (
        "spec.nodeName is set, which no scheduling gate goes with"
        if a.pod["spec"].get("nodeName")
        else None
    )


def nobody_releases(a: Arrival) -> str | None:
    return (
        None
        if a.alive
        else "the controller has not renewed its lease, so that nobody could release the pod"
    )


def will_not_be_tuned(a: Arrival) -> str | None:
    stalled = a.status.condition("Stalled")
    if a.bundle is not None or stalled is None or stalled.status != "True":
        return None
    if stalled.reason != reasons.TOO_MANY_FINGERPRINTS:
        return None
    return f"{stalled.reason}: {stalled.message}"


def attempt_cannot_start(a: Arrival) -> str | None:
    """Held pods count in a quota: what they use up may be what the attempt lacks."""
    if a.bundle is None or a.bundle.reason != reasons.POD_REFUSED:
        return None
    return f"the attempt cannot start: {a.bundle.message}"


UNHELD: tuple[Check, ...] = (
    never_held,
    nothing_serves,
    runs_already,
    would_be_missed,
    has_node,
    nobody_releases,
    will_not_be_tuned,
    attempt_cannot_start,
)
