"""Everything that one decision looks at, read live: no cache of ours can be stale, and a restart loses nothing.

Jobs are read before pods: a Job that is seen finished is then never seen beside its pod as it was before.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pretune.api import reasons
from pretune.api.names import (
    BUNDLE,
    CACHE,
    DELIVERY,
    GROUP,
    KIND,
    ROLE,
    SEALED,
    SEED_CONTAINER,
    VERSION,
)
from pretune.api.reasons import Refused
from pretune.api.spec import Spec, claim_name
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Key, Object
from pretune.config import Settings
from pretune.kube.types import ApiError, Cluster, NoSuchKind, metadata_only
from pretune.manifests.agent_archive import agent
from pretune.manifests.gate import is_held
from pretune.origin import origin, without_template
from pretune.podspec import identity
from pretune.podspec.workloads import origin_key, origin_of, template_of
from pretune.policy.bundles.attempt_state import POD_GRACE, finished
from pretune.policy.model import Observed, Origin
from pretune.policy.pods.rescue import suspect

API = f"{GROUP}/{VERSION}"
SUSPECTS = 5  # pods of a cache whose events are read in one look
APPS = (
    "Deployment",
    "StatefulSet",
    "DaemonSet",
)  # kinds of a source that is the workload above its own consumers


async def observe(key: Key, cluster: Cluster, settings: Settings, now: float) -> Observed:
    """What is there for a key at `now` (Unix seconds). Raises ApiError, OSError or TimeoutError where a read fails;
    a source or an owner that cannot be read is no error, but a Refused in its place."""
    cache, jobs, agents = await asyncio.gather(
        cluster.get(API, KIND, key.namespace, key.name),
        cluster.list("batch/v1", "Job", key.namespace, labels=f"{CACHE}={key.name}", project=_job),
        cluster.list(
            "v1", "ConfigMap", key.namespace, labels=f"{ROLE}=agent", project=metadata_only
        ),
    )
    if cache is None:
        return await _without_cache(key, cluster, settings, jobs, agents, now)
    spec, current = Spec.from_cache(cache), agent()[0]
    found, claim, (source, workload) = await asyncio.gather(
        cluster.list("v1", "Pod", key.namespace, labels=f"{CACHE}={key.name}", project=_pod),
        cluster.get("v1", "PersistentVolumeClaim", key.namespace, claim_name(key.name, spec)),
        _source(cluster, cache, spec),
    )
    pods = [pod for pod in found if ROLE in pod["metadata"]["labels"]]
    consumers = [pod for pod in found if ROLE not in pod["metadata"]["labels"]]
    waiting, suspects = _waits_for_pod(jobs, pods, now), _suspects(consumers, now)
    newest = _newest(consumers)
    (storage_class, agents_named, origins), (claim_events, *events) = await asyncio.gather(
        asyncio.gather(
            _storage_class(cluster, claim),
            _agents_named(cluster, key, agents, current, found),
            _origins(
                cluster, key, newest, workload=(spec.workload_ref or {}).get("kind") not in APPS
            ),
        ),
        asyncio.gather(
            *(
                _events(cluster, one)
                for one in (claim if _pending(claim) else None, *waiting, *suspects)
            )
        ),
    )
    untuned = {name: one for name, one in origins.items() if not _tuned(cache, spec, one.template)}
    templates = [source] if not _tuned(cache, spec, source) else []
    source_claims, examples = await asyncio.gather(
        _source_claims(cluster, key, [*templates, *(one.template for one in untuned.values())]),
        _examples(cluster, key, {name: newest[name] for name in untuned}),
    )
    return Observed(
        key=key,
        settings=settings,
        agent_name=current,
        cache=_lean(cache),
        source=source,
        source_workload=workload,
        source_claims=source_claims,
        claim=_lean(claim) if claim else None,
        storage_class=storage_class,
        claim_events=claim_events,
        jobs=tuple(jobs),
        pods=tuple(pods),
        consumers=tuple(_consumer(pod) for pod in consumers),
        origins=origins,
        examples=examples,
        pod_events=_by_uid(suspects, events[len(waiting) :]),
        job_events=_by_uid(waiting, events),
        agents=tuple(agents),
        agents_named=agents_named,
    )


async def _without_cache(
    key: Key,
    cluster: Cluster,
    settings: Settings,
    jobs: list[Object],
    agents: list[Object],
    now: float,
) -> Observed:
    """The cache is gone: its claim, the agents and pods that have not started are what may be left, and who still uses them. Cheap
    where there is none of it: a pod may be labelled with a cache that never was, and change every second."""
    name, current = f"pretune-{key.name}", agent()[0]
    claim, others, waiting = await asyncio.gather(
        cluster.get("v1", "PersistentVolumeClaim", key.namespace, name),
        cluster.list(API, KIND, key.namespace, project=metadata_only),
        _unstarted(key, cluster),
    )
    given = [
        pod
        for pod in waiting
        if BUNDLE in (pod["metadata"].get("annotations") or {}) and not is_held(pod)
    ]
    suspects = _suspects(given, now)
    events = await asyncio.gather(*(_events(cluster, one) for one in suspects))
    pods: list[Object] = []
    if claim or any(not others or one["metadata"]["name"] != current for one in agents):
        pods = await cluster.list("v1", "Pod", key.namespace, project=_mounts)
    return Observed(
        key=key,
        settings=settings,
        agent_name=current,
        cache=None,
        claim=_lean(claim) if claim else None,
        jobs=tuple(jobs),
        agents=tuple(agents),
        agents_named=_names(pods, "configMaps"),
        namespace_has_caches=bool(others),
        held=tuple(pod for pod in waiting if is_held(pod)),
        consumers=tuple(given),
        pod_events=_by_uid(suspects, events),
        claim_users=frozenset(pod["metadata"]["name"] for pod in pods if name in pod["claims"]),
    )


# --- consumers


async def held(key: Key, cluster: Cluster) -> tuple[Object, ...]:
    """A key's consumers behind our gate, whether it has a cache or not: the API server sends none that has a node."""
    return tuple(pod for pod in await _unstarted(key, cluster, "spec.nodeName=,") if is_held(pod))


