"""The controller: kopf reports events, the queue decides when to look, reconcile does the rest.

kopf's handlers only wake keys. `on.event` writes nothing to any object: no finalizer and no
annotation, so that an uninstalled operator leaves nothing behind that could block a deletion
(docs/dev/facts-kubernetes.md).
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any

import aiohttp
import kopf
from kubernetes.aio.client.configuration import Configuration

from pretune.api.names import CACHE, GROUP, KIND, PLURAL, ROLE, VERSION
from pretune.api.types import Key
from pretune.config import ControllerSettings
from pretune.controller import project
from pretune.controller.log_reader import LogReader
from pretune.controller.metrics import ControllerMetrics
from pretune.controller.pod_watcher import PodWatcher
from pretune.controller.reconcile import reconcile, release_orphaned_pods
from pretune.controller.reference_watcher import ReferenceWatcher, find_references
from pretune.controller.release_refusals import ReleaseRefusals
from pretune.controller.workqueue import Queue
from pretune.health import serve_health
from pretune.kube.bounded_response import BoundedResponse
from pretune.kube.client import METADATA, METADATA_LIST, Kubernetes, load_configuration
from pretune.kube.lease import Lease
from pretune.kube.types import ALL_NAMESPACES, UNREADABLE_CODES, ApiError, metadata_only
from pretune.kube.watch import watch_namespaces
from pretune.policy.bundles.turns import AttemptLedger
from pretune.policy.objects import label
from pretune.policy.plan_builder import ATTEMPT_ROLES
from pretune.policy.pod_status import is_job_finished, is_suspended

log = logging.getLogger(__name__)

# What kopf watches by our label, beside every cache. Pods are too many: pod_watcher has them.
LABELLED_KINDS = (("batch", "v1", "jobs"), ("", "v1", "persistentvolumeclaims"))

KOPF_PAGE_SIZE = 50  # objects: the metadata of one may be 300 KiB

# For a namespace of controller.namespaces that cannot be read at the start, and later.
NAMESPACE_TRIES, NAMESPACE_PAUSE_SECONDS = 5, 2.0
LEFT_OUT_RECHECK_SECONDS = 30.0

# While keys wait and none begins or ends: the lease is left to another replica, and later
# /healthz fails, so that the kubelet restarts us.
LEASE_STUCK_SECONDS = 30.0
HEALTH_STUCK_SECONDS = 60.0


class NamespaceReadableError(Exception):
    """A namespace that was left out can be read: it is taken up by a new start."""


async def run(settings: ControllerSettings) -> None:
    """Wait for the lease, then work until SIGTERM or SIGINT. Raises what else ended the work."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):  # until kopf handles them
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with Kubernetes(await load_configuration()) as cluster:
        namespaces = await find_namespaces(cluster, settings.namespaces)

        async def run_key(key: Key) -> float | None:
            if not key.name:
                places = [key.namespace] if key.namespace else namespaces
                await release_orphaned_pods(cluster, places)
                return None
            return await reconcile(
                key,
                cluster,
                settings.decisions,
                cluster.now,
                metrics,
                log_reader,
                lambda cache: references.set_references(key, find_references(cache)),
                ledger,
                refusals,
            )

        queue = Queue(lambda key: metrics.time_reconcile(run_key(key)), settings.workers)
        ledger = AttemptLedger(
            settings.max_concurrent_attempts, lambda key: queue.wake(key, urgent=True)
        )
        refusals = ReleaseRefusals()
        references = ReferenceWatcher(cluster.watch, queue.wake, namespaces)
        pods = PodWatcher(
            lambda: watch_namespaces(
                lambda namespace: cluster.watch("v1", "Pod", namespace, labels=CACHE), namespaces
            ),
            queue.wake,
        )
        lease = Lease(cluster, settings.namespace, settings.identity)
        metrics = ControllerMetrics(
            queue.depth,
            queue.stuck_seconds,
            lambda: lease.is_held,
            queue.waits,
            lambda: ledger.running,
            lambda: ledger.waiting,
        )
        log_reader = None
        if settings.read_logs:
            log_reader = LogReader(
                cluster.read_log,
                cluster.get,
                queue.wake,
                metrics.count_start,
                metrics.count_read_failure,
            )
        async with serve_health(
            settings.liveness_port, alive=lambda: find_problem(queue), metrics=metrics.expose
        ):
            await lease.acquire()
            try:
                await load_attempts(ledger, cluster, namespaces)
                more = [log_reader.run()] if log_reader is not None else []
                if settings.webhook:
                    more.append(issue_certificates(cluster, settings))
                left_out = [name for name in settings.namespaces if name not in namespaces]
                more.append(wait_for_namespaces(cluster, left_out))
                await run_as_leader(
                    queue, references, pods, lease, cluster, ledger, more, namespaces
                )
            finally:
                await lease.release()


