"""Read everything that one decision depends on, live: no cache of ours can be stale, and a restart
loses nothing.

Jobs are read before pods: a Job that is seen finished is then never seen beside its pod as it was
before.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

from pretune.api import reasons
from pretune.api.names import BUNDLE, CACHE, DELIVERY, GROUP, KIND, ROLE, SEALED, VERSION
from pretune.api.reasons import Refused
from pretune.api.spec import Spec, claim_name
from pretune.api.status import CacheStatus
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Key, Object
from pretune.config import Settings
from pretune.controller import project
from pretune.intake import EXCESS
from pretune.kube.types import UNREADABLE_CODES, ApiError, Cluster, NoSuchKind, metadata_only
from pretune.manifests.agent_archive import agent_name, is_agent
from pretune.manifests.gate import is_held
from pretune.origin import read_origin, without_template
from pretune.podspec import identity
from pretune.podspec.source import template_of
from pretune.podspec.workloads import has_revisions, origin_key, origin_of
from pretune.policy.bundles.attempt_state import (
    POD_GRACE_SECONDS,
    VOLUME_GRACE_SECONDS,
    lacks_volumes,
)
from pretune.policy.bundles.engine_volumes import is_for_one_node
from pretune.policy.model import Observed, Origin
from pretune.policy.objects import owner_uid
from pretune.policy.pod_status import is_finished, is_job_finished, is_suspended
from pretune.policy.pods.start_failures import needs_events

API_VERSION = f"{GROUP}/{VERSION}"
DEVICE_VERSIONS = ("resource.k8s.io/v1", "resource.k8s.io/v1beta2", "resource.k8s.io/v1beta1")
MAX_DEVICE_CLAIMS = 8  # of a cache's templates that are read in one reconcile
MAX_TEMPLATES_CHARACTERS = 16 << 20  # of the templates of a cache's pods, as JSON
ORIGINS_AT_A_TIME = 16
MAX_EXAMPLES = 64  # whole pods
# Whose events are read in one reconcile: of a cache's consumers, of its Jobs, of the Jobs' pods.
MAX_SUSPECTS = 5
MAX_CLAIM_GETS = 8  # of a cache's templates; more are read by one list of the namespace's claims
MAX_CHECKED_AGENTS = 10_000  # one for each namespace; the oldest is forgotten

# Of each cluster: the ConfigMaps that hold this release's agent, by uid and resourceVersion, which
# name one content. So their 200 KB are read once, and not in each reconcile.
_checked_agents: WeakKeyDictionary[Cluster, dict[tuple[str, str], None]] = WeakKeyDictionary()


async def observe(
    key: Key,
    cluster: Cluster,
    settings: Settings,
    now: float,
    watch_named: Callable[[Object], None] = lambda cache: None,
) -> Observed:
    """Return what is there for a key at `now` (Unix seconds).

    watch_named: called with the cache before what its spec names is read, so that no change of
    that is missed.

    Raises ApiError, OSError or TimeoutError where a read fails. A source or an owner that cannot be
    read is no error: a Refused stands in its place.
    """
    cache, jobs, agents = await asyncio.gather(
        cluster.get(API_VERSION, KIND, key.namespace, key.name),
        cluster.list(
            "batch/v1", "Job", key.namespace, labels=f"{CACHE}={key.name}", project=project.job
        ),
        cluster.list(
            "v1", "ConfigMap", key.namespace, labels=f"{ROLE}=agent", project=metadata_only
        ),
    )
    if cache is None:
        return await _observe_without_cache(key, cluster, settings, jobs, agents, now)
    watch_named(cache)
    spec, current_agent = Spec.from_cache(cache), agent_name()
    labelled, claim, (source, workload), foreign_agent = await asyncio.gather(
        cluster.list(
            "v1",
            "Pod",
            key.namespace,
            labels=f"{CACHE}={key.name}",
            project=project.PodProjection(),
        ),
        cluster.get("v1", "PersistentVolumeClaim", key.namespace, claim_name(key.name, spec)),
        _read_source(cluster, cache, spec),
        _find_foreign_agent(cluster, key, agents, current_agent),
    )
    pods = [pod for pod in labelled if ROLE in pod["metadata"]["labels"]]
    own_jobs = [job for job in jobs if owner_uid(job) == cache["metadata"]["uid"]]
    consumers = [pod for pod in labelled if ROLE not in pod["metadata"]["labels"]]
    newest = _newest_by_origin(consumers)
    source_is_workload = has_revisions((spec.workload_ref or {}).get("kind", ""))
    (
        storage_class,
        agents_named,
        origins,
        claim_events,
        job_events,
        pod_events,
    ) = await asyncio.gather(
        _read_storage_class(cluster, claim),
        _find_agents_named(cluster, key, agents, current_agent, labelled),
        _read_origins(cluster, key, newest, workload=not source_is_workload),
        _read_events(cluster, claim) if claim and _is_pending(claim) else _no_events(),
        _read_events_by_uid(cluster, _choose(_jobs_with_news(own_jobs, pods, now), now)),
        _read_events_by_uid(
            cluster,
            [
                *_choose_suspects(consumers, now),
                *_choose(_pods_without_volumes(own_jobs, pods, now), now),
            ],
        ),
    )
    sealed = {
        bundle.id for bundle in CacheStatus.from_cache(cache).bundles if bundle.state == SEALED
    }
    untuned = {
        name: origin
        for name, origin in origins.items()
        if _needs_tuning(origin.template, spec, sealed)
    }
    templates = [source] if _needs_tuning(source, spec, sealed) else []
    templates += [origin.template for origin in untuned.values()]
    source_claims, device_claims, examples = await asyncio.gather(
        _read_source_claims(cluster, key, templates),
        _read_device_claims(cluster, key, templates),
        _read_examples(cluster, key, {name: newest[name] for name in untuned}),
    )
    claim_nodes = await _read_claim_nodes(cluster, key, source_claims)
    return Observed(
        key=key,
        settings=settings,
        agent_name=current_agent,
        cache=project.without_managed_fields(cache),
        source=source,
        source_workload=workload,
        source_claims=source_claims,
        device_claims=device_claims,
        claim_nodes=claim_nodes,
        claim=project.without_managed_fields(claim) if claim else None,
        storage_class=storage_class,
        claim_events=claim_events,
        jobs=tuple(jobs),
        pods=tuple(pods),
        consumers=tuple(project.consumer(pod) for pod in consumers),
        origins=origins,
        examples=examples,
        pod_events=pod_events,
        job_events=job_events,
        agents=tuple(agents),
        agents_named=agents_named,
        foreign_agent=foreign_agent,
    )


async def _observe_without_cache(
    key: Key,
    cluster: Cluster,
    settings: Settings,
    jobs: list[Object],
    agents: list[Object],
    now: float,
) -> Observed:
    """Return what a deleted cache may have left, and which pods still use it.

    That is its claim, the agents, and pods that have not started. Few reads where there is nothing
    left: a pod may have the label of a cache that never existed, and change every second.
    """
    name, current_agent = f"pretune-{key.name}", agent_name()
    claim, other_caches, pending = await asyncio.gather(
        cluster.get("v1", "PersistentVolumeClaim", key.namespace, name),
        cluster.list(API_VERSION, KIND, key.namespace, project=project.storage),
        _list_pending_consumers(key, cluster),
    )
    with_bundle = [
        pod
        for pod in pending
        if BUNDLE in (pod["metadata"].get("annotations") or {}) and not is_held(pod)
    ]
    pod_events = await _read_events_by_uid(cluster, _choose_suspects(with_bundle, now))
    pods: list[Object] = []
    if claim or any(
        not other_caches or config_map["metadata"]["name"] != current_agent for config_map in agents
    ):
        pods = await cluster.list("v1", "Pod", key.namespace, project=project.mounts)
    return Observed(
        key=key,
        settings=settings,
        agent_name=current_agent,
        cache=None,
        claim=project.without_managed_fields(claim) if claim else None,
        jobs=tuple(jobs),
        agents=tuple(agents),
        agents_named=_config_maps_of(pods),
        namespace_has_caches=bool(other_caches),
        held=tuple(pod for pod in pending if is_held(pod)),
        consumers=tuple(with_bundle),
        pod_events=pod_events,
        claim_caches=frozenset(
            cache["metadata"]["name"] for cache in other_caches if cache["existingClaim"] == name
        ),
        claim_users=frozenset(pod["metadata"]["name"] for pod in pods if name in pod["claims"]),
    )


# --- consumers


async def list_held_pods(key: Key, cluster: Cluster) -> tuple[Object, ...]:
    """Return the held consumers of a key.

    Also where the cache of that key does not exist. The API server leaves out pods with a node.
    """
    pods = await _list_pending_consumers(key, cluster, "spec.nodeName=,")
    return tuple(pod for pod in pods if is_held(pod))


async def _list_pending_consumers(key: Key, cluster: Cluster, fields: str = "") -> list[Object]:
    return await cluster.list(
        "v1",
        "Pod",
        key.namespace,
        labels=f"{CACHE}={key.name},!{ROLE}",
        fields=f"{fields}status.phase=Pending",
        project=project.consumer,
    )


def _newest_by_origin(consumers: Iterable[Object]) -> dict[str, Object]:
    """Return the newest living pod of each origin, by origin key.

    A pod that the webhook has seen comes before one that it has not. A pod that has ended, or is
    being deleted, needs no bundle any more: its origin is not read for its sake.
    """
    newest: dict[str, Object] = {}
    for pod in sorted(consumers, key=_age_order):
        if not is_finished(pod) and "deletionTimestamp" not in pod["metadata"]:
            newest[origin_key(pod)] = pod
    return newest


def _age_order(pod: Object) -> tuple[bool, str, str]:
    meta = pod["metadata"]
    return DELIVERY in (meta.get("annotations") or {}), meta["creationTimestamp"], meta["name"]


async def _read_origins(
    cluster: Cluster, key: Key, newest: Mapping[str, Object], workload: bool
) -> dict[str, Origin]:
    """Return the origin of each pod, by origin key. workload: whether the one above is read too."""
    found: dict[str, Origin] = {}
    left = MAX_TEMPLATES_CHARACTERS
    # The newest first, in groups: all of them could take the event loop, or the memory.
    keys = list(newest)[::-1]
    for begin in range(0, len(keys), ORIGINS_AT_A_TIME):
        names = keys[begin : begin + ORIGINS_AT_A_TIME]
        origins = await asyncio.gather(
            *(
                read_origin(cluster, key.namespace, newest[name], workload=workload)
                for name in names
            )
        )
        for name, origin in zip(names, origins, strict=True):
            left -= len(json.dumps(origin.template)) if isinstance(origin.template, dict) else 0
            found[name] = origin if left >= 0 else replace(origin, template=_TOO_MANY)
        await asyncio.sleep(0)
    return {name: found[name] for name in newest}


_TOO_MANY = Refused(
    reasons.TOO_LARGE,
    f"the templates of the cache's pods have more than {MAX_TEMPLATES_CHARACTERS >> 20} MiB"
    " together: only the newest are read",
)


def _needs_tuning(template: Object | Refused | None, spec: Spec, sealed: Collection[str]) -> bool:
    """Whether a template needs a bundle whose id is not among the sealed ones.

    A template whose bundles cannot be computed needs none.
    """
    if template is None or isinstance(template, Refused):
        return False
    try:
        engine = identity.fingerprint(template, spec.engine_container)
    except Refused:
        return False
    return any(
        identity.inputs_of(engine, template, spec, target).bundle_id() not in sealed
        for target in spec.targets
    )


async def _read_examples(
    cluster: Cluster, key: Key, pods: Mapping[str, Object]
) -> dict[str, Object]:
    """Return these pods whole, by origin key, without those that are gone.

    Of many, the newest.
    """
    pods = dict(list(pods.items())[-MAX_EXAMPLES:])
    examples = await asyncio.gather(*(_read_whole(cluster, key, pod) for pod in pods.values()))
    return {name: pod for name, pod in zip(pods, examples, strict=True) if pod is not None}


async def _read_whole(cluster: Cluster, key: Key, pod: Object) -> Object | None:
    """Return the whole pod; None where it is gone, or another pod has its name."""
    if origin_of(pod) is None:  # its own template: not cut down
        return pod
    whole = await cluster.get("v1", "Pod", key.namespace, pod["metadata"]["name"])
    if whole is None or whole["metadata"]["uid"] != pod["metadata"]["uid"] or EXCESS in whole:
        return None
    return whole


def _choose_suspects(consumers: Iterable[Object], now: float) -> list[Object]:
    """Return pods whose events may say why they do not start."""
    return _choose([pod for pod in consumers if needs_events(pod, now)], now)


def _choose(objects: list[Object], now: float) -> list[Object]:
    """Return the objects; where there are many, some of them: others at each reconcile."""
    if len(objects) <= MAX_SUSPECTS:
        return objects
    return random.Random(now).sample(objects, MAX_SUSPECTS)


# --- source


async def _read_source(
    cluster: Cluster, cache: Object, spec: Spec
) -> tuple[Object | Refused | None, Object | None]:
    """Return the source's pod template as its author wrote it, and the workload that has it.

    Refused, with the object's name, where the template cannot be read. None: there is no source.
    """
    workload = None
    try:
        if spec.template is not None:
            return template_of(cache), None
        if spec.workload_ref is None:
            return None, None
        whole = await _read_workload(cluster, cache["metadata"]["namespace"], **spec.workload_ref)
        workload = without_template(whole)
        return template_of(whole), workload
    except Refused as refused:
        return refused, workload


async def _read_workload(
    cluster: Cluster,
    namespace: str,
    apiVersion: str,
    kind: str,
    name: str,
) -> Object:
    ref = f"spec.source.workloadRef: {kind} {namespace}/{name}"
    try:
        workload = await cluster.get(apiVersion, kind, namespace, name)
    except NoSuchKind as error:
        raise Refused(reasons.SOURCE_NOT_SUPPORTED, f"{ref}: {error.message}") from None
    except ApiError as error:
        if error.code != 403:
            raise
        raise Refused(reasons.SOURCE_FORBIDDEN, f"{ref}: {error.message}") from None
    if workload is None:
        raise Refused(reasons.SOURCE_NOT_FOUND, f"{ref} does not exist")
    return {"apiVersion": apiVersion, "kind": kind, **workload}


async def _read_source_claims(
    cluster: Cluster, key: Key, templates: Iterable[Object | Refused | None]
) -> dict[str, tuple[str, ...]]:
    """Return the access modes of the claims that templates mount, by name, of those that exist.

    A template may mount hundreds.
    """
    names = {
        volume["persistentVolumeClaim"]["claimName"]
        for template in templates
        if template is not None and not isinstance(template, Refused)
        for volume in template["spec"].get("volumes") or ()
        if volume.get("persistentVolumeClaim")
    }
    api_version, kind = "v1", "PersistentVolumeClaim"
    if len(names) > MAX_CLAIM_GETS:
        claims = await cluster.list(api_version, kind, key.namespace, project=project.access_modes)
    else:
        found = await asyncio.gather(
            *(cluster.get(api_version, kind, key.namespace, name) for name in sorted(names))
        )
        claims = [project.access_modes(claim) for claim in found if claim]
    return {
        claim["metadata"]["name"]: tuple(claim["accessModes"])
        for claim in claims
        if claim["metadata"]["name"] in names
    }


async def _read_device_claims(
    cluster: Cluster, key: Key, templates: Iterable[Object | Refused | None]
) -> dict[str, Object]:
    """Return the ResourceClaimTemplates that templates name, by name, of those that can be read."""
    names = {
        claim["resourceClaimTemplateName"]
        for template in templates
        if template is not None and not isinstance(template, Refused)
        for claim in template["spec"].get("resourceClaims") or ()
        if claim.get("resourceClaimTemplateName")
    }
    claims = {}
    for name in sorted(names)[:MAX_DEVICE_CLAIMS]:
        for version in DEVICE_VERSIONS:
            try:
                found = await cluster.get(version, "ResourceClaimTemplate", key.namespace, name)
            except ApiError as error:  # not of this version, or forbidden: then it is unknown
                if error.code not in UNREADABLE_CODES:
                    raise
                continue
            if found is not None:
                claims[name] = found
                break
    return claims


async def _read_claim_nodes(
    cluster: Cluster, key: Key, claims: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Return the nodes of the pods that use a claim, of claims for the pods of one node only."""
    names = {name for name, modes in claims.items() if is_for_one_node(modes)}
    if not names:
        return {}
    pods = await cluster.list("v1", "Pod", key.namespace, project=project.claim_user)
    return {
        name: tuple(sorted({pod["node"] for pod in pods if pod["node"] and name in pod["claims"]}))
        for name in names
    }


