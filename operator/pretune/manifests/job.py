"""Our Jobs: attempts and proofs, and the small Jobs that inspect and prune the claim. Pure.

The inputs stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from pretune.api.names import (
    AGENT_CONTAINER,
    ATTEMPT,
    BUNDLE,
    CACHE,
    ENGINE,
    FINGERPRINT,
    GENERATION,
    GPUS,
    GROUP,
    INSPECT,
    KIND,
    PROOF,
    PRUNE,
    REQUEST_KEY,
    ROLE,
    STORAGE,
    TUNING,
    VERSION,
)
from pretune.api.spec import Spec, Target, claim_name, storage_place
from pretune.api.types import Key, Object
from pretune.config import Settings
from pretune.manifests.admitted import apply_admission
from pretune.manifests.agent_container import CLAIM_VOLUME, build_task_variables
from pretune.manifests.copied_annotations import MESH_ANNOTATIONS, MESH_LABELS
from pretune.manifests.injection import strip
from pretune.manifests.tuning_pod import (
    PROVE_CLAIM,
    PROVE_COPY,
    TUNE,
    build_pod_template,
    merge_tolerations,
)
from pretune.podspec import identity
from pretune.podspec.devices import count_used_gpus
from pretune.podspec.template import engine_of
from pretune.protocol import CLAIM_MOUNT, Task

MAX_NAME_LENGTH = 63  # a Job's name becomes a label's value
FINISHED_TTL_SECONDS = 3600  # how long a finished Job stays, to be read by a person
CLAIM_DEADLINE_SECONDS = 300  # of a Job that inspects or prunes
CLAIM_RESOURCES = {"cpu": "200m", "memory": "128Mi"}  # of a Job that inspects or prunes
_ID_HASH = re.compile(r"(?<![^-])[0-9a-f]{12}(?![^-])")


# --- names


def attempt_name(cache: str, bundle_id: str, attempt: int | str) -> str:
    """Return the name of an attempt's or a proof's Job.

    `<cache>-<bundle id>-<attempt>` if that is a DNS label with one possible reading; else it is cut
    and has a hash. attempt: a number; p1, p2, … for a proof.
    """
    name = f"{cache}-{bundle_id}-{attempt}"
    if len(name) <= MAX_NAME_LENGTH and "." not in name and len(_ID_HASH.findall(name)) == 1:
        return name
    return hashed_name(cache, f"{attempt}", [cache, bundle_id, attempt])


def hashed_name(cache: str, suffix: str, content: list[Any]) -> str:
    """Return `<cache, cut>-<10 hex of content>-<suffix>`, of at most MAX_NAME_LENGTH characters."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:10]
    tail = f"-{digest}-{suffix}"
    return cache.replace(".", "-")[: MAX_NAME_LENGTH - len(tail)].rstrip("-") + tail


# --- attempts and proofs


def build_tuning_job(
    key: Key,
    cache: Object,
    template: Object,
    target: Target,
    attempt: int,
    settings: Settings,
    agent_name: str,
    example: Object | None = None,
    nodes: Sequence[str] | None = None,
    device_claims: Mapping[str, Object] | None = None,
) -> Object:
    """Return the Job of an attempt to tune the target's bundle of this template.

    template: as its author wrote it, without a refusal by preflight. The bundle's inputs are its.
    attempt: its number, from 1.
    example: a pod of the template, whole, as admission changed it: the Job's pod is a copy of it.
    nodes: names of those on one of which it has to run; None: any that fits.
    device_claims: ResourceClaimTemplates by name, of those that were read.
    Raises Refused as engine_of does.
    """
    copied = _Copied(example, nodes, device_claims or {}, TUNE)
    return _build_attempt_job(
        key, cache, template, target, str(attempt), settings, agent_name, copied
    )


