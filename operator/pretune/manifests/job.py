"""Our Jobs: an attempt to tune a bundle or to prove it, and the small ones that read the claim or prune it. Dict in, dict out; inputs stay
as they are."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pretune.api.names import (
    AGENT_CONTAINER,
    ATTEMPT,
    BUNDLE,
    CACHE,
    FINGERPRINT,
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
from pretune.manifests.injection import strip
from pretune.manifests.tuning_pod import (
    MESH_ANNOTATIONS,
    MESH_LABELS,
    PROVE_CLAIM,
    PROVE_COPY,
    TUNE,
    build_pod_template,
    merge_tolerations,
)
from pretune.podspec import identity
from pretune.podspec.template import engine_of
from pretune.protocol import CLAIM_MOUNT, Task

NAME_LENGTH = 63  # a Job's name becomes a label's value
TTL = 3600  # seconds that a finished Job stays, to be read by a person
CLAIM_DEADLINE = 300  # seconds that inspect and prune may take
_CLAIM_RESOURCES = {"cpu": "200m", "memory": "128Mi"}
_NONROOT = 65532
_ID_HASH = re.compile(r"(?<![^-])[0-9a-f]{12}(?![^-])")


def attempt_name(cache: str, bundle_id: str, attempt: int | str) -> str:
    """`<cache>-<bundle id>-<attempt>` where that fits a DNS label and can be read back in one way only, else cut, with a hash.

    attempt: a number; of a proof p1, p2, …"""
    plain = f"{cache}-{bundle_id}-{attempt}"
    if len(plain) <= NAME_LENGTH and "." not in plain and len(_ID_HASH.findall(plain)) == 1:
        return plain
    return hashed_name(cache, f"{attempt}", [cache, bundle_id, attempt])


def build_tuning_job(
    key: Key,
    cache: Object,
    template: Object,
    target: Target,
    attempt: int,
    settings: Settings,
    agent_name: str,
    example: Object | None = None,
) -> Object:
    """The Job of an attempt (from 1) to make the target's bundle of this template (find_refusal said None of it).

    template: as its author wrote it; the bundle's inputs are its. example: a pod made from it, whole, as admission left it: what the
    Job's pod is then made from (manifests.admitted).
    Raises Refused as engine_of does.
    """
    return _attempt(key, cache, template, target, str(attempt), settings, agent_name, example, TUNE)


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
) -> Object:
    """The Job of a proof (from 1) of the target's bundle of this template: the same engine, started from it. As build_tuning_job.

    on_claim: the engine reads the bundle where it is, as consumers will, and not a copy of it (docs/decisions/0007).
    """
    purpose = PROVE_CLAIM if on_claim else PROVE_COPY
    return _attempt(
        key, cache, template, target, f"p{proof}", settings, agent_name, example, purpose
    )


def _attempt(
    key: Key,
    cache: Object,
    template: Object,
    target: Target,
    attempt: str,
    settings: Settings,
    agent_name: str,
    example: Object | None,
    purpose: str,
) -> Object:
    spec = Spec.from_cache(cache)
    inputs = identity.inputs(template, spec, target)
    bundle = inputs.bundle_id()
    engine = engine_of(template, spec.engine_container)[
        "name"
    ]  # also where admission added another with a GPU
    spec = replace(spec, engine_container=engine)
    made = strip(template)
    if example is not None and any(one["name"] == engine for one in example["spec"]["containers"]):
        made = apply_admission(template, example)
    pod = build_pod_template(
        key.name, key.folder, made, spec, target, inputs, settings, agent_name, purpose
    )
    role, number = (TUNING if purpose == TUNE else PROOF), attempt.removeprefix("p")
    labels = {**spec.job_labels, CACHE: key.name, ROLE: role, BUNDLE: bundle, ATTEMPT: number}
    annotations = {
        **spec.job_annotations,
        FINGERPRINT: inputs.fingerprint,
        STORAGE: storage_place(key.name, spec),
    }
    pod["metadata"] = {
        "labels": {**labels, **MESH_LABELS},
        "annotations": {**pod["metadata"]["annotations"], **annotations},
    }
    return build_job(key, cache, attempt_name(key.name, bundle, attempt), labels, annotations, pod)


def build_inspect_job(
    key: Key, cache: Object, spec: Spec, ids: Sequence[str], question: str, settings: Settings
) -> Object:
    """A Job without a GPU that says which of these bundles are on the claim. question: what makes two askings differ; it names
    the Job and stands in its annotation."""
    labels = {CACHE: key.name, ROLE: INSPECT}
    nobody = {"runAsNonRoot": True, "runAsUser": _NONROOT, "runAsGroup": _NONROOT}
    pod = _claim_pod(key, spec, INSPECT, ids, settings, nobody, read_only=True)
    return _claim_job(key, cache, labels, question, pod)


def build_prune_job(
    key: Key,
    cache: Object,
    spec: Spec,
    ids: Sequence[str],
    writer: Mapping[str, Any],
    settings: Settings,
) -> Object:
    """A Job without a GPU that removes these bundles' folders. writer: {uid, gid, groups} that seal recorded: whose files they are."""
    labels = {CACHE: key.name, ROLE: PRUNE}
    uid = int(writer.get("uid", 0))
    owner: Object = {
        "runAsUser": uid,
        "runAsGroup": int(writer.get("gid", 0)),
        "runAsNonRoot": uid != 0,
    }
    if groups := sorted(set(writer.get("groups") or ())):
        owner["supplementalGroups"] = groups
    pod = _claim_pod(key, spec, PRUNE, ids, settings, owner, read_only=False)
    return _claim_job(key, cache, labels, json.dumps(sorted(ids)), pod)


