"""What cannot be tuned as a copy of its serving pod: found before any Job, with the field. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pretune.api import reasons
from pretune.api.reasons import Reason, Refused
from pretune.api.spec import Spec, Target
from pretune.api.types import Object
from pretune.engines.command import MAX_SCRIPT_CHARACTERS, find_long_script
from pretune.podspec import canonical
from pretune.podspec.devices import asks_for_gpu, count_devices
from pretune.podspec.template import (
    command_words,
    device_claims,
    engine_of,
    engine_type,
    gpu_resources,
    is_sidecar,
    mounts_and_devices,
    required_terms,
)

# Labels of controllers whose pods are parts of one engine: LeaderWorkerSet, KubeRay, JobSet, Grove.
_GROUP_LABELS = ("leaderworkerset.sigs.k8s.io/", "ray.io/", "jobset.sigs.k8s.io/", "grove.io/")

# What LeaderWorkerSet sets in each of its pods: an engine that reads it connects to the leader.
_LEADER = "LWS_LEADER_ADDRESS"

# Annotations by which a controller makes a pod part of something that serves.
_PAIRING_ANNOTATIONS = ("dual-pods.llm-d.ai/",)  # FMA: a requester and a launcher

# Interfaces of every pod. The variables of NCCL, Gloo and others that name one have this suffix.
_POD_INTERFACES = ("eth0", "lo")
_INTERFACE_SUFFIX = "_SOCKET_IFNAME"
_HOST_IP_VARIABLE, _HOST_IP_FIELDS = "VLLM_HOST_IP", ("status.hostIP", "status.hostIPs")
_LOOPBACK = re.compile(r"127\..*|localhost|\[?::1\]?")
_SHELL_REFERENCE = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)")

# Values of NVIDIA_VISIBLE_DEVICES with which the container has the GPUs that it was given, or none.
# Any other value comes before what the device plugin sets.
_DEVICES, _OWN_DEVICES = "NVIDIA_VISIBLE_DEVICES", ("", "void", "none")

# Node labels and values that stand for a part of a GPU: GPU Feature Discovery's product and sharing
# strategy, and GKE's own labels.
_GPU_PART_LABELS = (
    (re.compile(r"nvidia\.com/gpu\.product"), re.compile(r"(.*-)?MIG-.*|.*-SHARED")),
    (re.compile(r"nvidia\.com/gpu\.sharing-strategy"), re.compile(r"(?!none$).+")),
    (
        re.compile(r"cloud\.google\.com/gke-gpu-(sharing-strategy|partition-size)"),
        re.compile(r".+"),
    ),
)


@dataclass(frozen=True)
class Candidate:
    """The engine of a template, to be tuned as a copy for one target."""

    template: Object
    engine: Object
    spec: Spec
    target: Target
    # Name of a claim to its access modes, of those claims that were read.
    claims: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # ResourceClaimTemplates by name, of those that were read.
    device_claims: Mapping[str, Object] = field(default_factory=dict)

    @property
    def pod(self) -> Object:
        return self.template["spec"]  # type: ignore[no-any-return]

    @property
    def path(self) -> str:
        """The path of the pod spec, from the object that the user has written."""
        if ref := self.spec.workload_ref:
            return f"{ref['kind']} {ref['name']}: spec.template.spec"
        return "spec.source.template.spec"

    @property
    def engine_path(self) -> str:
        return next(path for path, container in self.kept() if container is self.engine)

    def kept(self) -> Iterator[tuple[str, Object]]:
        """Yield the containers that will be in the tuning pod, each after its path."""
        for place in ("initContainers", "containers"):
            for index, container in enumerate(self.pod.get(place) or ()):
                runs_before = place == "initContainers" and not is_sidecar(container)
                is_kept = container["name"] in self.spec.keep_containers
                if runs_before or is_kept or container is self.engine:
                    yield f"{self.path}.{place}[{index}]", container


def find_refusal(
    template: Object,
    spec: Spec,
    target: Target,
    claims: Mapping[str, Sequence[str]] | None = None,
    device_claims: Mapping[str, Object] | None = None,
) -> Refused | None:
    """Return why this template cannot be tuned as a copy, or None.

    claims: access modes of the PersistentVolumeClaims that it mounts, by name. device_claims:
    ResourceClaimTemplates by name. Raises Refused as engine_of does.
    """
    return find_refusals(template, spec, (target,), claims, device_claims)[0]


def find_refusals(
    template: Object,
    spec: Spec,
    targets: Sequence[Target],
    claims: Mapping[str, Sequence[str]] | None = None,
    device_claims: Mapping[str, Object] | None = None,
) -> list[Refused | None]:
    """Return the same for each of the targets: checks that depend on none are made once."""
    engine = engine_of(template, spec.engine_container)
    candidates = [
        Candidate(template, engine, spec, target, claims or {}, device_claims or {})
        for target in targets
    ]
    found: list[Refused | None] = [None] * len(targets)
    for reason, check in PREFLIGHT_CHECKS:
        if reason in spec.allow or all(found):
            continue
        if check in TARGET_CHECKS:
            messages = [check(candidate) for candidate in candidates]
        else:
            messages = [check(candidates[0])] * len(targets)
        found = [
            refused or (Refused(reason, message) if message else None)
            for refused, message in zip(found, messages, strict=True)
        ]
    return found


# --- the checks: each returns the field and what is wrong with it, or None


def kept_container_missing(candidate: Candidate) -> str | None:
    pod = candidate.pod
    names = [
        container["name"]
        for place in ("initContainers", "containers")
        for container in pod.get(place) or ()
    ]
    for index, name in enumerate(candidate.spec.keep_containers):
        if name not in names:
            path = f"spec.tuning.keepContainers[{index}]"
            return f"{path}: no container {name}; the pod has {', '.join(names)}"
    return None


def gpu_missing(candidate: Candidate) -> str | None:
    """A copy would run on whatever GPU of its node the engine finds: one that serves."""
    engine = candidate.engine
    if gpu_resources(engine) or asks_for_gpu(engine):
        return None
    if device_claims(engine):
        if count_devices(candidate.template, engine, candidate.device_claims) != 0:
            return None
        return (
            f"{candidate.engine_path}.resources.claims: none of the devices that"
            f" {engine['name']} claims is a GPU"
        )
    return (
        f"{candidate.engine_path}.resources: {engine['name']} asks for no GPU, so that a copy could"
        " run on one that serves; add nvidia.com/gpu or a device claim"
    )


def volume_missing(candidate: Candidate) -> str | None:
    """A StatefulSet's volumeClaimTemplates are not in its pod template.

    Each replica has a claim of its own.
    """
    volumes = {volume["name"] for volume in candidate.pod.get("volumes") or ()}
    for path, container in candidate.kept():
        for use, index, mount in mounts_and_devices(container):
            if mount["name"] not in volumes:
                return (
                    f"{path}.{use}[{index}]: the template has no volume {mount['name']}"
                    " (volumeClaimTemplates make one for each replica); set spec.source.template"
                    " with a volume that the tuning pod may use"
                )
    return None


def multi_pod_label(candidate: Candidate) -> str | None:
    labels = (candidate.template.get("metadata") or {}).get("labels") or {}
    for name in sorted(labels):
        if name.startswith(_GROUP_LABELS):
            path = f"{candidate.path.removesuffix('.spec')}.metadata.labels"
            return f"{path}: {name}: the engine is one of several pods"
    return None


def multi_pod_flag(candidate: Candidate) -> str | None:
    flag = engine_type(candidate.engine).find_multi_pod_flag(command_words(candidate.engine))
    if not flag:
        return None
    path = f"{candidate.engine_path}.{_field_of_flag(candidate.engine, flag)}"
    return f"{path}: {flag}: the engine is one of several pods"


def variable_too_long(candidate: Candidate) -> str | None:
    """A value that refers to others, and that the kubelet would expand to more than Linux takes."""
    environment = canonical.environment(candidate.engine.get("env") or ())
    name = canonical.find_too_long(environment)
    if name is None:
        return None
    return (
        f"{candidate.engine_path}.env: {name}: with the variables in it replaced it has more than"
        f" {canonical.MAX_VALUE_CHARACTERS:,} characters, or all of them together grow by more or"
        f" have more than {canonical.MAX_DOLLARS:,} dollars"
    )


def script_too_long(candidate: Candidate) -> str | None:
    """A script this long is not searched for flags that make an engine one of several."""
    engine = candidate.engine
    index = find_long_script(command_words(engine))
    if index is None:
        return None
    command_length = len(engine.get("command") or ())
    field = f"command[{index}]" if index < command_length else f"args[{index - command_length}]"
    return (
        f"{candidate.engine_path}.{field}: a script of more than"
        f" {MAX_SCRIPT_CHARACTERS:,} characters: put it into a file"
    )


def leader_address(candidate: Candidate) -> str | None:
    engine, path = candidate.engine, candidate.engine_path
    message = f"{_LEADER}: a copy would connect to the leader that serves"
    for name in ("command", "args"):
        if any(_LEADER in word for word in engine.get(name) or ()):
            return f"{path}.{name}: {message}"
    for index, variable in enumerate(engine.get("env") or ()):
        if variable["name"] == _LEADER or _LEADER in (variable.get("value") or ""):
            return f"{path}.env[{index}]: {message}"
    return None


def node_address(candidate: Candidate) -> str | None:
    """On a network of its own a copy has neither the node's interfaces nor its address."""
    if not candidate.pod.get("hostNetwork"):
        return None
    engine, path = candidate.engine, candidate.engine_path
    end = "which a copy, on a network of its own, does not have"
    env = engine.get("env") or ()
    values = canonical.environment(env)
    of_node = {
        name
        for name, value in values.items()
        if any(canonical.contains_field(value, field) for field in _HOST_IP_FIELDS)
    }
    for index, name in enumerate(variable["name"] for variable in env):
        if name.endswith(_INTERFACE_SUFFIX) and not _is_of_any_pod(values[name]):
            return f"{path}.env[{index}]: {name}: names an interface of the node, {end}"
        if name == _HOST_IP_VARIABLE and name in of_node:
            return f"{path}.env[{index}]: {name}: the address of the node, {end}"
    for place in ("command", "args"):
        for word in engine.get(place) or ():
            if name := _refers_to(word, of_node):
                return f"{path}.{place}: {name}: the address of the node, {end}"
    words = command_words(engine)
    if _LOOPBACK.fullmatch(engine_type(engine).read_host(words)):
        return (
            f"{path}: the engine listens on the node's loopback only; on a network of its own the"
            " kubelet could not ask it whether it is ready"
        )
    return None


