"""What runs in consumers: the seed, and the engine, which starts warm where it finds its bundle and tunes where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pretune.api.names import SEED_CONTAINER
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.podspec.template import engine_type
from pretune.protocol import CLAIM_MOUNT

from tests.sim import agent
from tests.sim.ground import STARTS_FOR, TUNES_FOR, WAIT, Move, Serve
from tests.sim.reading import engine, every_container, state, status
from tests.sim.storage import VERSIONS

if TYPE_CHECKING:
    from tests.sim.kubelet import Kubelet

WORKS_FOR = 10.0  # seconds that the engine of a Job's pod works once it is ready


class Serving:
    """The author's init containers end well, the author's containers serve, or do their work and end, as the pod restarts."""

    def __init__(self, kubelet: Kubelet) -> None:
        self.kubelet, self.ground = kubelet, kubelet.ground
        self._seeded: dict[
            str, str
        ] = {}  # pod uid -> the bundle in the folders of its engine's parts

    def starts(self, pod: Object, name: str, again: bool) -> None:
        found = next(one for one in every_container(pod) if one["name"] == name)
        agent.need_shell(self.ground, pod, name)
        if name == engine(pod):
            self.ground.serves.append(
                Serve(
                    pod["metadata"]["uid"],
                    found["image"],
                    self._find_bundle(pod, found),
                    self.ground.clock.now,
                )
            )

    def due(self, pod: Object) -> Iterator[float]:
        found = state(pod, engine(pod)).get("running")
        if found:
            begun = parse_timestamp(found["startedAt"]) + self._start_takes(pod)
            yield begun
            if not _serves(pod):
                yield begun + WORKS_FOR

    def running(self, pod: Object, container: Object) -> Move | None:
        name = container["name"]
        if name == SEED_CONTAINER:
            return WAIT if self.ground.seed_hangs else ("seed ends", lambda: self._seed(pod))
        if (
            container in pod["spec"].get("initContainers", ())
            and container.get("restartPolicy") != "Always"
        ):
            return f"{name} ends", lambda: self.kubelet.end(pod, name, 0, "")
        takes, began = (
            self._start_takes(pod) if name == engine(pod) else 0.0,
            state(pod, name)["running"]["startedAt"],
        )
        if not status(pod, name).get("ready"):
            due = self.ground.clock.now >= parse_timestamp(began) + takes
            return (f"{name} is ready", lambda: self.kubelet.ready(pod, name)) if due else WAIT
        if _serves(pod):
            return None
        over = self.ground.clock.now >= parse_timestamp(began) + takes + WORKS_FOR
        return (
            (f"{name} has done its work", lambda: self.kubelet.end(pod, name, 0, ""))
            if over
            else WAIT
        )

    def _seed(self, pod: Object) -> None:
        report = agent.seed(self.ground, pod)
        if report.reason == "Seeded":
            self._seeded[pod["metadata"]["uid"]] = report.id
        self.kubelet.end(pod, SEED_CONTAINER, 0, report.dump())

    def _start_takes(self, pod: Object) -> float:
        newest = next(
            one for one in reversed(self.ground.serves) if one.pod == pod["metadata"]["uid"]
        )
        return STARTS_FOR if newest.bundle else TUNES_FOR

    def _find_bundle(self, pod: Object, container: Object) -> str:
        """The bundle that the engine finds where its parts' variables point to, and can use; "": none."""
        env = {one["name"]: one.get("value", "") for one in container.get("env") or ()}
        parts = engine_type(container).parts
        if all(env.get(part.variable) == part.mount for part in parts):
            return self._seeded.get(pod["metadata"]["uid"], "")
        places = {_on_claim(env.get(part.variable, ""), part.name) for part in parts}
        if len(places) != 1 or None in places:
            return ""
        at = next(place for place in places if place is not None)
        volume = self.ground.volume(pod, container["name"])
        found = volume.bundles.get(at)
        versions = self.ground.versions.get(container["image"], VERSIONS)
        fits = found is not None and found.versions == versions
        return at[1] if fits and at not in volume.torn else ""


def _on_claim(value: str, part: str) -> tuple[str, str] | None:
    """The cache's folder and the bundle's id, where a variable's value is a part's folder on the claim."""
    folder, bundles, rest = value.removeprefix(f"{CLAIM_MOUNT}/").partition("/bundles/")
    bundle_id, _, name = rest.partition("/")
    is_there = value.startswith(f"{CLAIM_MOUNT}/") and bundles and name == part
    return (folder, bundle_id) if is_there else None


def _serves(pod: Object) -> bool:
    return str(pod["spec"].get("restartPolicy", "Always")) == "Always"