def build_proof_job(
    key: Key,
    cache: Object,
    template: Object,
    target: Target,
    proof: int,
    settings: Settings,
    agent_name: str,
    example: Object | None = None,
    on_claim: bool = False,
    nodes: Sequence[str] | None = None,
    device_claims: Mapping[str, Object] | None = None,
) -> Object:
    """Return the Job of a proof: the same engine, started from the target's bundle.

    proof: its number, from 1. on_claim: the engine reads the bundle on the claim, as consumers
    will, and not a copy of it (docs/decisions/0007). The rest as for build_tuning_job.
    """
    purpose = PROVE_CLAIM if on_claim else PROVE_COPY
    copied = _Copied(example, nodes, device_claims or {}, purpose)
    return _build_attempt_job(
        key, cache, template, target, f"p{proof}", settings, agent_name, copied
    )


class _Copied(NamedTuple):
    """What a copy is made with, beside the template: as for build_tuning_job."""

    example: Object | None
    nodes: Sequence[str] | None
    device_claims: Mapping[str, Object]
    purpose: str


def _build_attempt_job(
    key: Key,
    cache: Object,
    template: Object,
    target: Target,
    attempt: str,
    settings: Settings,
    agent_name: str,
    copied: _Copied,
) -> Object:
    spec = Spec.from_cache(cache)
    inputs = identity.inputs(template, spec, target)
    bundle_id = inputs.bundle_id()
    # By name from here on, since admission may have added another container with a GPU.
    engine_name = engine_of(template, spec.engine_container)["name"]
    spec = replace(spec, engine_container=engine_name)
    template = template_to_copy(template, engine_name, copied.example)
    gpus = count_used_gpus(template, engine_of(template, engine_name), copied.device_claims)
    pod = build_pod_template(
        key.name,
        key.folder,
        template,
        spec,
        target,
        inputs,
        settings,
        agent_name,
        gpus,
        copied.purpose,
        copied.nodes,
    )
    role = TUNING if copied.purpose == TUNE else PROOF
    number = attempt.removeprefix("p")
    labels = {**spec.job_labels, CACHE: key.name, ROLE: role, BUNDLE: bundle_id, ATTEMPT: number}
    annotations = {
        **spec.job_annotations,
        FINGERPRINT: inputs.fingerprint,
        STORAGE: storage_place(key.name, spec),
        ENGINE: engine_name,
        GPUS: str(gpus),
    }
    pod["metadata"] = {
        "labels": {**labels, **MESH_LABELS},
        "annotations": {**pod["metadata"]["annotations"], **annotations},
    }
    name = attempt_name(key.name, bundle_id, attempt)
    return build_job(key, cache, name, labels, annotations, pod)


def template_to_copy(template: Object, engine_name: str, example: Object | None) -> Object:
    """Return what a pod of ours is copied from: the template, as admission changed the example.

    The template alone if there is no example, or if the example has no container of that name.
    """
    containers = example["spec"]["containers"] if example is not None else ()
    if example is not None and any(each["name"] == engine_name for each in containers):
        return apply_admission(template, example)
    return strip(template)


# --- inspect and prune


def build_inspect_job(
    key: Key,
    cache: Object,
    spec: Spec,
    ids: Sequence[str],
    request_key: str,
    settings: Settings,
    templates: Sequence[Object] = (),
) -> Object:
    """Return a Job without a GPU that reports which of these bundles are on the claim.

    request_key: distinguishes one request from another. It is in the Job's name and annotation.
    templates: pod templates of the cache's engines. Its uid is the image's own, or the one that the
    cluster chooses (OpenShift): bundles are readable by all.
    """
    user = {"runAsNonRoot": True}
    pod = _claim_pod(key, spec, INSPECT, ids, settings, user, templates, read_only=True)
    return _build_claim_job(key, cache, INSPECT, request_key, pod)


def build_prune_job(
    key: Key,
    cache: Object,
    spec: Spec,
    ids: Sequence[str],
    writer: Mapping[str, Any],
    settings: Settings,
    templates: Sequence[Object] = (),
) -> Object:
    """Return a Job without a GPU that deletes the folders of these bundles.

    writer: {uid, gid, groups} that seal recorded: the owner of the files. templates: pod templates
    of the cache's engines. Where all of these have one service account, so has the Job: the cluster
    may allow that uid to no other (OpenShift).
    """
    uid = int(writer.get("uid", 0))
    user: Object = {
        "runAsUser": uid,
        "runAsGroup": int(writer.get("gid", 0)),
        "runAsNonRoot": uid != 0,
    }
    if groups := sorted(set(writer.get("groups") or ())):
        user["supplementalGroups"] = groups
    pod = _claim_pod(key, spec, PRUNE, ids, settings, user, templates, read_only=False)
    accounts = {each["spec"].get("serviceAccountName") or "" for each in templates}
    if len(accounts) == 1 and (account := accounts.pop()):
        pod["spec"]["serviceAccountName"] = account
    return _build_claim_job(key, cache, PRUNE, json.dumps(sorted(ids)), pod)


