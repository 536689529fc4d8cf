"""The pod of an attempt or a proof, made from the serving pod's template: the engine beside ours, and nothing that
serves."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from pretune.api.names import CHECK_CONTAINER, PROVE_CONTAINER, SEAL_CONTAINER, SEED_CONTAINER
from pretune.api.spec import Spec, Target, claim_name
from pretune.api.types import Object
from pretune.config import Settings
from pretune.manifests.agent_container import (
    AGENT_VOLUME,
    CLAIM_VOLUME,
    SEAL_RESOURCES,
    build_agent_container,
    build_seed_container,
    copy_resources,
)
from pretune.manifests.engine import (
    TACTICS_VOLUME,
    engine_sidecar,
    ready_headers,
    ready_url,
    sidecar,
    tactics_on_claim,
)
from pretune.podspec.template import (
    command_words,
    count_gpus,
    engine_of,
    is_sidecar,
    required_terms,
)
from pretune.protocol import CLAIM_MOUNT, TACTICS_MOUNT, Inputs, Task

# Seen: with the default of 30 s an engine that ignores TERM holds its GPU for 30 s more.
GRACE = 5  # seconds

# Of the pod spec. All else is kept, fields of a newer API too. Pod (anti-)affinity and topology spread speak of serving pods:
# the copy has none of their labels, so that affinity could never be met, and anti-affinity would keep it off every node that serves.
# fmt: off
_LEFT_OUT = (
    "containers", "initContainers", "ephemeralContainers", "volumes", "nodeName", "affinity", "topologySpreadConstraints",
    "schedulingGates", "readinessGates", "priority", "priorityClassName", "preemptionPolicy", "overhead", "hostname", "subdomain",
    "setHostnameAsFQDN", "hostnameOverride", "workloadRef", "schedulingGroup", "restartPolicy", "terminationGracePeriodSeconds",
    "activeDeadlineSeconds", "automountServiceAccountToken",
)
# fmt: on

# A mesh's proxy would keep the pod alive after seal, and route to it. Each mesh reads its own; Istio and Kuma read both.
MESH_LABELS = {"sidecar.istio.io/inject": "false", "kuma.io/sidecar-injection": "disabled"}
MESH_ANNOTATIONS = {
    **MESH_LABELS,
    "linkerd.io/inject": "disabled",
    "consul.hashicorp.com/connect-inject": "false",
}
_APPARMOR = "container.apparmor.security.beta.kubernetes.io/"  # + container: the API refuses one that names an absent container


TUNE, PROVE_COPY, PROVE_CLAIM = "tune", "prove a copy", "prove on the claim"  # what a pod is for


def build_pod_template(
    cache: str,
    folder: str,
    template: Object,
    spec: Spec,
    target: Target,
    inputs: Inputs,
    settings: Settings,
    agent_name: str,
    purpose: str = TUNE,
) -> Object:
    """{metadata: {annotations}, spec} of the pod, without labels of ours. cache: its name; folder: its folder on the claim.

    TUNE: check, the engine with an empty folder, seal. PROVE_COPY: seed, the engine with the copy that this makes, prove; as consumers
    get it. PROVE_CLAIM: the engine with the bundle itself, read-only, prove.
    """
    pod = template["spec"]
    engine = engine_of(template, spec.engine_container)
    task = Task(
        cache=folder,
        subPath=spec.claim.sub_path,
        inputs=inputs,
        gpus=count_gpus(engine),
        command=command_words(engine),
        ready=ready_url(engine),
        headers=ready_headers(engine),
        onClaim=purpose == PROVE_CLAIM,
    )
    override = TACTICS_MOUNT
    if purpose == PROVE_CLAIM:
        override = tactics_on_claim(spec.claim.sub_path, folder, inputs.bundle_id())
    kept, started = (
        _kept(pod, engine, spec.keep_containers),
        engine_sidecar(engine, spec.deadline_seconds, override),
    )
    pod_resources = bool(
        pod.get("resources")
    )  # then a container need not have its own, and ours must not exceed the pod's
    volumes = _used_volumes(pod, [*kept, started])
    claim = _claim_volume(volumes, [*kept, started], claim_name(cache, spec))
    copied = {} if pod_resources else copy_resources(engine)
    small = (
        {} if pod_resources else {"limits": dict(SEAL_RESOURCES), "requests": dict(SEAL_RESOURCES)}
    )
    tactics: Object = {"name": TACTICS_VOLUME, "mountPath": TACTICS_MOUNT}
    looking = [] if purpose == PROVE_CLAIM else [{**tactics, "readOnly": True}]
    if purpose == TUNE:
        check = build_agent_container(
            CHECK_CONTAINER, "check", engine, task, copied, {"name": claim}, mounts=[]
        )
        seal = build_agent_container(
            SEAL_CONTAINER, "seal", engine, task, small, {"name": claim}, mounts=looking
        )
        init, last = [check, *kept, started], seal
    else:
        last = build_agent_container(
            PROVE_CONTAINER, "prove", engine, task, small, {"name": claim}, mounts=looking
        )
        init = [*kept, started]
        if purpose == PROVE_CLAIM:
            mount = {"name": claim, "mountPath": CLAIM_MOUNT, "readOnly": True}
            started["volumeMounts"] = [*(started.get("volumeMounts") or ()), mount]
        else:  # as a consumer's, but that its proof is not there yet
            asked = Task(
                cache=folder,
                subPath=spec.claim.sub_path,
                inputs=inputs,
                command=command_words(engine),
            )
            init.insert(
                -1, build_seed_container(SEED_CONTAINER, engine, asked, copied, claim, [tactics])
            )
    made = {name: copy.deepcopy(value) for name, value in pod.items() if name not in _LEFT_OUT}
    made |= merge_scheduling(pod, spec, target)
    made |= {
        "initContainers": init,
        "containers": [last],
        "volumes": [
            *volumes,
            *([] if purpose == PROVE_CLAIM else [{"name": TACTICS_VOLUME, "emptyDir": {}}]),
            {"name": AGENT_VOLUME, "configMap": {"name": agent_name, "optional": True}},
        ],
        "restartPolicy": "Never",
        "activeDeadlineSeconds": spec.deadline_seconds,  # here and not on the Job: the pod stays to be read
        "terminationGracePeriodSeconds": GRACE,
        "automountServiceAccountToken": False,  # an engine that needs a token mounts a projected volume, which is kept
    }
    if priority := spec.priority_class or settings.priority_class:
        made["priorityClassName"] = priority
    return {"metadata": {"annotations": _annotations(template, [*init, last])}, "spec": made}


def _kept(pod: Object, engine: Object, keep: tuple[str, ...]) -> list[Object]:
    """What starts before the engine, in its order: ordinary init containers, and of the others those that are to be kept.

    A kept container of the pod becomes a sidecar too: as a main one it would keep the Job from ever ending.
    """
    init = [
        one for one in pod.get("initContainers") or () if not is_sidecar(one) or one["name"] in keep
    ]
    beside = [one for one in pod["containers"] if one is not engine and one["name"] in keep]
    return [*copy.deepcopy(init), *(sidecar(one) for one in beside)]


def _used_volumes(pod: Object, containers: Iterable[Object]) -> list[Object]:
    used = {
        mount["name"]
        for one in containers
        for use in ("volumeMounts", "volumeDevices")
        for mount in one.get(use) or ()
    }
    return [copy.deepcopy(one) for one in pod.get("volumes") or () if one["name"] in used]


def _claim_volume(volumes: list[Object], others: Iterable[Object], claim: str) -> str:
    """The volume to mount the claim by, for writing: one that the pod has of it already, else ours, which is added.

    A pod with two volumes of one claim stays in ContainerCreating, and no event says why (seen on 1.34; kubernetes#122140). Where
    the pod's own is read-only, its mounts become so instead.
    """
    for volume in volumes:
        source = volume.get("persistentVolumeClaim") or {}
        if source.get("claimName") != claim:
            continue
        if source.pop("readOnly", False):
            for mount in (mount for one in others for mount in one.get("volumeMounts") or ()):
                if mount["name"] == volume["name"]:
                    mount["readOnly"] = True
        return volume["name"]  # type: ignore[no-any-return]
    volumes.append({"name": CLAIM_VOLUME, "persistentVolumeClaim": {"claimName": claim}})
    return CLAIM_VOLUME


def merge_scheduling(pod: Object, spec: Spec, target: Target) -> Object:
    """nodeSelector, node affinity and tolerations: the pod's own, with the target's terms and the cache's tolerations."""
    node = copy.deepcopy((pod.get("affinity") or {}).get("nodeAffinity") or {})
    if terms := required_terms(pod):
        node["requiredDuringSchedulingIgnoredDuringExecution"] = {
            "nodeSelectorTerms": copy.deepcopy(terms)
        }
    made = {
        "nodeSelector": {**(pod.get("nodeSelector") or {}), **target.node_selector},
        "tolerations": merge_tolerations(
            pod.get("tolerations") or (), target.tolerations, spec.tolerations
        ),
        "affinity": {"nodeAffinity": node} if node else {},
    }
    return {name: one for name, one in made.items() if one}


def merge_tolerations(*tolerations: Iterable[Object]) -> list[Object]:
    """All of them, each once."""
    made: list[Object] = []
    for one in (one for some in tolerations for one in some):
        if one not in made:
            made.append(copy.deepcopy(one))
    return made


def _annotations(template: Object, containers: Iterable[Object]) -> dict[str, str]:
    """The template's annotations (networks, secret injectors, …), those of the meshes answered with no."""
    names = {one["name"] for one in containers}
    own = (template.get("metadata") or {}).get("annotations") or {}
    kept = {
        name: one
        for name, one in own.items()
        if not name.startswith(_APPARMOR) or name[len(_APPARMOR) :] in names
    }
    return {**kept, **MESH_ANNOTATIONS}