# --- claim, events, agents


async def _read_storage_class(cluster: Cluster, claim: Object | None) -> Object | None:
    """Return the StorageClass of a claim that is pending."""
    if claim is None or not _is_pending(claim):
        return None
    name = claim["spec"].get("storageClassName")
    return await cluster.get("storage.k8s.io/v1", "StorageClass", "", name) if name else None


def _is_pending(claim: Object) -> bool:
    return bool(claim.get("status", {}).get("phase", "Pending") == "Pending")


async def _no_events() -> tuple[Object, ...]:
    return ()


async def _read_events(cluster: Cluster, about: Object) -> tuple[Object, ...]:
    """Return the events about an object."""
    meta = about["metadata"]
    selector = f"involvedObject.uid={meta['uid']}"
    return tuple(
        await cluster.list("v1", "Event", meta["namespace"], fields=selector, project=project.event)
    )


async def _read_events_by_uid(
    cluster: Cluster, objects: Sequence[Object]
) -> dict[str, tuple[Object, ...]]:
    """Return the events about each object, by its uid."""
    events = await asyncio.gather(*(_read_events(cluster, about) for about in objects))
    return {about["metadata"]["uid"]: found for about, found in zip(objects, events, strict=True)}


def _jobs_with_news(jobs: Iterable[Object], pods: Iterable[Object], now: float) -> list[Object]:
    """Return the Jobs whose events say why they have no pod.

    They are suspended (Kueue has taken their place), or should have a pod by now and have none.
    """
    owners = {
        owner["uid"] for pod in pods for owner in pod["metadata"].get("ownerReferences") or ()
    }
    return [
        job
        for job in jobs
        if not is_job_finished(job)
        and (is_suspended(job) or job["metadata"]["uid"] not in owners)
        and now - parse_timestamp(job["metadata"]["creationTimestamp"]) >= POD_GRACE_SECONDS
    ]


