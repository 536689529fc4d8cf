"""The agent in a pod of ours, on a claim in memory: what check, seal, inspect and prune answer, and do."""

from __future__ import annotations

import hashlib

from pretune.api import CHECK_CONTAINER, INSPECT, ROLE, SEAL_CONTAINER, Object
from pretune.manifests.agent_container import CLAIM_VOLUME
from pretune.model import stamp
from pretune.wire import ANSWERS, Report

from tests.sim.ground import TUNES_FOR, Ground
from tests.sim.reading import folder, label, task
from tests.sim.storage import Bundle


def check(ground: Ground, pod: Object) -> Report:
    if ground.check_says:
        reason, message = ground.check_says.pop(0)
        return Report(by="check", reason=reason, message=message)
    agent = next(one["configMap"]["name"] for one in pod["spec"]["volumes"] if "configMap" in one)
    if ground.server.stored("v1", "ConfigMap", pod["metadata"]["namespace"], agent) is None:
        return Report(by="check", reason="AgentMissing", message="the agent's ConfigMap was missing")
    asked = task(pod, CHECK_CONTAINER)
    assert asked.inputs is not None
    found = ground.volume(pod, CLAIM_VOLUME).bundles.get((folder(asked), asked.inputs.bundle_id()))
    if found is None:
        return Report(by="check", reason="Checked")
    if found.inputs != asked.inputs:
        return Report(by="check", reason="IdCollision", message=f"bundle {found.id} was made of other inputs")
    return found.report("check")


def publish(ground: Ground, pod: Object) -> Bundle:
    """Seal's rename. The first one wins, and a second reports the winner."""
    asked, uid = task(pod, SEAL_CONTAINER), pod["metadata"]["uid"]
    assert asked.inputs is not None
    volume, place = ground.volume(pod, CLAIM_VOLUME), (folder(asked), asked.inputs.bundle_id())
    if place not in volume.bundles:
        entries = 0 if ground.layout == "Empty" else 20
        bundle = Bundle(
            id=place[1],
            inputs=asked.inputs,
            digest="sha256:" + hashlib.sha256(f"{uid} {place}".encode()).hexdigest(),
            layout=ground.layout,
            entries=entries,
            message=f"{entries} entries in 1 rank file",
            at=stamp(ground.clock.now),
            seconds=int(TUNES_FOR),
        )
        volume.bundles[place] = bundle
        ground.published.append(bundle)
    return volume.bundles[place]


def look_after(ground: Ground, pod: Object, container: str) -> Report:
    """inspect and prune."""
    asked, volume = task(pod, container), ground.volume(pod, CLAIM_VOLUME)
    if label(pod, ROLE) == INSPECT:
        mine = {place[1]: one for place, one in volume.bundles.items() if place[0] == folder(asked)}
        order = [one for one in asked.ids if one in mine] + sorted(set(mine) - set(asked.ids))
        return Report(
            by="inspect",
            reason="Inspected",
            bundles=[mine[one].report("inspect") for one in order[:ANSWERS]],
            more=max(0, len(order) - ANSWERS),
        )
    for one in asked.ids:
        if volume.bundles.pop((folder(asked), one), None) is not None:
            ground.pruned.append(one)
    return Report(by="prune", reason="Pruned")
