"""A consumer that is being created, and what the rules about it depend on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pretune.api.names import PROVING, SEALED
from pretune.api.reasons import Refused
from pretune.api.spec import Spec, Target
from pretune.api.status import BundleStatus, CacheStatus
from pretune.api.types import Key, Object
from pretune.podspec import identity
from pretune.podspec.template import engine_of, moving_tag
from pretune.podspec.workloads import find_kind, is_recreated
from pretune.policy.model import Origin
from pretune.protocol import Inputs


@dataclass(frozen=True)
class BundleNeed:
    """Which bundle the pods of a template need for a target, and by which container."""

    engine: str  # the container's name
    inputs: Inputs
    bundle_id: str


def find_need(template: Object, spec: Spec, target: Target) -> BundleNeed:
    """Return which bundle the pods of a template need. Raises Refused as engine_of does."""
    inputs = identity.inputs(template, spec, target)
    engine = engine_of(template, spec.engine_container)["name"]
    return BundleNeed(engine, inputs, inputs.bundle_id())


@dataclass(frozen=True)
class PodAdmission:
    """A pod of a CREATE request, and what is known of its cache.

    A rule may use what the rules before it have found to be there (policy/pods/delivery.py).
    """

    namespace: str
    cache: Object  # as last seen; {}: there is none of the name
    pod: Object
    origin: Origin
    can_hold: bool  # the controller lives and can release the pod

    @property
    def template(self) -> Object | Refused:
        """The pod's template as its author wrote it; Refused: it could not be read."""
        return self.origin.template

    @cached_property
    def key(self) -> Key:
        return Key(self.namespace, self.cache["metadata"]["name"])

    @cached_property
    def spec(self) -> Spec:
        return Spec.from_cache(self.cache)

    @cached_property
    def target(self) -> Target | None:
        """The pod's target; None: unknown."""
        return identity.target_of(self.pod, self.spec)

    @cached_property
    def need(self) -> BundleNeed:
        assert not isinstance(self.template, Refused) and self.target is not None
        return find_need(self.template, self.spec, self.target)

    @cached_property
    def engine(self) -> Object | None:
        """The engine's container in the pod, which other webhooks may have changed or removed."""
        containers = self.pod["spec"]["containers"]
        return next((each for each in containers if each["name"] == self.need.engine), None)

    @property
    def written_image(self) -> str:
        """The engine's image as its template names it."""
        assert not isinstance(self.template, Refused)
        return str(engine_of(self.template, self.spec.engine_container).get("image") or "")

    @property
    def is_recreated(self) -> bool:
        """Whether a pod that cannot start may be deleted, and another one takes its place."""
        row = find_kind(self.origin.kind)
        if row is None:
            return is_recreated(self.pod)  # of a controller of an unknown kind, or of none
        return not row.counts_deleted_pods

    @property
    def image_may_have_moved(self) -> bool:
        """Whether the image's name may stand for other content than was tuned.

        An image that is never pulled is what its node was given.
        """
        engine = self.engine or {}
        return (
            engine.get("imagePullPolicy") != "Never"
            and moving_tag(engine.get("image") or "") is not None
        )

    @cached_property
    def status(self) -> CacheStatus:
        return CacheStatus.from_cache(self.cache)

    @cached_property
    def bundle(self) -> BundleStatus | None:
        """The status of the bundle that the pod needs; None: it has none."""
        bundle_id = self.need.bundle_id
        return next((bundle for bundle in self.status.bundles if bundle.id == bundle_id), None)

    @property
    def state(self) -> str:
        """The bundle's state; "": it has none."""
        return self.bundle.state if self.bundle is not None else ""

    @property
    def is_given(self) -> bool:
        """Whether pods may start with the bundle."""
        return self.bundle is not None and self.bundle.may_be_given(self.spec)

    @property
    def missing_state(self) -> str:
        """What the bundle is not, where it is not given."""
        return "proven" if self.state in (SEALED, PROVING) else "sealed"
