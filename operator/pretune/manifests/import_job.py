"""The Job that makes a bundle of a folder that the engine wrote elsewhere. Pure.

One container in the engine's image, without a GPU.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from pretune.api.names import (
    BUNDLE,
    CACHE,
    FINGERPRINT,
    IMPORT,
    IMPORT_CONTAINER,
    IMPORTING,
    ROLE,
    STORAGE,
)
from pretune.api.spec import Spec, Target, claim_name, storage_place
from pretune.api.types import Key, Object
from pretune.config import Settings
from pretune.manifests.agent_container import (
    AGENT_VOLUME,
    CLAIM_VOLUME,
    build_agent_container,
    build_seal_resources,
)
from pretune.manifests.copied_annotations import MESH_ANNOTATIONS, MESH_LABELS
from pretune.manifests.job import build_job, hashed_name, template_to_copy
from pretune.manifests.tuning_pod import (
    GRACE_SECONDS,
    merge_scheduling,
    merge_tolerations,
)
from pretune.podspec import identity
from pretune.podspec.devices import count_used_gpus
from pretune.podspec.template import engine_of, engine_type, task_command
from pretune.protocol import SOURCE_MOUNT, Task

SOURCE_VOLUME = "pretune-source"
IMPORT_DEADLINE_SECONDS = 900  # from the pod's start on its node, the pull of the image included
_COPIED_FIELDS = ("securityContext", "imagePullSecrets", "serviceAccountName", "hostUsers", "os")


def build_import_job(
    key: Key,
    cache: Object,
    template: Object,
    target: Target,
    annotation: str,
    source: tuple[str, str],
    settings: Settings,
    agent_name: str,
    example: Object | None = None,
    near: bool = False,
    device_claims: Mapping[str, Object] | None = None,
) -> Object:
    """Return the Job that imports the target's bundle of this template.

    annotation: the value of the cache's annotation, by which the Job is found again.
    source: the claim that it names, and the folder in that claim ("": its root).
    near: the pod has to run where the target's pods run. Needed if the claim binds when this pod is
    scheduled: then its volume has to be near the GPUs. Else the pod prefers the target's nodes,
    since the image is there, and has their tolerations.
    example, device_claims: as for build_tuning_job. Raises Refused as engine_of does.

    The pod has the engine's uid, image and pull secrets, so that it can read what such an engine
    wrote.
    """
    spec = Spec.from_cache(cache)
    inputs = identity.inputs(template, spec, target)
    engine_name = engine_of(template, spec.engine_container)["name"]
    spec = replace(spec, engine_container=engine_name)
    template = template_to_copy(template, engine_name, example)
    bundle_id, (claim, folder) = inputs.bundle_id(), source
    labels = {CACHE: key.name, ROLE: IMPORTING, BUNDLE: bundle_id}
    annotations = {
        FINGERPRINT: inputs.fingerprint,
        STORAGE: storage_place(key.name, spec),
        IMPORT: annotation,
    }
    engine = engine_of(template, engine_name)
    task = Task(
        cache=key.folder,
        subPath=spec.claim.sub_path,
        inputs=inputs,
        gpus=count_used_gpus(template, engine, device_claims or {}),
        **task_command(engine),
        source=folder,
        engine=engine_type(engine).name,
    )
    pod = _import_pod(key, template, spec, target, engine, task, claim, settings, agent_name, near)
    pod["metadata"] = {
        "labels": {**labels, **MESH_LABELS},
        "annotations": {**MESH_ANNOTATIONS, **annotations},
    }
    # The uid is in the name: the Job of a deleted cache of this name may not be gone yet, and is
    # not waited for.
    content = [cache["metadata"]["uid"], bundle_id, annotation]
    name = hashed_name(key.name, IMPORTING, content)
    return build_job(key, cache, name, labels, annotations, pod)


def _import_pod(
    key: Key,
    template: Object,
    spec: Spec,
    target: Target,
    engine: Object,
    task: Task,
    source_claim: str,
    settings: Settings,
    agent_name: str,
    near: bool,
) -> Object:
    claim = claim_name(key.name, spec)
    volumes: list[Object] = [
        {"name": CLAIM_VOLUME, "persistentVolumeClaim": {"claimName": claim}},
        {"name": AGENT_VOLUME, "configMap": {"name": agent_name, "optional": True}},
    ]
    source_volume = CLAIM_VOLUME
    if source_claim != claim:  # a pod with two volumes of one claim never starts
        source_volume = SOURCE_VOLUME
        source = {"claimName": source_claim, "readOnly": True}
        volumes.append({"name": SOURCE_VOLUME, "persistentVolumeClaim": source})
    mount = {"name": source_volume, "mountPath": SOURCE_MOUNT, "readOnly": True}
    resources = build_seal_resources(engine)
    container = build_agent_container(
        IMPORT_CONTAINER,
        "import",
        engine,
        task,
        resources,
        {"name": CLAIM_VOLUME},
        mounts=[mount],
    )
    pod = {
        name: copy.deepcopy(value)
        for name, value in template["spec"].items()
        if name in _COPIED_FIELDS
    }
    pod |= {
        "containers": [container],
        "volumes": volumes,
        "restartPolicy": "Never",
        "activeDeadlineSeconds": IMPORT_DEADLINE_SECONDS,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "priorityClassName": spec.priority_class or settings.priority_class,
    }
    scheduling = merge_scheduling if near else _preferred_scheduling
    pod |= scheduling(template["spec"], spec, target)
    return {"spec": {name: value for name, value in pod.items() if value not in ("", [])}}


def _preferred_scheduling(pod: Object, spec: Spec, target: Target) -> Object:
    """Return tolerations, and a preference for the target's nodes."""
    scheduling: Object = {
        "tolerations": merge_tolerations(
            pod.get("tolerations") or (), target.tolerations, spec.tolerations
        )
    }
    labels = {**(pod.get("nodeSelector") or {}), **target.node_selector}
    if labels:
        expressions = [
            {"key": name, "operator": "In", "values": [value]}
            for name, value in sorted(labels.items())
        ]
        preferred = [{"weight": 100, "preference": {"matchExpressions": expressions}}]
        scheduling["affinity"] = {
            "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}
        }
    return scheduling