async def run_as_leader(
    queue: Queue,
    references: ReferenceWatcher,
    pods: PodWatcher,
    lease: Lease,
    cluster: Kubernetes,
    ledger: AttemptLedger,
    more: Iterable[Coroutine[Any, Any, None]] = (),
    namespaces: Sequence[str] = ALL_NAMESPACES,
) -> None:
    """Run everything that only one replica may do. When one part ends, all of it ends."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(queue.run()),
            group.create_task(references.run()),
            group.create_task(pods.run()),
            group.create_task(
                lease.keep_renewing(lambda: queue.stuck_seconds() < LEASE_STUCK_SECONDS)
            ),
            *(group.create_task(part) for part in more),
        ]
        registry = build_registry(queue, references, cluster, ledger)

        # At its end kopf waits for every task that was started after it: ours have to end first.
        @kopf.on.cleanup(registry=registry)
        async def stop(**_: Any) -> None:
            for task in tasks:
                task.cancel()

        group.create_task(
            kopf.operator(
                registry=registry,
                settings=kopf_settings(),
                clusterwide=namespaces == ALL_NAMESPACES,
                namespaces=[name for name in namespaces if name],
                standalone=True,
            )
        )


async def find_namespaces(cluster: Kubernetes, names: Sequence[str]) -> Sequence[str]:
    """Return the namespaces to work in: those of these names that can be read, or all (no names).

    One that was deleted must not stop the others, and kopf ends when it may not read one. New
    rights take a moment. Raises ApiError if none can be read.
    """
    if not names:
        return ALL_NAMESPACES
    readable: list[str] = []
    for tries_left in reversed(range(NAMESPACE_TRIES)):
        for name in [name for name in names if name not in readable]:
            try:
                await cluster.list(f"{GROUP}/{VERSION}", KIND, name, project=metadata_only)
                readable.append(name)
            except ApiError as error:
                if error.code not in UNREADABLE_CODES or (not tries_left and not readable):
                    raise
                if not tries_left:
                    log.warning("namespace %s is left out until it can be read: %s", name, error)
        if len(readable) == len(names):
            break
        await asyncio.sleep(NAMESPACE_PAUSE_SECONDS)
    return tuple(readable)


async def wait_for_namespaces(cluster: Kubernetes, names: Sequence[str]) -> None:
    """Raise NamespaceReadableError once one of these namespaces can be read; no names: return.

    The webhook takes it up within a minute, and may hold pods there: only we release them.
    """
    while names:
        await asyncio.sleep(LEFT_OUT_RECHECK_SECONDS)
        for name in names:
            try:
                await cluster.list(f"{GROUP}/{VERSION}", KIND, name, project=metadata_only)
            except (ApiError, OSError, TimeoutError) as error:
                log.debug("namespace %s is still left out: %s", name, error)
                continue
            raise NamespaceReadableError(f"namespace {name} can be read, and is taken up")


async def load_attempts(
    ledger: AttemptLedger, cluster: Kubernetes, namespaces: Sequence[str] = ALL_NAMESPACES
) -> None:
    """Tell the ledger which attempts and proofs run, before any reconcile may start another one.

    Raises as the cluster does.
    """
    labels = f"{CACHE},{ROLE} in ({','.join(sorted(ATTEMPT_ROLES))})"
    lists = [
        await cluster.list("batch/v1", "Job", namespace, labels=labels, project=project.job)
        for namespace in namespaces
    ]
    ledger.load(
        (Key(job["metadata"]["namespace"], label(job, CACHE)), job["metadata"]["name"])
        for jobs in lists
        for job in jobs
        if not is_job_finished(job) and not is_suspended(job)
    )


async def issue_certificates(cluster: Kubernetes, settings: ControllerSettings) -> None:
    """Keep the webhook's certificate current, until cancelled."""
    # Its library takes some MiB in image and memory: it is imported only where it is used.
    from pretune.controller.certificates import CertificateIssuer

    await CertificateIssuer(
        cluster, settings.namespace, settings.webhook, settings.certificate_days
    ).run()


