"""The pod of an attempt or a proof, a copy of the serving pod. Pure.

It has the engine, the agent's containers, what the engine needs to start, and nothing that serves.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pretune.api.names import CHECK_CONTAINER, PROVE_CONTAINER, SEAL_CONTAINER, SEED_CONTAINER
from pretune.api.spec import Spec, Target, claim_name
from pretune.api.types import Object
from pretune.config import Settings
from pretune.manifests.agent_container import (
    AGENT_VOLUME,
    CLAIM_VOLUME,
    build_agent_container,
    build_seal_resources,
    build_seed_container,
    copy_resources,
)
from pretune.manifests.copied_annotations import copied_annotations
from pretune.manifests.engine import (
    engine_sidecar,
    health_urls,
    ready_headers,
    ready_url,
    sidecar,
    without_host_ports,
)
from pretune.manifests.parts import (
    build_claim_variables,
    build_folder_mounts,
    build_folder_variables,
    build_folder_volumes,
)
from pretune.podspec.template import (
    command_words,
    engine_of,
    engine_type,
    is_sidecar,
    mounts_and_devices,
    require_nodes,
    required_terms,
    task_command,
)
from pretune.protocol import CLAIM_MOUNT, Inputs, Task

# An engine that ignores TERM holds its GPU this long (seen). The default is 30 s.
GRACE_SECONDS = 5

# Fields of the pod spec that the copy does not get. All others are kept, those of a newer API too.
# Pod (anti-)affinity and topology spread are about serving pods, whose labels the copy does not
# have: affinity could never be met, and anti-affinity would exclude each node that serves.
# On the host's network a serving pod could answer for the copy, or the copy for it
# (docs/decisions/0015).
_LEFT_OUT = (
    *("containers", "initContainers", "ephemeralContainers", "volumes", "restartPolicy"),
    *("hostNetwork", "enableServiceLinks"),
    *("nodeName", "affinity", "topologySpreadConstraints", "schedulingGates", "readinessGates"),
    *("priority", "priorityClassName", "preemptionPolicy", "overhead", "schedulingGroup"),
    *("hostname", "subdomain", "setHostnameAsFQDN", "hostnameOverride", "workloadRef"),
    *("terminationGracePeriodSeconds", "activeDeadlineSeconds", "automountServiceAccountToken"),
)

# What a pod is for.
TUNE, PROVE_COPY, PROVE_CLAIM = "tune", "prove a copy", "prove on the claim"


def build_pod_template(
    cache: str,
    folder: str,
    template: Object,
    spec: Spec,
    target: Target,
    inputs: Inputs,
    settings: Settings,
    agent_name: str,
    gpus: int,
    purpose: str = TUNE,
    nodes: Sequence[str] | None = None,
) -> Object:
    """Return {metadata: {annotations}, spec} of the pod, without labels of ours.

    cache: its name. folder: its folder on the claim. gpus: that the engine may use.
    purpose: TUNE: check, the engine with an empty folder, seal. PROVE_COPY: seed, the engine with
    the copy that seed makes, as in a consumer, prove. PROVE_CLAIM: the engine with the bundle on
    the claim, read-only, prove.
    nodes: names of those on one of which it has to run; None: any that fits.
    """
    pod = template["spec"]
    engine = engine_of(template, spec.engine_container)
    kind = engine_type(engine)
    mounts, part_volumes = build_folder_mounts(kind), build_folder_volumes(kind)
    variables = build_folder_variables(kind)
    if purpose == PROVE_CLAIM:
        mounts, part_volumes = (), ()
        variables = build_claim_variables(kind, spec.claim.sub_path, folder, inputs.bundle_id())
    kept = _kept_containers(pod, engine, spec.keep_containers)
    engine_copy = engine_sidecar(engine, spec.deadline_seconds, variables, mounts)
    volumes = _used_volumes(pod, [*kept, engine_copy])
    claim = _claim_volume(volumes, [*kept, engine_copy], claim_name(cache, spec))
    if purpose == PROVE_CLAIM:
        mount = {"name": claim, "mountPath": CLAIM_MOUNT, "readOnly": True}
        engine_copy["volumeMounts"] = [*(engine_copy.get("volumeMounts") or ()), mount]
    volumes += part_volumes
    volumes.append({"name": AGENT_VOLUME, "configMap": {"name": agent_name, "optional": True}})

    task = Task(
        cache=folder,
        subPath=spec.claim.sub_path,
        inputs=inputs,
        gpus=gpus,
        **task_command(engine),
        ready=ready_url(engine),
        headers=ready_headers(engine),
        health=health_urls(engine),
        onClaim=purpose == PROVE_CLAIM,
        engine=kind.name,
    )
    # With resources of the pod, containers need none, and must not have more than the pod.
    has_pod_resources = bool(pod.get("resources"))
    agent = _AgentContainers(engine, task, claim, mounts, has_pod_resources)
    if purpose == TUNE:
        init, last = [agent.check(), *kept, engine_copy], agent.seal()
    elif purpose == PROVE_COPY:
        init, last = [*kept, agent.seed(), engine_copy], agent.prove()
    else:
        init, last = [*kept, engine_copy], agent.prove()

    copied = {name: copy.deepcopy(value) for name, value in pod.items() if name not in _LEFT_OUT}
    copied |= merge_scheduling(pod, spec, target, nodes)
    copied |= {
        "initContainers": init,
        "containers": [last],
        "volumes": volumes,
        "restartPolicy": "Never",
        # Not on the Job, which would delete the pod before it is read.
        "activeDeadlineSeconds": spec.deadline_seconds,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        # An engine that needs a token mounts a projected volume, which is kept.
        "automountServiceAccountToken": False,
        # Addresses of the namespace's Services as variables: a copy has no need to know them.
        "enableServiceLinks": False,
    }
    if pod.get("enableServiceLinks") or _uses_service_links([*kept, engine_copy]):
        copied["enableServiceLinks"] = True
    if priority_class := spec.priority_class or settings.priority_class:
        copied["priorityClassName"] = priority_class
    annotations = (template.get("metadata") or {}).get("annotations") or {}
    names = [container["name"] for container in (*init, last)]
    return {"metadata": {"annotations": copied_annotations(annotations, names)}, "spec": copied}


@dataclass(frozen=True)
class _AgentContainers:
    """The agent's containers beside this engine."""

    engine: Object
    task: Task
    claim: str  # the volume that the claim is mounted by
    mounts: tuple[Object, ...]  # of the folders of the engine's parts
    has_pod_resources: bool

    def check(self) -> Object:
        return self._build(CHECK_CONTAINER, "check", self._engine_resources(), [])

    def seed(self) -> Object:
        """Return seed as in a consumer, but that it does not wait for the bundle's proof."""
        task = Task(
            cache=self.task.cache,
            subPath=self.task.subPath,
            inputs=self.task.inputs,
            command=self.task.command,
            argsOnly=self.task.argsOnly,
            engine=self.task.engine,
        )
        return build_seed_container(
            SEED_CONTAINER, self.engine, task, self._engine_resources(), self.claim, self.mounts
        )

    def seal(self) -> Object:
        return self._build(
            SEAL_CONTAINER, "seal", self._small_resources(), self._read_only_mounts()
        )

    def prove(self) -> Object:
        return self._build(
            PROVE_CONTAINER, "prove", self._small_resources(), self._read_only_mounts()
        )

    def _build(self, name: str, verb: str, resources: Object, mounts: list[Object]) -> Object:
        claim = {"name": self.claim}
        return build_agent_container(
            name, verb, self.engine, self.task, resources, claim, mounts=mounts
        )

    def _read_only_mounts(self) -> list[Object]:
        return [{**mount, "readOnly": True} for mount in self.mounts]

    def _engine_resources(self) -> Object:
        return {} if self.has_pod_resources else copy_resources(self.engine)

    def _small_resources(self) -> Object:
        return {} if self.has_pod_resources else build_seal_resources(self.engine)


