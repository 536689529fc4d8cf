"""Everything that one decision looks at, read live: no cache of ours can be stale, and a restart loses nothing.

Jobs are read before pods: a Job that is seen finished is then never seen beside its pod as it was before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from pretune.api import CACHE, GROUP, KIND, ROLE, VERSION, Object, Refused, Spec, claim_name
from pretune.cluster import ApiError, Cluster, NoSuchKind, metadata
from pretune.manifests.agent import agent
from pretune.model import Key, Observed, Settings, seconds
from pretune.sources import template_of

API = f"{GROUP}/{VERSION}"
EVENTLESS = 5.0  # seconds that a Job may be without a pod before anybody asks why


async def observe(key: Key, cluster: Cluster, settings: Settings, now: float) -> Observed:
    """What is there for a key at `now` (Unix seconds). Raises ApiError, OSError or TimeoutError where a read fails;
    a source that cannot be read is no error, but a Refused in its place."""
    cache, jobs, agents = await asyncio.gather(
        cluster.get(API, KIND, key.namespace, key.name),
        cluster.list("batch/v1", "Job", key.namespace, labels=f"{CACHE}={key.name}", keep=_job),
        cluster.list("v1", "ConfigMap", key.namespace, labels=f"{ROLE}=agent", keep=metadata),
    )
    if cache is None:
        return await _without_cache(key, cluster, settings, jobs, agents)
    spec, current = Spec.of(cache), agent()[0]
    pods, claim, source = await asyncio.gather(
        cluster.list("v1", "Pod", key.namespace, labels=f"{CACHE}={key.name}", keep=_pod),
        cluster.get("v1", "PersistentVolumeClaim", key.namespace, claim_name(key.name, spec)),
        _source(cluster, cache, spec),
    )
    waiting = _waits_for_pod(jobs, pods, now)
    (storage_class, source_claims, agents_named), (claim_events, *job_events) = await asyncio.gather(
        asyncio.gather(
            _storage_class(cluster, claim),
            _source_claims(cluster, key, source),
            _agents_named(cluster, key, any(one["metadata"]["name"] != current for one in agents)),
        ),
        asyncio.gather(*(_events(cluster, one) for one in (claim if _pending(claim) else None, *waiting))),
    )
    return Observed(
        key=key,
        settings=settings,
        agent_name=current,
        cache=_lean(cache),
        source=source,
        source_claims=source_claims,
        claim=_lean(claim) if claim else None,
        storage_class=storage_class,
        claim_events=claim_events,
        jobs=tuple(jobs),
        pods=tuple(pod for pod in pods if ROLE in pod["metadata"]["labels"]),
        consumers=tuple(pod for pod in pods if ROLE not in pod["metadata"]["labels"]),
        job_events={job["metadata"]["uid"]: events for job, events in zip(waiting, job_events, strict=True)},
        agents=tuple(agents),
        agents_named=agents_named,
    )


async def _without_cache(
    key: Key, cluster: Cluster, settings: Settings, jobs: list[Object], agents: list[Object]
) -> Observed:
    """The cache is gone: its claim and the agents are what may be left, and who still uses them."""
    name = f"pretune-{key.name}"
    claim, others = await asyncio.gather(
        cluster.get("v1", "PersistentVolumeClaim", key.namespace, name),
        cluster.list(API, KIND, key.namespace, keep=metadata),
    )
    # Every pod of the namespace, so only where something could be removed: a pod may be labelled with a cache that never was.
    pods = await cluster.list("v1", "Pod", key.namespace, keep=_mounts) if claim or agents else []
    return Observed(
        key=key,
        settings=settings,
        agent_name=agent()[0],
        cache=None,
        claim=_lean(claim) if claim else None,
        jobs=tuple(jobs),
        agents=tuple(agents),
        agents_named=_names(pods, "configMaps"),
        namespace_has_caches=bool(others),
        claim_users=frozenset(pod["metadata"]["name"] for pod in pods if name in pod["claims"]),
    )


async def _source_claims(cluster: Cluster, key: Key, source: Object | Refused | None) -> dict[str, tuple[str, ...]]:
    """Access modes of the claims that a template mounts, by name: those that are there."""
    volumes = [] if source is None or isinstance(source, Refused) else source["spec"].get("volumes") or []
    names = sorted({one["persistentVolumeClaim"]["claimName"] for one in volumes if one.get("persistentVolumeClaim")})
    claims = await asyncio.gather(*(cluster.get("v1", "PersistentVolumeClaim", key.namespace, name) for name in names))
    return {one["metadata"]["name"]: tuple(one["spec"].get("accessModes") or ()) for one in claims if one}


async def _source(cluster: Cluster, cache: Object, spec: Spec) -> Object | Refused | None:
    """The pod template as its author wrote it; Refused, with the object's name, where it cannot be had; None: no source."""
    try:
        if spec.template is not None:
            return template_of(cache)
        if spec.workload_ref is None:
            return None
        return template_of(await _workload(cluster, cache["metadata"]["namespace"], **spec.workload_ref))
    except Refused as refused:
        return refused