async def _unstarted(key: Key, cluster: Cluster, fields: str = "") -> list[Object]:
    """A key's consumers that are Pending, cut down."""
    labels, fields = f"{CACHE}={key.name},!{ROLE}", f"{fields}status.phase=Pending"
    return await cluster.list(
        "v1", "Pod", key.namespace, labels=labels, fields=fields, project=_consumer
    )


def _newest(consumers: Iterable[Object]) -> dict[str, Object]:
    """Of each origin the newest living pod; one that the webhook has seen before one that it has not. What has ended, or is ending,
    wants no bundle any more, so that nobody asks where it came from."""
    found: dict[str, Object] = {}
    for pod in sorted(consumers, key=_age):
        if not finished(pod) and "deletionTimestamp" not in pod["metadata"]:
            found[origin_key(pod)] = pod
    return found


def _age(pod: Object) -> tuple[bool, str, str]:
    meta = pod["metadata"]
    return DELIVERY in (meta.get("annotations") or {}), meta["creationTimestamp"], meta["name"]


async def _origins(
    cluster: Cluster, key: Key, newest: Mapping[str, Object], workload: bool
) -> dict[str, Origin]:
    found = await asyncio.gather(
        *(origin(cluster, key.namespace, pod, workload=workload) for pod in newest.values())
    )
    return dict(zip(newest, found, strict=True))


def _tuned(cache: Object, spec: Spec, template: Object | Refused | None) -> bool:
    """Whether a template asks for nothing that is not sealed yet; one of which that cannot be told asks for nothing."""
    if template is None or isinstance(template, Refused):
        return True
    sealed = {
        one["id"]
        for one in (cache.get("status") or {}).get("bundles") or ()
        if one["state"] == SEALED
    }
    try:
        return all(
            identity.inputs(template, spec, target).bundle_id() in sealed for target in spec.targets
        )
    except Refused:
        return True


async def _examples(cluster: Cluster, key: Key, pods: Mapping[str, Object]) -> dict[str, Object]:
    """These pods, whole: those that are their own templates are already."""
    found = await asyncio.gather(*(_whole(cluster, key, pod) for pod in pods.values()))
    return {name: pod for name, pod in zip(pods, found, strict=True) if pod is not None}


async def _whole(cluster: Cluster, key: Key, pod: Object) -> Object | None:
    """The pod itself; None where it is gone, or another one of its name."""
    if origin_of(pod) is None:
        return pod
    found = await cluster.get("v1", "Pod", key.namespace, pod["metadata"]["name"])
    return (
        found if found is not None and found["metadata"]["uid"] == pod["metadata"]["uid"] else None
    )


