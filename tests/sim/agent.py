"""The agent on a claim in memory: what check, seal, prove, inspect, prune and seed answer, and do."""

from __future__ import annotations

import hashlib

from pretune.api.names import (
    CHECK_CONTAINER,
    INSPECT,
    PROVE_CONTAINER,
    ROLE,
    SEAL_CONTAINER,
    SEED_CONTAINER,
)
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.engines import registry
from pretune.manifests.agent_archive import is_agent
from pretune.manifests.agent_container import AGENT_VOLUME
from pretune.protocol import ANSWERS, Report

from tests.sim.ground import TUNES_FOR, Ground
from tests.sim.reading import engine as engine_name
from tests.sim.reading import every_container, folder, label, status, task
from tests.sim.storage import VERSIONS, Bundle

AGENTS = (CHECK_CONTAINER, SEAL_CONTAINER, PROVE_CONTAINER, SEED_CONTAINER)  # in the engine's image


def need_shell(ground: Ground, pod: Object, name: str) -> None:
    """A container of ours that has just started in this copy of a pod ends, where its image has no shell."""
    image = next(one.get("image", "") for one in every_container(pod) if one["name"] == name)
    if name not in AGENTS or image not in ground.without_shell:
        return
    message = (
        'failed to create containerd task: exec: "/bin/sh": stat /bin/sh: no such file or directory'
    )
    end = {
        "exitCode": 128,
        "reason": "StartError",
        "message": message,
        "finishedAt": format_timestamp(ground.clock.now),
    }
    status(pod, name)["state"] = {"terminated": end}


def check(ground: Ground, pod: Object) -> Report:
    if ground.check_says:
        reason, message = ground.check_says.pop(0)
        return Report(by="check", reason=reason, message=message)
    if problem := _agent_problem(ground, pod):
        return Report("check", *problem)
    asked = task(pod, CHECK_CONTAINER)
    assert asked.inputs is not None
    volume, place = ground.volume(pod, CHECK_CONTAINER), (folder(asked), asked.inputs.bundle_id())
    found = volume.bundles.get(place)
    if found is None:
        return Report(by="check", reason="Checked")
    if found.inputs != asked.inputs:
        return Report(
            by="check", reason="IdCollision", message=f"bundle {found.id} was made of other inputs"
        )
    return found.report("check", proven=volume.proven(place))


def publish(ground: Ground, pod: Object) -> Bundle:
    """Seal's rename. The first one wins, and a second reports the winner."""
    asked, uid = task(pod, SEAL_CONTAINER), pod["metadata"]["uid"]
    assert asked.inputs is not None
    _check_folders(pod, SEAL_CONTAINER, asked.engine)
    volume, place = ground.volume(pod, SEAL_CONTAINER), (folder(asked), asked.inputs.bundle_id())
    if place not in volume.bundles:
        entries = 0 if ground.layout == "Empty" else 20
        bundle = Bundle(
            id=place[1],
            inputs=asked.inputs,
            digest="sha256:" + hashlib.sha256(f"{uid} {place}".encode()).hexdigest(),
            layout=ground.layout,
            entries=entries,
            message=f"{entries} entries in 1 rank file",
            at=format_timestamp(ground.clock.now),
            seconds=int(TUNES_FOR),
            versions=ground.versions.get(
                next(one["image"] for one in pod["spec"]["containers"]), VERSIONS
            ),
        )
        volume.bundles[place] = bundle
        ground.published.append(bundle)
    return volume.bundles[place]


def prove(ground: Ground, pod: Object) -> Report:
    """Says on the claim that the bundle is proven, or says why not."""
    asked = task(pod, PROVE_CONTAINER)
    assert asked.inputs is not None
    if not asked.onClaim:
        _check_folders(pod, PROVE_CONTAINER, asked.engine)
    volume, place = ground.volume(pod, PROVE_CONTAINER), (folder(asked), asked.inputs.bundle_id())
    found = volume.bundles.get(place)
    if found is None:
        return Report("prove", "ProofFailed", f"the claim has no bundle {place[1]}")
    if ground.tunes_again:
        words = "2 new entries (fused_moe 2); 1 file changed: x/autotune_configs_dp0_rank0.json"
        return Report("prove", "NotReproducible", words, found.id, newEntries=2)
    volume.proofs[place] = found.digest
    return found.report("prove", "Proven", proven=True)