def _kept_containers(pod: Object, engine: Object, keep: tuple[str, ...]) -> list[Object]:
    """Return what starts before the engine, in its order.

    Those are ordinary init containers, and of the others those to be kept. A kept container of
    the pod becomes a sidecar: as a main container it would keep the Job from ending.
    """
    init = [
        container
        for container in pod.get("initContainers") or ()
        if not is_sidecar(container) or container["name"] in keep
    ]
    beside = [
        container
        for container in pod["containers"]
        if container is not engine and container["name"] in keep
    ]
    return [*map(without_host_ports, init), *map(sidecar, beside)]


# What the kubelet calls the variables of a Service.
_SERVICE_VARIABLE = re.compile(r"_(SERVICE_HOST|SERVICE_PORT|PORT_\d+_(TCP|UDP|SCTP))")


def _uses_service_links(containers: Iterable[Object]) -> bool:
    """Whether a command, an argument or a variable refers to the address of a Service."""
    return any(
        _SERVICE_VARIABLE.search(text)
        for container in containers
        for text in (
            *command_words(container),
            *(variable.get("value") or "" for variable in container.get("env") or ()),
        )
    )


# --- volumes


def _used_volumes(pod: Object, containers: Iterable[Object]) -> list[Object]:
    used = {
        mount["name"] for container in containers for _, _, mount in mounts_and_devices(container)
    }
    return [copy.deepcopy(volume) for volume in pod.get("volumes") or () if volume["name"] in used]