async def _workload(cluster: Cluster, namespace: str, apiVersion: str, kind: str, name: str) -> Object:
    named = f"spec.source.workloadRef: {kind} {namespace}/{name}"
    try:
        found = await cluster.get(apiVersion, kind, namespace, name)
    except NoSuchKind as error:
        raise Refused("SourceNotSupported", f"{named}: {error.message}") from None
    except ApiError as error:
        if error.code != 403:
            raise
        raise Refused("SourceForbidden", f"{named}: {error.message}") from None
    if found is None:
        raise Refused("SourceNotFound", f"{named} is not there")
    return {"apiVersion": apiVersion, "kind": kind, **found}


async def _storage_class(cluster: Cluster, claim: Object | None) -> Object | None:
    name = claim["spec"].get("storageClassName") if claim is not None and _pending(claim) else None
    return await cluster.get("storage.k8s.io/v1", "StorageClass", "", name) if name else None


async def _events(cluster: Cluster, about: Object | None) -> tuple[Object, ...]:
    if about is None:
        return ()
    meta = about["metadata"]
    selector = f"involvedObject.uid={meta['uid']}"
    return tuple(await cluster.list("v1", "Event", meta["namespace"], fields=selector, keep=_event))


async def _agents_named(cluster: Cluster, key: Key, wanted: bool) -> frozenset[str]:
    """ConfigMaps that some pod of the namespace mounts; asked only where one could be removed, since it reads every pod."""
    return _names(await cluster.list("v1", "Pod", key.namespace, keep=_mounts), "configMaps") if wanted else frozenset()


def _pending(claim: Object | None) -> bool:
    return claim is not None and claim.get("status", {}).get("phase", "Pending") == "Pending"


def _waits_for_pod(jobs: Iterable[Object], pods: Iterable[Object], now: float) -> list[Object]:
    owners = {owner["uid"] for pod in pods for owner in pod["metadata"].get("ownerReferences") or ()}
    return [
        job
        for job in jobs
        if job["metadata"]["uid"] not in owners
        and not job["spec"].get("suspend")
        and not any(one["status"] == "True" and one["type"] in _OVER for one in _conditions(job))
        and now - seconds(job["metadata"]["creationTimestamp"]) >= EVENTLESS
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
    return {**obj, "metadata": {name: one for name, one in obj["metadata"].items() if name != "managedFields"}}


def _job(job: Object) -> Object:
    spec = {name: one for name, one in job["spec"].items() if name != "template"}
    return {**_lean(job), "spec": spec}


def _pod(pod: Object) -> Object:
    """Ours: how it stands. A consumer: who it is, what it was given, and whether it lives."""
    meta, spec, status = _lean(pod)["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    head = _only(pod, "apiVersion", "kind")
    if ROLE not in meta["labels"]:
        notes = {name: one for name, one in (meta.get("annotations") or {}).items() if name.startswith(GROUP)}
        return {
            **head,
            "metadata": {**meta, "annotations": notes},
            "spec": _only(spec, "nodeName"),
            "status": _only(status, "phase", "conditions"),
        }
    containers = {
        part: [_only(one, "name", "image") for one in spec.get(part) or ()] for part in ("initContainers", "containers")
    }
    return {
        **head,
        "metadata": meta,
        "spec": {**_only(spec, "nodeName", "activeDeadlineSeconds"), **containers},
        "status": status,
    }


def _mounts(pod: Object) -> Object:
    volumes = (pod.get("spec") or {}).get("volumes") or ()
    return {
        "metadata": {"name": pod["metadata"]["name"]},
        "claims": [one["persistentVolumeClaim"]["claimName"] for one in volumes if "persistentVolumeClaim" in one],
        "configMaps": [one["configMap"].get("name", "") for one in volumes if "configMap" in one],
    }


def _event(event: Object) -> Object:
    return _only(event, "metadata", "type", "reason", "message", "count", "lastTimestamp", "eventTime")