def _is_of_any_pod(interfaces: str) -> bool:
    """Whether a list of interfaces, or of their beginnings, names one that every pod has.

    As NCCL reads it: `^` excludes, `=` asks for the whole name, and "" is as if it were not set.
    """
    if not interfaces or interfaces.startswith("^"):
        return True
    names = [name.strip() for name in interfaces.removeprefix("=").split(",")]
    return any(name and known.startswith(name) for name in names for known in _POD_INTERFACES)


def _refers_to(text: str, names: set[str]) -> str:
    """Return which of these variables a text refers to, as the kubelet or a shell; "": none.

    A name may be any text: it is compared, and never part of a pattern.
    """
    if not names:
        return ""
    referred = {*canonical.list_references(text), *_SHELL_REFERENCE.findall(text)}
    return min(names & referred, default="")


def pairing_annotation(candidate: Candidate) -> str | None:
    for name in sorted((candidate.template.get("metadata") or {}).get("annotations") or {}):
        if name.startswith(_PAIRING_ANNOTATIONS):
            path = f"{candidate.path.removesuffix('.spec')}.metadata.annotations"
            return f"{path}: {name}: a controller pairs the engine's pods, and a copy would be one"
    return None


def self_registration(candidate: Candidate) -> str | None:
    engine = candidate.engine
    env = {variable["name"]: variable.get("value") or "" for variable in engine.get("env") or ()}
    cause = engine_type(engine).find_registration(command_words(engine), env)
    if not cause:
        return None
    field = "env" if cause in env else _field_of_flag(engine, cause)
    path = f"{candidate.engine_path}.{field}"
    return f"{path}: {cause}: the engine registers itself, so that a copy could get traffic"