def _claim_volume(volumes: list[Object], containers: Iterable[Object], claim: str) -> str:
    """Return the name of the volume to mount the claim by, for writing.

    A volume that the pod has of this claim already, else ours, which is added: a pod with two
    volumes of one claim stays in ContainerCreating, and no event says why (seen on 1.34;
    kubernetes#122140). Where the pod's volume is read-only, its mounts become so instead.
    """
    for volume in volumes:
        source = volume.get("persistentVolumeClaim") or {}
        if source.get("claimName") != claim:
            continue
        name: str = volume["name"]
        if source.pop("readOnly", False):
            for container in containers:
                for mount in container.get("volumeMounts") or ():
                    if mount["name"] == name:
                        mount["readOnly"] = True
        return name
    volumes.append({"name": CLAIM_VOLUME, "persistentVolumeClaim": {"claimName": claim}})
    return CLAIM_VOLUME


# --- scheduling


def merge_scheduling(
    pod: Object, spec: Spec, target: Target, nodes: Sequence[str] | None = None
) -> Object:
    """Return nodeSelector, node affinity and tolerations for the copy of a pod.

    They are the pod's own, with the target's terms and the cache's tolerations. nodes: names of
    those on one of which it has to run; None: any that fits.
    """
    node_affinity = copy.deepcopy((pod.get("affinity") or {}).get("nodeAffinity") or {})
    if terms := require_nodes(required_terms(pod), nodes):
        node_affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {
            "nodeSelectorTerms": copy.deepcopy(terms)
        }
    scheduling = {
        "nodeSelector": {**(pod.get("nodeSelector") or {}), **target.node_selector},
        "tolerations": merge_tolerations(
            pod.get("tolerations") or (), target.tolerations, spec.tolerations
        ),
        "affinity": {"nodeAffinity": node_affinity} if node_affinity else {},
    }
    return {name: value for name, value in scheduling.items() if value}


def merge_tolerations(*lists: Iterable[Object]) -> list[Object]:
    """Return the tolerations of all lists, each once."""
    merged: list[Object] = []
    for toleration in itertools.chain(*lists):
        if toleration not in merged:
            merged.append(copy.deepcopy(toleration))
    return merged