def _suspects(consumers: Iterable[Object], now: float) -> list[Object]:
    """Pods whose events may say why they do not start; some of them, others at each look, where there are many."""
    found = [pod for pod in consumers if suspect(pod, now)]
    return found if len(found) <= SUSPECTS else random.Random(now).sample(found, SUSPECTS)


def _by_uid(
    objects: Sequence[Object], events: Sequence[tuple[Object, ...]]
) -> dict[str, tuple[Object, ...]]:
    return {one["metadata"]["uid"]: some for one, some in zip(objects, events, strict=False)}


# --- source, claim, agents


async def _source_claims(
    cluster: Cluster, key: Key, templates: Iterable[Object | Refused | None]
) -> dict[str, tuple[str, ...]]:
    """Access modes of the claims that templates mount, by name: those that are there."""
    specs = [one["spec"] for one in templates if one is not None and not isinstance(one, Refused)]
    volumes = [one for spec in specs for one in spec.get("volumes") or ()]
    names = sorted(
        {
            one["persistentVolumeClaim"]["claimName"]
            for one in volumes
            if one.get("persistentVolumeClaim")
        }
    )
    claims = await asyncio.gather(
        *(cluster.get("v1", "PersistentVolumeClaim", key.namespace, name) for name in names)
    )
    return {
        one["metadata"]["name"]: tuple(one["spec"].get("accessModes") or ())
        for one in claims
        if one
    }


async def _source(
    cluster: Cluster, cache: Object, spec: Spec
) -> tuple[Object | Refused | None, Object | None]:
    """The pod template as its author wrote it; Refused, with the object's name, where it cannot be had; None: no source. And the
    workload that it is from."""
    workload = None
    try:
        if spec.template is not None:
            return template_of(cache), None
        if spec.workload_ref is None:
            return None, None
        found = await _workload(cluster, cache["metadata"]["namespace"], **spec.workload_ref)
        workload = without_template(found)
        return template_of(found), workload
    except Refused as refused:
        return refused, workload


async def _workload(
    cluster: Cluster, namespace: str, apiVersion: str, kind: str, name: str
) -> Object:
    named = f"spec.source.workloadRef: {kind} {namespace}/{name}"
    try:
        found = await cluster.get(apiVersion, kind, namespace, name)
    except NoSuchKind as error:
        raise Refused(reasons.SOURCE_NOT_SUPPORTED, f"{named}: {error.message}") from None
    except ApiError as error:
        if error.code != 403:
            raise
        raise Refused(reasons.SOURCE_FORBIDDEN, f"{named}: {error.message}") from None
    if found is None:
        raise Refused(reasons.SOURCE_NOT_FOUND, f"{named} is not there")
    return {"apiVersion": apiVersion, "kind": kind, **found}


async def _storage_class(cluster: Cluster, claim: Object | None) -> Object | None:
    name = claim["spec"].get("storageClassName") if claim is not None and _pending(claim) else None
    return await cluster.get("storage.k8s.io/v1", "StorageClass", "", name) if name else None


async def _events(cluster: Cluster, about: Object | None) -> tuple[Object, ...]:
    if about is None:
        return ()
    meta = about["metadata"]
    selector = f"involvedObject.uid={meta['uid']}"
    return tuple(
        await cluster.list("v1", "Event", meta["namespace"], fields=selector, project=_event)
    )


async def _agents_named(
    cluster: Cluster, key: Key, agents: Sequence[Object], current: str, mine: Iterable[Object]
) -> frozenset[str]:
    """ConfigMaps that some pod of the namespace mounts; asked only where one could be removed, and this cache's own pods do not name
    it (after an upgrade old pods may serve for weeks), since it reads every pod."""
    old = {one["metadata"]["name"] for one in agents} - {current}
    named = _names(map(_mounts, mine), "configMaps")
    if old <= named:
        return named
    return named | _names(
        await cluster.list("v1", "Pod", key.namespace, project=_mounts), "configMaps"
    )


def _pending(claim: Object | None) -> bool:
    return claim is not None and claim.get("status", {}).get("phase", "Pending") == "Pending"


def _waits_for_pod(jobs: Iterable[Object], pods: Iterable[Object], now: float) -> list[Object]:
    owners = {
        owner["uid"] for pod in pods for owner in pod["metadata"].get("ownerReferences") or ()
    }
    return [
        job
        for job in jobs
        if job["metadata"]["uid"] not in owners
        and not job["spec"].get("suspend")
        and not any(one["status"] == "True" and one["type"] in _OVER for one in _conditions(job))
        and now - parse_timestamp(job["metadata"]["creationTimestamp"]) >= POD_GRACE
    ]


