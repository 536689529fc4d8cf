"""The webhook between its watches and the API server: the real one judges (pretune.webhook.Admission), here are its eyes and its ears.

A test takes it down, makes it see late or not at all, puts other webhooks before and after it, or has it asked twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import jsonpatch
from pretune.api.names import KIND
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.kube.lease import LEASE_DURATION_SECONDS
from pretune.kube.watch import ENDED, LISTED
from pretune.manifests.agent_archive import agent_name
from pretune.webhook.admission import Admission
from pretune.webhook.informers import CacheInformer, LeaseMonitor, trim_cache
from pretune.webhook.template_cache import TemplateCache

from tests.sim.cluster import Client, Write, copied
from tests.sim.ground import Ground
from tests.sim.reading import consumer
from tests.unit.virtual import VirtualLoop

Other = Callable[[Object], None]  # another webhook, which changes a pod in place


class Webhook:
    """Asked about each consumer that is made."""

    def __init__(self, ground: Ground) -> None:
        self.ground, self.clock = ground, ground.clock
        # knobs
        self.up = True
        self.lag = 0.0  # seconds until a change of a cache is seen
        self.before: list[Other] = []
        self.after: list[Other] = []  # whoever of them changes a pod has us asked again
        # what a test looks at
        self.admitted: list[
            tuple[Object, Object]
        ] = []  # each pod as it came and as it went, other webhooks' changes apart
        self.blind: float | None = None  # since when it sees no caches
        self.controller_died: float | None = None
        self._loop = VirtualLoop()
        self._caches, self._controller = CacheInformer(self.clock), LeaseMonitor(self.clock)
        self._coming: deque[tuple[float, str, Object]] = deque()  # what the watch has not told yet
        self.client = Client(ground.server, "webhook")
        self._admission = Admission(
            TemplateCache(self.client, self.clock), self._caches, self._controller, agent_name()
        )
        self._caches.on_event(LISTED, {})
        self._controller.on_event(LISTED, {})
        ground.server.listeners.append(self._on_write)

    def close(self) -> None:
        self._loop.close()

    # --- a test's hand

    def lose_sight(self) -> None:
        """Its watch of the caches is down."""
        if self.blind is None:
            self._see()
            self._caches.on_event(ENDED, {})
            self.blind = self.clock.now

    def regain_sight(self) -> None:
        if self.blind is not None:
            self.blind = None
            self._coming.clear()
            for one in self.ground.stored("pretune.dev/v1alpha1", KIND):
                self._caches.on_event("ADDED", trim_cache(copied(one)))
            self._caches.on_event(LISTED, {})

    def controller_dies(self) -> None:
        if self.controller_died is None:
            self._renew()
            self.controller_died = self.clock.now

    def controller_lives(self) -> None:
        self.controller_died = None

    # --- what it sees

    def _on_write(self, write: Write) -> None:
        if write.kind == KIND:
            change = {"create": "ADDED", "delete": "DELETED"}.get(write.verb, "MODIFIED")
            self._coming.append((self.clock.now, change, write.object))

    def _see(self) -> None:
        while (
            self.blind is None and self._coming and self._coming[0][0] <= self.clock.now - self.lag
        ):
            _, change, obj = self._coming.popleft()
            self._caches.on_event(change, trim_cache(copied(obj)))

    def _renew(self) -> None:
        """The controller renews its lease every few seconds, as long as it lives."""
        if self.controller_died is None:
            spec = {
                "holderIdentity": "controller",
                "renewTime": f"{format_timestamp(self.clock.now)} {self.clock.now}",
            }
            self._controller.on_event("MODIFIED", {"spec": spec})

    @property
    def may_hold(self) -> bool:
        """Whether a controller can release a pod, as far as the webhook can know, by the test's own clock."""
        limits = (self.controller_died, self.blind)
        return all(
            since is None or self.clock.now - since < LEASE_DURATION_SECONDS for since in limits
        )

    # --- what it is asked

    def admit(self, verb: str, obj: Object) -> None:
        if verb != "create" or obj["kind"] != "Pod" or not consumer(obj):
            return
        for other in self.before:
            other(obj)
        self._answer(obj)
        for other in self.after:
            was = copied(obj)
            other(obj)
            if obj != was:
                self._answer(obj)

    def _answer(self, obj: Object) -> None:
        if not self.up:
            return
        self._see()
        self._renew()
        asked = copied(obj)
        if "ownerReferences" in asked["metadata"]:
            del asked["metadata"]["name"]  # made of its generateName later
        request = {
            "operation": "CREATE",
            "namespace": obj["metadata"]["namespace"],
            "object": asked,
        }
        answer = self._loop.run_until_complete(self._admission.answer(request))
        outdated = self._caches.is_outdated()
        assert outdated or answer.reason != "Failed", "the webhook failed by itself"
        if answer.patch:
            was = copied(obj)
            made = jsonpatch.apply_patch(obj, answer.patch)
            obj.clear()
            obj.update(made)
            self.admitted.append((was, copied(obj)))