def build_registry(
    queue: Queue, references: ReferenceWatcher, cluster: Kubernetes, ledger: AttemptLedger
) -> kopf.OperatorRegistry:
    """Return kopf's handlers, which wake keys, and report Jobs that have ended to the ledger.

    kopf begins with every object that exists already, claims without a cache included.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        return kopf_session(kopf_connection(await load_configuration()))

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def on_cache_event(
        event: Mapping[str, Any], namespace: str | None, name: str, **_: Any
    ) -> None:
        key = Key(namespace or "", name)
        deleted = event["type"] == "DELETED"
        if deleted:
            references.set_references(key, ())
            cluster.forget_writes(event["object"])
        if deleted or not cluster.is_own_write(event["object"]):
            # An edit may release pods, so it is urgent; the first list, without a type, is long.
            queue.wake(key, urgent=event["type"] is not None)

    async def on_labelled_event(
        event: Mapping[str, Any],
        namespace: str | None,
        name: str,
        labels: Mapping[str, str],
        **_: Any,
    ) -> None:
        if not labels[CACHE]:  # a label's value may be empty: no cache has that name
            return
        key = Key(namespace or "", labels[CACHE])
        if event["type"] == "DELETED":
            ledger.end(key, name)  # a claim, which is no Job, is unknown to it
        queue.wake(key)

    for kind in LABELLED_KINDS:
        kopf.on.event(*kind, registry=registry)(on_labelled_event)
    return registry


def kopf_settings() -> kopf.OperatorSettings:
    """Return how kopf watches, and that it writes nothing."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # Events are decided (kube.types.Event), not made of log lines
    # Our kinds are installed with us, and namespaces are not watched one by one.
    settings.scanning.disabled = True
    settings.watching.chunk_size = KOPF_PAGE_SIZE
    for kind in LABELLED_KINDS:
        # By the API server: with a handler's filter kopf would still read every object.
        settings.watching.label_selectors[kind] = CACHE
    # Seconds that kopf keeps a task for an object after its last event, and waits at its own end.
    settings.queueing.idle_timeout = 0.5
    settings.queueing.exit_timeout = 0.5
    # Never written, since no handler of ours keeps a state on an object; ours, should one ever be.
    settings.persistence.finalizer = f"{GROUP}/finalizer"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"kopf.{GROUP}")
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=f"kopf.{GROUP}")
    return settings


def kopf_connection(config: Configuration) -> kopf.ConnectionInfo:
    """Return the same cluster and identity for kopf.

    kopf asks again when the API server answers 401: by then the token is renewed.
    """
    scheme, _, token = config.api_key.get("BearerToken", "").partition(" ")
    return kopf.ConnectionInfo(
        server=config.host,
        ca_path=config.ssl_ca_cert,
        insecure=not config.verify_ssl,
        scheme=scheme.capitalize() or None,
        token=token.strip() or None,
        certificate_path=config.cert_file,
        private_key_path=config.key_file,
        proxy_url=config.proxy,
    )


def kopf_session(info: kopf.ConnectionInfo) -> kopf.AiohttpSession:
    """Return kopf's session, which reads metadata only: kopf itself reads each object whole.

    An event wakes a key, for which a name and labels are enough. A page of 50 caches may be 75 MiB,
    and parsed several times as much. kopf closes the session.
    """
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers=info.as_http_headers(),
        proxy=info.proxy_url,
        middlewares=(ask_for_metadata,),
        response_class=MetadataResponse,
    )
    return kopf.AiohttpSession(server=info.server, aiohttp_session=session)


class MetadataResponse(BoundedResponse):
    """An answer in which an empty list of metadata is a list: the API server writes null."""

    async def json(self, **how: Any) -> Any:
        """Return the body as JSON."""
        answer = await super().json(**how)
        if isinstance(answer, dict) and "items" in answer:
            answer["items"] = answer["items"] or []
        return answer


async def ask_for_metadata(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Have a list or a watch answered with metadata. Other requests are answered as always."""
    request.headers["Accept"] = METADATA if "watch" in request.url.query else METADATA_LIST
    return await handler(request)


def find_problem(queue: Queue) -> str:
    """Return what is wrong, for /healthz, or "" while all is well.

    kopf has a /healthz too, but not while we wait for the lease.
    """
    stuck = queue.stuck_seconds()
    return "" if stuck < HEALTH_STUCK_SECONDS else f"the queue has not moved for {stuck:.0f} s"