def _pods_without_volumes(
    jobs: Iterable[Object], pods: Iterable[Object], now: float
) -> list[Object]:
    """Return the Jobs' pods that should have their volumes by now."""
    uids = {job["metadata"]["uid"] for job in jobs}
    return [
        pod
        for pod in pods
        if owner_uid(pod) in uids
        and lacks_volumes(pod)
        and now - parse_timestamp(pod["metadata"]["creationTimestamp"]) >= VOLUME_GRACE_SECONDS
    ]


async def _find_agents_named(
    cluster: Cluster,
    key: Key,
    agents: Sequence[Object],
    current_agent: str,
    labelled: Iterable[Object],
) -> frozenset[str]:
    """Return the names of the ConfigMaps that some pod of the namespace mounts.

    The namespace's pods are only read where an old agent could be removed and this cache's own pods
    do not mount it: after an upgrade old pods may serve for weeks.
    """
    old = {config_map["metadata"]["name"] for config_map in agents} - {current_agent}
    named = _config_maps_of(map(project.mounts, labelled))
    if old <= named:
        return named
    pods = await cluster.list("v1", "Pod", key.namespace, project=project.mounts)
    return named | _config_maps_of(pods)


async def _find_foreign_agent(
    cluster: Cluster, key: Key, agents: Iterable[Object], current_agent: str
) -> Object | None:
    """Return the ConfigMap of the agent's name if it does not hold this release's agent.

    It may lack our label.
    """
    checked = _checked_agents.setdefault(cluster, {})
    for config_map in agents:
        if config_map["metadata"]["name"] == current_agent and _version(config_map) in checked:
            return None
    fields = f"metadata.name={current_agent}"
    for config_map in await cluster.list("v1", "ConfigMap", key.namespace, fields=fields):
        if not is_agent(config_map):
            return metadata_only(config_map)
        checked[_version(config_map)] = None
        if len(checked) > MAX_CHECKED_AGENTS:
            del checked[next(iter(checked))]
    return None


def _version(obj: Object) -> tuple[str, str]:
    return obj["metadata"]["uid"], obj["metadata"]["resourceVersion"]


def _config_maps_of(pods: Iterable[Object]) -> frozenset[str]:
    return frozenset(name for pod in pods for name in pod["configMaps"])