_OVER = ("Complete", "Failed")


def _conditions(obj: Object) -> list[Object]:
    return list(obj.get("status", {}).get("conditions") or ())


def _names(pods: Iterable[Object], what: str) -> frozenset[str]:
    return frozenset(name for pod in pods for name in pod[what])


# --- what is kept of an object: the fields in use, and never an env value


def _only(source: Any, *names: str) -> Object:
    return {name: source[name] for name in names if name in (source or {})}


def _lean(obj: Object) -> Object:
    """All but the record of who wrote which field, which is often the larger half."""
    return {
        **obj,
        "metadata": {name: one for name, one in obj["metadata"].items() if name != "managedFields"},
    }


def _job(job: Object) -> Object:
    spec = {name: one for name, one in job["spec"].items() if name != "template"}
    return {**_lean(job), "spec": spec}


def _pod(pod: Object) -> Object:
    """Ours: how it stands. A consumer: as `_consumer` says, or whole where it is its own template."""
    if ROLE not in pod["metadata"]["labels"]:
        return pod if origin_of(pod) is None else _consumer(pod)
    spec = pod.get("spec") or {}
    containers = {
        part: [_only(one, "name", "image", "resources") for one in spec.get(part) or ()]
        for part in ("initContainers", "containers")
    }
    return {
        **_only(pod, "apiVersion", "kind"),
        "metadata": _lean(pod)["metadata"],
        "spec": {
            **_only(spec, "nodeName", "activeDeadlineSeconds"),
            "volumes": _volumes(pod),
            **containers,
        },
        "status": pod.get("status") or {},
    }


def _consumer(pod: Object) -> Object:
    """Who it is, what it was given, where it is and how it stands. Cutting it down again changes nothing."""
    meta, status = _lean(pod)["metadata"], pod.get("status") or {}
    notes = {
        name: one
        for name, one in (meta.get("annotations") or {}).items()
        if name.startswith(f"{GROUP}/")
    }
    devices = [_only(one, "name") for one in (pod.get("spec") or {}).get("resourceClaims") or ()]
    return {
        **_only(pod, "apiVersion", "kind"),
        "metadata": {**meta, "annotations": notes},
        "spec": {
            **_only(pod.get("spec"), "nodeName", "nodeSelector", "schedulingGates"),
            **({"resourceClaims": devices} if devices else {}),
            "volumes": _volumes(pod),
        },
        "status": {
            **_only(status, "phase", "reason", "conditions"),
            **{
                part: [_status(one) for one in status[part]]
                for part in ("initContainerStatuses", "containerStatuses")
                if part in status
            },
        },
    }


def _volumes(pod: Object) -> list[Object]:
    """What it mounts that can be missing or shared: claims, and ConfigMaps by name."""
    kept = ("name", "persistentVolumeClaim", "configMap", "ephemeral")
    return [
        {
            **_only(one, *kept[:2]),
            **{kind: _only(one[kind], "name") for kind in kept[2:] if kind in one},
        }
        for one in (pod.get("spec") or {}).get("volumes") or ()
        if any(kind in one for kind in kept[1:])
    ]


def _status(container: Object) -> Object:
    """How a container stands. What it wrote at its end is kept of ours only: anything may be in it."""
    kept = _only(
        container, "name", "imageID", "ready", "started", "restartCount", "state", "lastState"
    )
    if container["name"] != SEED_CONTAINER:
        for part in ("state", "lastState"):
            if end := (kept.get(part) or {}).get("terminated"):
                kept[part] = {
                    "terminated": {name: one for name, one in end.items() if name != "message"}
                }
    return kept


def _mounts(pod: Object) -> Object:
    volumes = _volumes(pod)
    return {
        "metadata": {"name": pod["metadata"]["name"]},
        "claims": [
            one["persistentVolumeClaim"]["claimName"]
            for one in volumes
            if "persistentVolumeClaim" in one
        ],
        "configMaps": [one["configMap"].get("name", "") for one in volumes if "configMap" in one],
    }


def _event(event: Object) -> Object:
    return _only(
        _lean(event), "metadata", "type", "reason", "message", "count", "lastTimestamp", "eventTime"
    )