def _build_claim_job(key: Key, cache: Object, role: str, request_key: str, pod: Object) -> Object:
    labels = {CACHE: key.name, ROLE: role}
    pod["metadata"] = {"labels": {**labels, **MESH_LABELS}, "annotations": dict(MESH_ANNOTATIONS)}
    name = hashed_name(key.name, role, [key.name, role, request_key])
    return build_job(key, cache, name, labels, {REQUEST_KEY: request_key}, pod)


def _claim_pod(
    key: Key,
    spec: Spec,
    verb: str,
    ids: Sequence[str],
    settings: Settings,
    user: Object,
    templates: Sequence[Object],
    read_only: bool,
) -> Object:
    """Return a pod with the operator's own image that reads or prunes the claim.

    It has the tolerations of all targets and engines: the claim's volume may be on a GPU node.
    """
    flag = {"readOnly": True} if read_only else {}
    task = Task(cache=key.folder, subPath=spec.claim.sub_path, ids=list(ids))
    container = {
        "name": AGENT_CONTAINER,
        "image": settings.operator_image,
        "imagePullPolicy": settings.operator_pull_policy,
        "command": ["python3", "-m", "pretune.agent", verb],
        "env": build_task_variables(task),
        "resources": {"limits": dict(CLAIM_RESOURCES), "requests": dict(CLAIM_RESOURCES)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": CLAIM_VOLUME, "mountPath": CLAIM_MOUNT, **flag}],
    }
    claim = {"claimName": claim_name(key.name, spec), **flag}
    tolerations = [target.tolerations for target in spec.targets]
    tolerations += [each["spec"].get("tolerations") or () for each in templates]
    pod = {
        "containers": [container],
        "volumes": [{"name": CLAIM_VOLUME, "persistentVolumeClaim": claim}],
        "restartPolicy": "Never",
        "activeDeadlineSeconds": CLAIM_DEADLINE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {**user, "seccompProfile": {"type": "RuntimeDefault"}},
        "tolerations": merge_tolerations(*tolerations, spec.tolerations),
        "affinity": _require_architectures(settings.operator_architectures),
        "imagePullSecrets": [{"name": name} for name in settings.operator_pull_secrets],
        "priorityClassName": settings.priority_class,
    }
    return {"spec": {name: value for name, value in pod.items() if value not in ("", [], {})}}


def _require_architectures(architectures: Sequence[str]) -> Object:
    """Return the affinity to nodes that the operator's image runs on; {}: to any."""
    if not architectures:
        return {}
    expression = {
        "key": "kubernetes.io/arch",
        "operator": "In",
        "values": list(architectures),
    }
    terms = [{"matchExpressions": [expression]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"nodeAffinity": required}


# --- any Job


def build_job(
    key: Key,
    cache: Object,
    name: str,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    pod: Object,
) -> Object:
    """Return a Job of one pod, which the Job controller does not retry.

    An evicted or preempted pod is replaced, and not counted (docs/dev/facts-kubernetes.md).
    """
    owner = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "name": key.name,
        "uid": cache["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": False,
    }
    disruption = {"type": "DisruptionTarget", "status": "True"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": key.namespace,
            "labels": dict(labels),
            "annotations": {
                **annotations,
                GENERATION: str(cache["metadata"].get("generation") or 0),
            },
            "ownerReferences": [owner],
        },
        "spec": {
            "parallelism": 1,
            "completions": 1,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [{"action": "Ignore", "onPodConditions": [disruption]}],
            },
            "ttlSecondsAfterFinished": FINISHED_TTL_SECONDS,
            "template": pod,
        },
    }