def shared_resource_claim(candidate: Candidate) -> str | None:
    for index, claim in enumerate(candidate.pod.get("resourceClaims") or ()):
        if name := claim.get("resourceClaimName"):
            path = f"{candidate.path}.resourceClaims[{index}].resourceClaimName"
            return (
                f"{path}: {name}: the serving pods hold its devices; use resourceClaimTemplateName"
            )
    return None


def part_of_gpu(candidate: Candidate) -> str | None:
    for resource in gpu_resources(candidate.engine):
        if resource != "nvidia.com/gpu":
            return f"{candidate.engine_path}.resources: {resource}: a part of a GPU"
    for path, label, value in _required_labels(candidate):
        if any(name.fullmatch(label) and part.fullmatch(value) for name, part in _GPU_PART_LABELS):
            return f"{path}: {label}: {value}: a part of a GPU"
    return None


def node_devices(candidate: Candidate) -> str | None:
    for index, variable in enumerate(candidate.engine.get("env") or ()):
        value = variable.get("value") or ("a reference" if variable.get("valueFrom") else "")
        if variable["name"] == _DEVICES and value not in _OWN_DEVICES:
            path = f"{candidate.engine_path}.env[{index}]"
            return f"{path}: {_DEVICES}: {value}: the engine sees GPUs that other pods have"
    return None


