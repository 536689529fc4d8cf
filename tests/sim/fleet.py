"""A simulation with consumers: what people deploy, and what they see of it."""

from __future__ import annotations

from typing import Any

from pretune.api.names import BUNDLE, CACHE, DELIVERY, REASON
from pretune.api.types import Object

from tests.builders.constants import KEY
from tests.builders.templates import serving_template
from tests.sim.ground import Serve
from tests.sim.promises import Promises
from tests.sim.reading import consumer, is_held, note, ready, terminal
from tests.sim.simulation import Simulation

LABELS = {"app": "qwen3", CACHE: KEY.name}


def labelled(
    image: str, name: str = KEY.name, notes: Object | None = None, **engine: Any
) -> Object:
    """A template that opts in."""
    made = serving_template(image=image, **engine)
    made["metadata"] = {
        "labels": {**LABELS, "app": name},
        **({"annotations": notes} if notes else {}),
    }
    return made


class Fleet(Simulation):
    """`fleet.serve("vllm:1"); fleet.settle(); fleet.serve("vllm:2")`: then look."""

    def __init__(self) -> None:
        super().__init__()
        self.pace = 1.0  # the queue's own
        self.promises = self.laws = Promises(self.server, self.world)

    def after_look(self, look: float | None) -> None:
        self.promises.after_look(look)

    # --- a person's hand

    def serve(
        self,
        image: str = "vllm:1",
        replicas: int | None = None,
        name: str = KEY.name,
        strategy: Object | None = None,
        pod: Object | None = None,
        notes: Object | None = None,
        **engine: Any,
    ) -> None:
        """Make a Deployment whose pods opt in (3 replicas, one more during a rollout), or change its template, replicas or strategy.
        pod: fields of the pod spec."""
        place = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"namespace": KEY.namespace, "name": name},
        }
        made = labelled(image, name, notes, **engine)
        made["spec"] |= pod or {}
        spec: Object = {"template": made}
        if replicas is not None:
            spec["replicas"] = replicas
        if strategy is not None:
            spec["strategy"] = strategy
        if self.server.stored("apps/v1", "Deployment", KEY.namespace, name) is None:
            whole = {"replicas": 3, "selector": {"matchLabels": {"app": name}}, **spec}
            self.server.create({**place, "spec": whole})
        else:
            self.server.patch(place, {"spec": spec})

    def stateful(self, image: str = "vllm:1", replicas: int | None = None, **engine: Any) -> None:
        place = {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {"namespace": KEY.namespace, "name": "set"},
        }
        spec: Object = {"template": labelled(image, "set", **engine)}
        if replicas is not None:
            spec["replicas"] = replicas
        if self.server.stored("apps/v1", "StatefulSet", KEY.namespace, "set") is None:
            self.server.create(
                {
                    **place,
                    "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "set"}}, **spec},
                }
            )
        else:
            self.server.patch(place, {"spec": spec})

    def batch(self, image: str = "vllm:1", name: str = "batch", **engine: Any) -> None:
        made = labelled(image, name, **engine)
        made["spec"]["restartPolicy"] = "Never"
        meta = {"namespace": KEY.namespace, "name": name}
        spec = {"template": made, "backoffLimit": 3}
        self.server.create(
            {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}
        )

    def bare(self, image: str = "vllm:1", name: str = "bare", **engine: Any) -> None:
        """A pod that nothing makes anew."""
        made = labelled(image, name, **engine)
        meta = {"namespace": KEY.namespace, "name": name, **made["metadata"]}
        self.server.create(
            {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": made["spec"]}
        )

    # --- looking

    def consumers(self, image: str = "") -> list[Object]:
        """Those that are not ended; of one image, or of all."""
        return [
            one
            for one in self.server.list("v1", "Pod", KEY.namespace, labels=CACHE)
            if consumer(one) and not terminal(one) and image in ("", _image(one))
        ]

    def held(self, image: str = "") -> list[Object]:
        return [one for one in self.consumers(image) if is_held(one)]

    def serving(self, image: str = "") -> int:
        """How many are ready."""
        return sum(ready(one) for one in self.consumers(image))

    def starts(self, image: str = "") -> list[Serve]:
        """Of consumers' engines."""
        return [one for one in self.world.serves if image in ("", one.image)]

    def warm(self, image: str = "") -> list[bool]:
        """Of each start whether it was warm."""
        return [bool(one.bundle) for one in self.starts(image)]

    def reasons(self, image: str = "") -> set[str]:
        """Why the pods were given what they were given."""
        return {note(one, REASON).partition(":")[0] for one in self.consumers(image)}

    def modes(self, image: str = "") -> set[str]:
        return {note(one, DELIVERY) for one in self.consumers(image)}

    def given(self, image: str = "") -> set[str]:
        return {note(one, BUNDLE) for one in self.consumers(image)}

    @property
    def counted(self) -> Object:
        """status.consumers without the time."""
        return {
            name: one
            for name, one in (self.status.get("consumers") or {}).items()
            if name != "observedAt"
        }

    def said(self, reason: str) -> list[str]:
        """Messages of the events of this reason."""
        return [one.message for one in self.server.events if one.reason == reason]


def _image(pod: Object) -> str:
    return next(
        (str(one["image"]) for one in pod["spec"]["containers"] if one["name"] == "vllm"), ""
    )