def _claim_job(
    key: Key, cache: Object, labels: dict[str, str], question: str, pod: Object
) -> Object:
    role = labels[ROLE]
    pod["metadata"] = {"labels": {**labels, **MESH_LABELS}, "annotations": dict(MESH_ANNOTATIONS)}
    return build_job(
        key,
        cache,
        hashed_name(key.name, role, [key.name, role, question]),
        labels,
        {REQUEST_KEY: question},
        pod,
    )


def hashed_name(cache: str, last: str, what: list[Any]) -> str:
    """`<cache, cut>-<10 hex of what>-<last>`: a DNS label of at most NAME_LENGTH characters."""
    tail = f"-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:10]}-{last}"
    return cache.replace(".", "-")[: NAME_LENGTH - len(tail)].rstrip("-") + tail


def _claim_pod(
    key: Key,
    spec: Spec,
    verb: str,
    ids: Sequence[str],
    settings: Settings,
    user: Object,
    read_only: bool,
) -> Object:
    """A pod of the operator's own image that looks after the claim. It tolerates what the targets do: a claim may hold it to a GPU node."""
    claim = {"claimName": claim_name(key.name, spec), **({"readOnly": True} if read_only else {})}
    container = {
        "name": AGENT_CONTAINER,
        "image": settings.operator_image,
        "imagePullPolicy": settings.operator_pull_policy,
        "command": ["python3", "-m", "pretune.agent", verb],
        "env": build_task_variables(
            Task(cache=key.folder, subPath=spec.claim.sub_path, ids=list(ids))
        ),
        "resources": {"limits": dict(_CLAIM_RESOURCES), "requests": dict(_CLAIM_RESOURCES)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {
                "name": CLAIM_VOLUME,
                "mountPath": CLAIM_MOUNT,
                **({"readOnly": True} if read_only else {}),
            }
        ],
    }
    pod = {
        "containers": [container],
        "volumes": [{"name": CLAIM_VOLUME, "persistentVolumeClaim": claim}],
        "restartPolicy": "Never",
        "activeDeadlineSeconds": CLAIM_DEADLINE,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {**user, "seccompProfile": {"type": "RuntimeDefault"}},
        "tolerations": merge_tolerations(
            *(one.tolerations for one in spec.targets), spec.tolerations
        ),
        "imagePullSecrets": [{"name": name} for name in settings.operator_pull_secrets],
        "priorityClassName": settings.priority_class,
    }
    return {"spec": {name: one for name, one in pod.items() if one not in ("", [])}}


def build_job(
    key: Key,
    cache: Object,
    name: str,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    pod: Object,
) -> Object:
    """One pod at a time, never a second try by itself; an evicted or preempted pod is replaced and not counted
    (docs/dev/facts-kubernetes.md)."""
    owner = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "name": key.name,
        "uid": cache["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": False,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": key.namespace,
            "labels": dict(labels),
            "annotations": dict(annotations),
            "ownerReferences": [owner],
        },
        "spec": {
            "parallelism": 1,
            "completions": 1,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "Ignore",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    }
                ]
            },
            "ttlSecondsAfterFinished": TTL,
            "template": pod,
        },
    }
