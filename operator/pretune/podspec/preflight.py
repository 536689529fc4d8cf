"""What cannot be tuned as a copy of its serving pod: said before any Job, with the name of the field. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pretune.api import reasons
from pretune.api.reasons import Reason, Refused
from pretune.api.spec import Spec, Target
from pretune.api.types import Object
from pretune.engines.vllm import cli
from pretune.podspec.template import (
    command_words,
    engine_of,
    gpu_resources,
    is_sidecar,
    required_terms,
)

# Labels of controllers whose pods are parts of one engine: LeaderWorkerSet, KubeRay, JobSet, Grove.
_GROUPS = ("leaderworkerset.sigs.k8s.io/", "ray.io/", "jobset.sigs.k8s.io/", "grove.io/")

# What LeaderWorkerSet sets in each of its pods: who reads it dials the leader in production.
_LEADER = "LWS_LEADER_ADDRESS"

# Node labels that tell a part of a GPU: GPU Feature Discovery's product and sharing strategy, GKE's own.
_PARTS = (
    (re.compile(r"nvidia\.com/gpu\.product"), re.compile(r"(.*-)?MIG-.*|.*-SHARED")),
    (re.compile(r"nvidia\.com/gpu\.sharing-strategy"), re.compile(r"(?!none$).+")),
    (
        re.compile(r"cloud\.google\.com/gke-gpu-(sharing-strategy|partition-size)"),
        re.compile(r".+"),
    ),
)


@dataclass(frozen=True)
class Copy:
    """What is asked about: the engine of a template, to be tuned for one target."""

    template: Object
    engine: Object
    spec: Spec
    target: Target
    claims: Mapping[str, Sequence[str]] = field(
        default_factory=dict
    )  # claim name to access modes, as far as they were read

    @property
    def pod(self) -> Object:
        return self.template["spec"]  # type: ignore[no-any-return]

    @property
    def path(self) -> str:
        """Of the pod spec, as the person knows it."""
        if self.spec.workload_ref:
            return f"{self.spec.workload_ref['kind']} {self.spec.workload_ref['name']}: spec.template.spec"
        return "spec.source.template.spec"

    def kept(self) -> Iterator[tuple[str, Object]]:
        """The containers that will be in the tuning pod, each with its field."""
        for place in ("initContainers", "containers"):
            for index, one in enumerate(self.pod.get(place) or ()):
                ordinary = place == "initContainers" and not is_sidecar(one)
                if ordinary or one is self.engine or one["name"] in self.spec.keep_containers:
                    yield f"{self.path}.{place}[{index}]", one

    @property
    def at_engine(self) -> str:
        return next(path for path, one in self.kept() if one is self.engine)


def find_refusal(
    template: Object, spec: Spec, target: Target, claims: Mapping[str, Sequence[str]] | None = None
) -> Refused | None:
    """Why this template cannot be tuned as a copy, or None. `claims`: access modes of the PersistentVolumeClaims that it mounts.

    Raises Refused as engine_of does.
    """
    copy = Copy(template, engine_of(template, spec.engine_container), spec, target, claims or {})
    for reason, check in CHECKS:
        if reason not in spec.allow and (message := check(copy)):
            return Refused(reason, message)
    return None


def kept_container_absent(copy: Copy) -> str | None:
    names = [
        one["name"]
        for place in ("initContainers", "containers")
        for one in copy.pod.get(place) or ()
    ]
    for index, name in enumerate(copy.spec.keep_containers):
        if name not in names:
            return f"spec.tuning.keepContainers[{index}]: no container {name}; the pod has {', '.join(names)}"
    return None


def mount_without_volume(copy: Copy) -> str | None:
    """A StatefulSet's volumeClaimTemplates are not in its pod template: each replica has a claim of its own."""
    volumes = {one["name"] for one in copy.pod.get("volumes") or ()}
    for path, one in copy.kept():
        for use in ("volumeMounts", "volumeDevices"):
            for index, mount in enumerate(one.get(use) or ()):
                if mount["name"] not in volumes:
                    return (
                        f"{path}.{use}[{index}]: the template has no volume {mount['name']} (volumeClaimTemplates make one for"
                        " each replica); give spec.source.template with a volume that the tuning pod may use"
                    )
    return None


def label_of_several_pods(copy: Copy) -> str | None:
    labels = (copy.template.get("metadata") or {}).get("labels") or {}
    for name in sorted(labels):
        if name.startswith(_GROUPS):
            return f"{copy.path.removesuffix('.spec')}.metadata.labels: {name}: the engine is one of several pods"
    return None