def look_after(ground: Ground, pod: Object, container: str) -> Report:
    """inspect and prune."""
    asked, volume = task(pod, container), ground.volume(pod, container)
    if label(pod, ROLE) == INSPECT:
        mine = {place[1]: one for place, one in volume.bundles.items() if place[0] == folder(asked)}
        order = [one for one in asked.ids if one in mine] + sorted(set(mine) - set(asked.ids))
        return Report(
            by="inspect",
            reason="Inspected",
            bundles=[
                mine[one].report("inspect", proven=volume.proven((folder(asked), one)))
                for one in order[:ANSWERS]
            ],
            more=max(0, len(order) - ANSWERS),
        )
    for one in asked.ids:
        volume.proofs.pop((folder(asked), one), None)
        if volume.bundles.pop((folder(asked), one), None) is not None:
            ground.pruned.append(one)
    return Report(by="prune", reason="Pruned")


def seed(ground: Ground, pod: Object) -> Report:
    """As the shell and the agent in the image have it (manifests/agent_container.py, agent/seed.py): whatever is wrong, it ends well."""
    image = next(one["image"] for one in every_container(pod) if one["name"] == SEED_CONTAINER)
    asked = task(pod, SEED_CONTAINER)
    assert asked.inputs is not None
    _check_folders(pod, SEED_CONTAINER, asked.engine)
    volume, place = ground.volume(pod, SEED_CONTAINER), (folder(asked), asked.inputs.bundle_id())
    found = volume.bundles.get(place)
    here = ground.versions.get(image, VERSIONS)
    if image in ground.without_python:
        return Report("seed", "NoPython", "the image has no python3 on its PATH")
    if problem := _agent_problem(ground, pod):
        return Report("seed", *problem)
    if ground.seed_says:
        return Report("seed", ground.seed_says, "as the test has it")
    if found is None:
        return Report("seed", "NoBundle", f"the claim has no bundle {place[1]}")
    if asked.proven and not volume.proven(place):
        return Report(
            "seed",
            "NotProven",
            f"bundle {place[1]} has no proof yet, and spec.verify asks for one",
        )
    if found.inputs != asked.inputs:
        return Report("seed", "InputsDiffer", f"bundle {place[1]} was made of other inputs")
    if (here.vllm, here.flashinfer) != (found.versions.vllm, found.versions.flashinfer):
        return Report(
            "seed",
            "VersionsDiffer",
            f"vLLM {here.vllm} in the image, {found.versions.vllm} in the bundle",
        )
    if place in volume.torn:
        return Report("seed", "CorruptBundle", "tactics/x is not what was sealed")
    return found.report("seed", "Seeded")


def _check_folders(pod: Object, name: str, engine: str) -> None:
    """The agent has the folder of each of the engine's parts, and so has the engine."""
    for container in every_container(pod):
        if container["name"] in (name, engine_name(pod)):
            paths = {mount["mountPath"] for mount in container.get("volumeMounts") or ()}
            missing = {part.mount for part in registry.find_engine(engine).parts} - paths
            assert not missing, f"{container['name']} has no {missing}"


def _agent_problem(ground: Ground, pod: Object) -> tuple[str, str] | None:
    """Return reason and message where the agent does not run: its ConfigMap, an optional volume, is
    missing, or is not what the container compares it with."""
    volume = next(one for one in pod["spec"]["volumes"] if one["name"] == AGENT_VOLUME)
    config_map = ground.server.stored(
        "v1", "ConfigMap", pod["metadata"]["namespace"], volume["configMap"]["name"]
    )
    if config_map is None:
        return "AgentMissing", "the agent's ConfigMap was missing when the pod started"
    if not is_agent(config_map):
        return "AgentChanged", "the agent's ConfigMap was changed"
    return None
