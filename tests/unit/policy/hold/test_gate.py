"""Whether a new pod whose bundle is not there yet is held: each rule of the hold."""

from __future__ import annotations

from typing import Any

import pytest
from pretune.api.types import Object
from pretune.podspec import identity

from tests.builders.deliveries import OTHER, NewPod


def placed(pod: Object) -> None:
    pod["spec"]["nodeName"] = "node0"


HELD: list[tuple[str, NewPod]] = [
    ("its bundle has no record yet", NewPod()),
    ("its bundle is pending", NewPod().record("Pending", "Queued")),
    ("its bundle is being tuned", NewPod().record("Tuning")),
    ("an older status than the spec", NewPod().cached(generation=4)),
    ("an older bundle of the same engine failed", NewPod().set(more=[OTHER, {"id": "x-default", "fingerprint": "1", "state": "Failed"}])),
    ("Always, and nothing serves", NewPod().spec(hold={"when": "Always"}).set(more=[])),
    ("Always, and it runs already", NewPod().spec(hold={"when": "Always"}).record("Tuning", running=True)),
    *(
        (f"Always, of {owner}", NewPod().spec(hold={"when": "Always"}).set(owner=owner))
        for owner in ("StatefulSet", "DaemonSet")
    ),
    ("too many fingerprints, but this one has its record", NewPod().stalled("TooManyFingerprints").record("Pending")),
    ("stalled by another bundle", NewPod().stalled("EngineFailed")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "world"), HELD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_pod_is_held(case: str, world: NewPod) -> None:
    given = world.answer()
    assert (given.mode, given.reason, given.held) == ("Overlay", "Held", True)
    assert given.message == (
        f"waits for bundle {world.id()} of cache inference/qwen3, at most 3600 s from its creation (spec.hold.timeoutSeconds)"
    )
    assert not given.warnings


def test_a_held_pod_says_how_long_it_waits_at_most() -> None:
    assert "at most 60 s" in NewPod().spec(hold={"timeoutSeconds": 60}).answer().message
    assert (
        "as long as it takes (spec.hold.onFailure is Keep)"
        in NewPod().spec(hold={"onFailure": "Keep"}).answer().message
    )


def serving(**record: Any) -> list[Object]:
    return [{"id": "a-default", "fingerprint": "0", "state": "Sealed", **record}]


NOTHING_SERVES = "no pod of another revision of Deployment/qwen3 serves"
UNRELEASED = {"releaseRefused": {"at": "2026-01-01T00:00:00Z", "message": "denied by a policy"}}
NOT_HELD: list[tuple[str, NewPod, str]] = [
    ("Never", NewPod().spec(hold={"when": "Never"}), "spec.hold.when is Never"),
    ("nothing runs", NewPod().set(more=[]), NOTHING_SERVES),
    ("others run but do not serve", NewPod().set(more=serving(running=True)), NOTHING_SERVES),
    ("only its own revision serves", NewPod().set(more=[]).record("Tuning", serving=True), NOTHING_SERVES),
    ("its own revision runs", NewPod().record("Tuning", running=True), "pods of the same revision run"),
    ("another workload of the cache serves", NewPod().set(workload="Deployment/decode"), "of Deployment/decode serves"),
    ("an older controller does not write which workloads serve", NewPod().set(more=serving(serving=True)), NOTHING_SERVES),
    *((f"of {owner}", NewPod().set(owner=owner), "only a ReplicaSet's pods") for owner in ("StatefulSet", "DaemonSet")),
    ("it has a node", NewPod().as_arrives(placed), "spec.nodeName is set"),
    ("Always, and it has a node", NewPod().spec(hold={"when": "Always"}).as_arrives(placed), "spec.nodeName is set"),
    ("the controller is gone", NewPod().set(alive=False), "nothing could release the pod"),
    ("Always, and the controller is gone", NewPod().spec(hold={"when": "Always"}).set(alive=False), "nothing could release the pod"),
    ("pods could not be released", NewPod().set(status=UNRELEASED), "does not let the controller release pods: denied by a policy"),
    ("too many fingerprints", NewPod().stalled("TooManyFingerprints"), "TooManyFingerprints: env A keeps changing"),
    ("the quota is used up", NewPod().record("Pending", "PodRefused", "exceeded quota"), "the attempt cannot start: exceeded quota"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "world", "why"), NOT_HELD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_pod_whose_bundle_is_not_there_yet_starts_at_once_when(
    case: str, world: NewPod, why: str
) -> None:
    given = world.answer()
    assert (given.mode, given.reason, given.held) == ("Overlay", "NotSealedYet", False)
    assert (
        given.message.startswith(f"bundle {world.id()} is not sealed yet; the pod is not held: ")
        and why in given.message
    )
    assert not given.warnings


def test_another_target_of_the_same_revision_that_runs_lets_its_pods_start() -> None:
    fingerprint = identity.fingerprint(NewPod().template, "")
    running = {"id": "b-other", "fingerprint": fingerprint, "state": "Sealed", "running": True}
    assert NewPod().set(more=[OTHER, running]).answer().reason == "NotSealedYet"