def flag_of_several_pods(copy: Copy) -> str | None:
    flag = cli.several_pods(command_words(copy.engine))
    return (
        f"{copy.at_engine}.{_field_of(copy.engine, flag)}: {flag}: the engine is one of several pods"
        if flag
        else None
    )


def leader_address(copy: Copy) -> str | None:
    for name in ("command", "args"):
        if any(_LEADER in word for word in copy.engine.get(name) or ()):
            return f"{copy.at_engine}.{name}: {_LEADER}: a copy would dial the leader that serves"
    for index, one in enumerate(copy.engine.get("env") or ()):
        if one["name"] == _LEADER or _LEADER in (one.get("value") or ""):
            return f"{copy.at_engine}.env[{index}]: {_LEADER}: a copy would dial the leader that serves"
    return None


def registers_itself(copy: Copy) -> str | None:
    env = {one["name"]: one.get("value") or "" for one in copy.engine.get("env") or ()}
    found = cli.registers_itself(command_words(copy.engine), env)
    if not found:
        return None
    place = "env" if found in env else _field_of(copy.engine, found)
    return f"{copy.at_engine}.{place}: {found}: the engine registers itself, so that a copy could be sent traffic"


def claim_of_others(copy: Copy) -> str | None:
    for index, one in enumerate(copy.pod.get("resourceClaims") or ()):
        if one.get("resourceClaimName"):
            return (
                f"{copy.path}.resourceClaims[{index}].resourceClaimName: {one['resourceClaimName']}: the serving pods hold its"
                " devices; use resourceClaimTemplateName"
            )
    return None


def part_of_a_gpu(copy: Copy) -> str | None:
    for name in gpu_resources(copy.engine):
        if name != "nvidia.com/gpu":
            return f"{copy.at_engine}.resources: {name}: a part of a GPU"
    index = copy.spec.targets.index(copy.target) if copy.target in copy.spec.targets else 0
    own = {
        name: one
        for name, one in (copy.pod.get("nodeSelector") or {}).items()
        if name not in copy.target.node_selector
    }
    asked = [
        (f"spec.targets[{index}].nodeSelector", dict(copy.target.node_selector)),
        (f"{copy.path}.nodeSelector", own),
        *(
            (f"{copy.path}.affinity.nodeAffinity", {one.get("key"): value})
            for term in required_terms(copy.pod)
            for one in term.get("matchExpressions") or ()
            for value in (one.get("values") or () if one.get("operator") == "In" else ())
        ),
    ]
    for path, labels in asked:
        for name, value in sorted(labels.items()):
            if any(label.fullmatch(name) and part.fullmatch(value) for label, part in _PARTS):
                return f"{path}: {name}: {value}: a part of a GPU"
    return None


def claim_for_one_pod(copy: Copy) -> str | None:
    used = {
        mount["name"]
        for _, one in copy.kept()
        for use in ("volumeMounts", "volumeDevices")
        for mount in one.get(use) or ()
    }
    for index, volume in enumerate(copy.pod.get("volumes") or ()):
        name = (volume.get("persistentVolumeClaim") or {}).get("claimName") or ""
        if volume["name"] in used and "ReadWriteOncePod" in copy.claims.get(name, ()):
            return f"{copy.path}.volumes[{index}].persistentVolumeClaim: {name} is ReadWriteOncePod: a serving pod holds it"
    return None


Check = Callable[[Copy], str | None]

# In order; the first that has something to say counts. A risk named in spec.tuning.allow is not asked about.
CHECKS: tuple[tuple[Reason, Check], ...] = (
    (reasons.SOURCE_INVALID, kept_container_absent),
    (reasons.SOURCE_INVALID, mount_without_volume),
    (reasons.MULTI_POD_ENGINE, label_of_several_pods),
    (reasons.MULTI_POD_ENGINE, flag_of_several_pods),
    (reasons.MULTI_POD_ENGINE, leader_address),
    (reasons.SELF_REGISTERING, registers_itself),
    (reasons.SHARED_RESOURCE_CLAIM, claim_of_others),
    (reasons.SHARED_GPU, part_of_a_gpu),
    (reasons.SINGLE_USE_CLAIM, claim_for_one_pod),
)


def _field_of(engine: Object, shown: str) -> str:
    """Whether a flag that engines/vllm/cli.py shows (with "-" for "_", and its value) stands in the command or in the args."""
    flag = shown.split(" ")[0].split("=")[0]
    in_args = any(flag in word.replace("_", "-") for word in engine.get("args") or ())
    return "args" if in_args else "command"
