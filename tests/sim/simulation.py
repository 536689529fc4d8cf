"""One namespace with one cache, the world around it and a controller: what a journey, a crash test and the state machine share."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from pretune.api.names import SEALED
from pretune.api.reasons import Refused
from pretune.api.spec import Spec, claim_name
from pretune.api.types import Object
from pretune.controller.reconcile import reconcile
from pretune.controller.workqueue import MAX_BACKOFF_SECONDS, MIN_BACKOFF_SECONDS
from pretune.kube.types import ApiError
from pretune.podspec import identity
from pretune.podspec.source import template_of

from tests.builders.constants import KEY, SETTINGS
from tests.builders.templates import serving_template
from tests.sim.cluster import Client, Clock, Faults, Killed, Server
from tests.sim.ground import Move
from tests.sim.laws import Laws
from tests.sim.storage import Bundle
from tests.sim.world import World

CLAIM = f"pretune-{KEY.name}"
CACHE = ("pretune.dev/v1alpha1", "AutotuneCache", KEY.namespace, KEY.name)
DEPLOYMENT = ("apps/v1", "Deployment", KEY.namespace, KEY.name)
REF = {"workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": KEY.name}}
MOVE = 0.25  # seconds that a move of the world takes when it settles
FAR = 4 * 3600.0  # beyond every retry, retirement and ttl


class Simulation:
    """`sim.deploy(); sim.apply(); sim.settle()`: then look."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.server = Server(self.clock)
        self.world = World(self.server, self.clock)
        self.laws = Laws(self.server, self.world)
        self.loop = asyncio.new_event_loop()
        self.ahead = 0.0  # seconds by which the clock of each new controller is ahead
        self.controller = self.client()
        self.killed = 0
        self.failures = 0  # of reconciles, in a row
        self.up = True  # whether there is a controller
        self.pace = 0.0  # seconds between two reconciles while the world moves
        self.looked = 0.0
        self.chance: random.Random | None = (
            None  # what happens next is drawn from it, instead of the first thing
        )
        self.late: list[
            tuple[Client, asyncio.Task[Any]]
        ] = []  # reconciles that were stopped in their middle

    def close(self) -> None:
        self.world.webhook.close()
        for _, task in self.late:
            task.cancel()
        if self.late:
            self.loop.run_until_complete(
                asyncio.gather(*(task for _, task in self.late), return_exceptions=True)
            )
        self.loop.close()

    # --- a person's hand

    def deploy(self, image: str = "vllm:1", **engine: Any) -> None:
        """Make the Deployment, or change its template."""
        spec = {"template": serving_template(image=image, **engine)}
        if self.server.get(*DEPLOYMENT) is None:
            self.server.create({**named(DEPLOYMENT), "spec": spec})
        else:
            self.server.patch(named(DEPLOYMENT), {"spec": spec})

    def apply(self, **spec: Any) -> None:
        """Make the cache, or change fields of its spec."""
        if self.server.get(*CACHE) is None:
            self.server.create(
                {**named(CACHE), "spec": {"source": REF, "storage": {"claim": {}}, **spec}}
            )
        else:
            self.server.patch(named(CACHE), {"spec": spec})

    def delete(self, place: tuple[str, str, str, str] = CACHE) -> None:
        self.server.delete(named(place))

    def wipe_status(self) -> None:
        status = (self.server.get(*CACHE) or {}).get("status") or {}
        self.server.patch(named(CACHE), {"status": dict.fromkeys(status)}, status=True)

    # --- the controller

    def reconcile(self, client: Client | None = None) -> float | None:
        """One reconcile of the key; an error of the API is a backoff, as the work queue has it. A killed controller's place is
        taken by a new one, which looks at once."""
        client, before = client or self.controller, len(self.server.writes)
        try:
            look = self.loop.run_until_complete(self._reconcile(client))
            assert look != 0.0 or len(self.server.writes) > before, (
                "a look that did nothing wants another one at once"
            )
            self.after_look(look)
            self.failures = 0
            return look
        except (ApiError, OSError, TimeoutError):
            self.failures += 1
            pause = MIN_BACKOFF_SECONDS * 2 ** (self.failures - 1)
            return float(min(pause, MAX_BACKOFF_SECONDS))
        except Killed:
            assert client.dead
            self.killed += 1
            if client is self.controller:
                self.controller = self.client("new controller")
            return 0.0

    def after_look(self, look: float | None) -> None:
        """A reconcile has succeeded, and wants to look again so many seconds from now."""

    def client(
        self, name: str = "controller", faults: Faults | None = None, pause_before: int = 0
    ) -> Client:
        client = Client(self.server, name, faults, pause_before)
        client.ahead = self.ahead
        return client

    def down(self) -> None:
        """No controller works any more; its lease runs out."""
        self.up = False
        self.world.webhook.controller_dies()

    def come_up(self) -> None:
        self.up = True
        self.world.webhook.controller_lives()

    def crash(self, number: int, when: str) -> None:
        """A reconcile whose process is killed at its n-th call."""
        self.reconcile(self.client(faults=Faults(crash_at=(number, when))))

    def stop_before(self, number: int) -> None:
        """A reconcile of another controller, stopped before its n-th call: an old leader, whose plan is carried out late."""
        self.lead(self.client("old leader", pause_before=number))

    def lead(self, client: Client) -> None:
        """A reconcile of this client, as far as it gets before it pauses."""
        self.laws.late_leaders = True
        task = self.loop.create_task(self._reconcile(client))
        waiting = self.loop.create_task(client.paused.wait())
        self.loop.run_until_complete(
            asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        )
        waiting.cancel()
        if task.done():
            _spent(task)
        else:
            self.late.append((client, task))

    def go_on(self) -> None:
        """The stopped reconciles go on, the oldest first."""
        while self.late:
            client, task = self.late.pop(0)
            client.resume.set()
            self.loop.run_until_complete(asyncio.wait([task]))
            _spent(task)

    def _reconcile(self, client: Client) -> Coroutine[Any, Any, float | None]:
        return reconcile(KEY, client, SETTINGS, client.now, refusals=client.refusals)

    # --- letting it run

    def settle(
        self, within: float = 300.0, until: Callable[[], bool] = lambda: False, limit: int = 3000
    ) -> None:
        """Reconcile after every move of the world, until nothing changes any more, `until` says so, or `within` seconds of
        its clock are over."""
        end, quiet = self.clock.now + within, 0
        for _ in range(limit):
            before = len(self.server.writes)
            move = self._next()
            if not self.up or (move and self._events_come_together()):
                look = None
            else:
                look = self.reconcile()
                self.looked = self.clock.now
                move = self._next()
            self.laws.check()
            if until():
                return
            if move:
                move[1]()
                self.clock.advance(MOVE)
                self.laws.check()
                quiet = 0
                continue
            if len(self.server.writes) != before:
                quiet = 0
                continue
            times = [
                *self.world.timers()[:1],
                *([] if look is None else [self.clock.now + max(look, 0.01)]),
            ]
            quiet += not self.failures
            if not times or quiet > 4 or min(times) > end:
                return
            self.clock.now = min(times)
        raise AssertionError(
            f"it does not come to rest; the last writes: {self.server.writes[-12:]}"
        )

    def _events_come_together(self) -> bool:
        """Whether what has just happened has no reconcile of its own."""
        if self.clock.now - self.looked < self.pace:
            return True
        return self.chance is not None and self.chance.random() < 0.5

    def _next(self) -> Move | None:
        """What the world does next: the first that it could, or one that is drawn."""
        if self.chance is None:
            return self.world.next()
        moves = self.world.moves()
        return self.chance.choice(moves) if moves else None

    # --- looking

    @property
    def cache(self) -> Object:
        found = self.server.get(*CACHE)
        assert found is not None
        return found

    @property
    def status(self) -> Object:
        return self.cache.get("status") or {}

    def condition(self, kind: str) -> tuple[str, str]:
        """(status, reason) of a condition."""
        found = next(
            (one for one in self.status.get("conditions", ()) if one["type"] == kind), None
        )
        assert found is not None, f"no condition {kind} in {self.status}"
        return found["status"], found["reason"]

    def message(self, kind: str = "Ready") -> str:
        return str(next(one["message"] for one in self.status["conditions"] if one["type"] == kind))

    @property
    def ready(self) -> tuple[str, str]:
        return self.condition("Ready")

    @property
    def records(self) -> list[Object]:
        return self.status.get("bundles") or []

    @property
    def any_records(self) -> list[Object]:
        """Also where there is no cache."""
        return ((self.server.get(*CACHE) or {}).get("status") or {}).get("bundles") or []

    @property
    def sealed_ids(self) -> set[str]:
        return {one["id"] for one in self.any_records if one["state"] == SEALED}

    @property
    def record(self) -> Object:
        """Of the first wanted bundle."""
        return self.records[0]

    def wanted(self) -> list[str]:
        """The ids that the cache wants, computed from its source as a person reads it; [] where that cannot be told."""
        cache = self.server.get(*CACHE)
        source = self.server.get(*DEPLOYMENT)
        if cache is None or source is None:
            return []
        spec = Spec.from_cache(cache)
        try:
            template = template_of(source)
            return [identity.inputs(template, spec, target).bundle_id() for target in spec.targets]
        except Refused:
            return []

    def on_claim(self, name: str = CLAIM) -> dict[str, Bundle]:
        return {place[1]: one for place, one in self.world.bundles(KEY.namespace, name).items()}

    def where_it_is_to_be(self) -> dict[str, Bundle]:
        """What is in the cache's folder, in the place that its spec names now."""
        cache = self.server.get(*CACHE)
        if cache is None:
            return {}
        spec = Spec.from_cache(cache)
        folder = "/".join(filter(None, (spec.claim.sub_path, KEY.folder)))
        found = self.world.bundles(KEY.namespace, claim_name(KEY.name, spec))
        return {place[1]: one for place, one in found.items() if place[0] == folder}

    @property
    def engine_starts(self) -> int:
        return len(self.world.starts)

    def writes(self, kind: str = "", verb: str = "") -> list[str]:
        """The controllers' writes that the server accepted."""
        return [
            f"{one.verb} {one.kind} {one.name}"
            for one in self.server.writes
            if one.by and kind in ("", one.kind) and verb in ("", one.verb)
        ]


def named(place: tuple[str, str, str, str]) -> Object:
    """Just enough of an object to make or change it."""
    return {
        "apiVersion": place[0],
        "kind": place[1],
        "metadata": {"namespace": place[2], "name": place[3]},
    }


def _spent(task: asyncio.Task[Any]) -> None:
    error = task.exception()
    if error is not None and not isinstance(error, (ApiError, OSError, TimeoutError)):
        raise error
