"""The Job that makes a bundle of what vLLM wrote elsewhere: one container in the engine's image, without a GPU. Dict in, dict out."""

from __future__ import annotations

import copy
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
from pretune.manifests.admitted import apply_admission
from pretune.manifests.agent_container import (
    AGENT_VOLUME,
    CLAIM_VOLUME,
    SEAL_RESOURCES,
    build_agent_container,
)
from pretune.manifests.injection import strip
from pretune.manifests.job import build_job, hashed_name
from pretune.manifests.tuning_pod import (
    GRACE,
    MESH_ANNOTATIONS,
    MESH_LABELS,
    merge_scheduling,
    merge_tolerations,
)
from pretune.podspec import identity
from pretune.podspec.template import command_words, count_gpus, engine_of
from pretune.protocol import SOURCE_MOUNT, Task

SOURCE_VOLUME = "pretune-source"
DEADLINE = 900  # seconds from the pod's start on its node, the image's pull included
_KEPT = ("securityContext", "imagePullSecrets", "serviceAccountName", "hostUsers", "os")


def build_import_job(
    key: Key,
    cache: Object,
    template: Object,
    target: Target,
    asked: str,
    source: tuple[str, str],
    settings: Settings,
    agent_name: str,
    example: Object | None = None,
    near: bool = False,
) -> Object:
    """The Job that imports the target's bundle of this template. asked: the annotation's value, by which it is known again; source: its
    claim, and the folder in it ("": its root).

    The pod has the engine's uid, image and pull secrets, so that it can read what such an engine wrote; of where it runs only the
    tolerations, and the rest as a wish, since the image is there. near: as a must, where the claim is bound by this very pod: it has
    to be where the GPUs are. example: as for build_tuning_job. Raises Refused as engine_of does.
    """
    spec = Spec.from_cache(cache)
    inputs = identity.inputs(template, spec, target)
    engine = engine_of(template, spec.engine_container)["name"]
    spec = replace(spec, engine_container=engine)
    made = strip(template)
    if example is not None and any(one["name"] == engine for one in example["spec"]["containers"]):
        made = apply_admission(template, example)
    bundle, (claim, folder) = inputs.bundle_id(), source
    labels = {CACHE: key.name, ROLE: IMPORTING, BUNDLE: bundle}
    annotations = {
        FINGERPRINT: inputs.fingerprint,
        STORAGE: storage_place(key.name, spec),
        IMPORT: asked,
    }
    container = engine_of(made, engine)
    task = Task(
        cache=key.folder,
        subPath=spec.claim.sub_path,
        inputs=inputs,
        gpus=count_gpus(container),
        command=command_words(container),
        source=folder,
    )
    pod = _pod(key, made, spec, target, container, task, claim, settings, agent_name, near)
    pod["metadata"] = {
        "labels": {**labels, **MESH_LABELS},
        "annotations": {**MESH_ANNOTATIONS, **annotations},
    }
    # The uid: the Job of a deleted cache of this name may still be on its way out, and is not to be waited for.
    name = hashed_name(key.name, IMPORTING, [cache["metadata"]["uid"], bundle, asked])
    return build_job(key, cache, name, labels, annotations, pod)


def _pod(
    key: Key,
    template: Object,
    spec: Spec,
    target: Target,
    engine: Object,
    task: Task,
    source: str,
    settings: Settings,
    agent_name: str,
    near: bool,
) -> Object:
    ours = claim_name(key.name, spec)
    same = source == ours  # a pod with two volumes of one claim never starts (kubernetes#122140)
    mount = {
        "name": CLAIM_VOLUME if same else SOURCE_VOLUME,
        "mountPath": SOURCE_MOUNT,
        "readOnly": True,
    }
    small = {"limits": dict(SEAL_RESOURCES), "requests": dict(SEAL_RESOURCES)}
    container = build_agent_container(
        IMPORT_CONTAINER, "import", engine, task, small, {"name": CLAIM_VOLUME}, mounts=[mount]
    )
    volumes: list[Object] = [
        {"name": CLAIM_VOLUME, "persistentVolumeClaim": {"claimName": ours}},
        {"name": AGENT_VOLUME, "configMap": {"name": agent_name, "optional": True}},
    ]
    if not same:
        volumes.append(
            {
                "name": SOURCE_VOLUME,
                "persistentVolumeClaim": {"claimName": source, "readOnly": True},
            }
        )
    pod = {name: copy.deepcopy(one) for name, one in template["spec"].items() if name in _KEPT}
    pod |= {
        "containers": [container],
        "volumes": volumes,
        "restartPolicy": "Never",
        "activeDeadlineSeconds": DEADLINE,
        "terminationGracePeriodSeconds": GRACE,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "priorityClassName": spec.priority_class or settings.priority_class,
    }
    pod |= (
        merge_scheduling(template["spec"], spec, target)
        if near
        else _wishes(template["spec"], spec, target)
    )
    return {"spec": {name: one for name, one in pod.items() if one not in ("", [])}}


def _wishes(pod: Object, spec: Spec, target: Target) -> Object:
    """Tolerations, and a preference for the target's nodes."""
    labels = {**(pod.get("nodeSelector") or {}), **target.node_selector}
    made: Object = {
        "tolerations": merge_tolerations(
            pod.get("tolerations") or (), target.tolerations, spec.tolerations
        )
    }
    if labels:
        terms = [
            {"key": name, "operator": "In", "values": [value]}
            for name, value in sorted(labels.items())
        ]
        preferred = [{"weight": 100, "preference": {"matchExpressions": terms}}]
        made["affinity"] = {
            "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}
        }
    return made