def _required_labels(candidate: Candidate) -> Iterator[tuple[str, str, str]]:
    """Yield the labels that a node must or may have for this pod: path, name, value."""
    spec, target, pod = candidate.spec, candidate.target, candidate.pod
    index = spec.targets.index(target) if target in spec.targets else 0
    for name, value in sorted(target.node_selector.items()):
        yield f"spec.targets[{index}].nodeSelector", name, value
    for name, value in sorted((pod.get("nodeSelector") or {}).items()):
        if name not in target.node_selector:
            yield f"{candidate.path}.nodeSelector", name, value
    for term in required_terms(pod):
        for expression in term.get("matchExpressions") or ():
            if expression.get("operator") == "In":
                for value in expression.get("values") or ():
                    path = f"{candidate.path}.affinity.nodeAffinity"
                    yield path, expression.get("key") or "", value


def single_use_claim(candidate: Candidate) -> str | None:
    for index, name in _mounted_claims(candidate):
        if "ReadWriteOncePod" in candidate.claims.get(name, ()):
            path = f"{candidate.path}.volumes[{index}].persistentVolumeClaim"
            return f"{path}: {name} is ReadWriteOncePod: a serving pod holds it"
    return None


def list_mounted_claims(template: Object, spec: Spec, target: Target) -> list[str]:
    """Return the names of the claims that a copy of the engine mounts. Raises as find_refusal."""
    candidate = Candidate(template, engine_of(template, spec.engine_container), spec, target)
    return [name for _, name in _mounted_claims(candidate)]


def _mounted_claims(candidate: Candidate) -> Iterator[tuple[int, str]]:
    """Yield the index of each volume that the copy mounts and that is a claim, and its name."""
    used = {
        mount["name"]
        for _, container in candidate.kept()
        for _, _, mount in mounts_and_devices(container)
    }
    for index, volume in enumerate(candidate.pod.get("volumes") or ()):
        name = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if name and volume["name"] in used:
            yield index, name


Check = Callable[[Candidate], str | None]

# In order: the first that applies counts. A reason in spec.tuning.allow is skipped.
PREFLIGHT_CHECKS: tuple[tuple[Reason, Check], ...] = (
    (reasons.ENGINE_NOT_FOUND, gpu_missing),
    (reasons.SOURCE_INVALID, kept_container_missing),
    (reasons.SOURCE_INVALID, volume_missing),
    (reasons.TOO_LARGE, variable_too_long),
    (reasons.TOO_LARGE, script_too_long),
    (reasons.NODE_GPUS, node_devices),
    (reasons.MULTI_POD_ENGINE, multi_pod_label),
    (reasons.MULTI_POD_ENGINE, multi_pod_flag),
    (reasons.MULTI_POD_ENGINE, leader_address),
    (reasons.HOST_NETWORK, node_address),
    (reasons.SELF_REGISTERING, self_registration),
    (reasons.SELF_REGISTERING, pairing_annotation),
    (reasons.SHARED_RESOURCE_CLAIM, shared_resource_claim),
    (reasons.SHARED_GPU, part_of_gpu),
    (reasons.SINGLE_USE_CLAIM, single_use_claim),
)

TARGET_CHECKS: tuple[Check, ...] = (part_of_gpu,)  # those that depend on the target


def _field_of_flag(engine: Object, shown: str) -> str:
    """Return "args" or "command": where a flag is that the engine's type found.

    shown: the flag as engines/base.py has it returned: with "-" for "_", and with its value.
    """
    flag = shown.split(" ")[0].split("=")[0]
    in_args = any(flag in word.replace("_", "-") for word in engine.get("args") or ())
    return "args" if in_args else "command"
