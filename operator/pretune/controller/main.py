"""The controller: kopf says that something happened, the queue says when to look, reconcile does the rest.

kopf's handlers only wake keys. `on.event` writes nothing to any object: no finalizer, no annotation, so that an uninstalled operator
leaves nothing behind that could block a deletion (docs/dev/facts-kubernetes.md).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import kopf
from kubernetes.aio.client.configuration import Configuration

from pretune.api.names import CACHE, GROUP, PLURAL, VERSION
from pretune.api.types import Key
from pretune.config import Installation
from pretune.controller.log_reader import Starts
from pretune.controller.metrics import ControllerMetrics
from pretune.controller.reconcile import free, reconcile
from pretune.controller.triggers import Pods, Watching, named
from pretune.controller.workqueue import Queue
from pretune.health import serve_health
from pretune.kube.client import Kubernetes, load_configuration
from pretune.kube.lease import Lease

log = logging.getLogger(__name__)

PODS = ("", "v1", "pods")  # the many: not watched by kopf, but by watching.Pods
LABELLED = (
    ("batch", "v1", "jobs"),
    PODS,
    ("", "v1", "persistentvolumeclaims"),
)  # watched by our label
STUCK = 30.0  # seconds without a move of the queue after which the lease is left to others
DEAD = 60.0  # seconds without one after which /healthz says so, and the kubelet restarts us


async def run(settings: Installation) -> None:
    """Wait for the lease, then work until SIGTERM or SIGINT. Raises what ended the work otherwise."""
    task = asyncio.current_task()
    assert task is not None
    for sign in (signal.SIGTERM, signal.SIGINT):  # until kopf takes them over
        asyncio.get_running_loop().add_signal_handler(sign, task.cancel)
    async with Kubernetes(await load_configuration()) as cluster:
        queue = Queue(
            lambda key: metrics.timed(
                reconcile(key, cluster, settings.decisions, time.time, metrics, starts)
            ),
            settings.workers,
        )
        watching = Watching(cluster.watch, queue.wake)
        pods = Pods(
            lambda: cluster.watch("v1", "Pod", "", labels=CACHE), queue.wake, partial(free, cluster)
        )
        lease = Lease(cluster, settings.namespace, settings.identity)
        metrics = ControllerMetrics(queue.depth, queue.stuck, lambda: lease.is_held)
        starts = None
        if settings.read_logs:
            starts = Starts(
                cluster.read_log, cluster.get, queue.wake, metrics.start, metrics.unread
            )
        async with serve_health(
            settings.liveness_port, alive=lambda: trouble(queue), metrics=metrics.exposition
        ):
            await lease.acquire()
            try:
                await lead(queue, watching, pods, lease, cluster, starts)
            finally:
                await lease.release()


async def lead(
    queue: Queue,
    watching: Watching,
    pods: Pods,
    lease: Lease,
    cluster: Kubernetes,
    starts: Starts | None = None,
) -> None:
    """Everything that only one replica may do. Whatever ends, all of it ends."""
    async with asyncio.TaskGroup() as group:
        ours = [
            group.create_task(queue.run()),
            group.create_task(watching.run()),
            group.create_task(pods.run()),
            group.create_task(lease.keep_renewing(lambda: queue.stuck() < STUCK)),
            *([group.create_task(starts.run())] if starts is not None else []),
        ]
        registry = handlers(queue, watching, cluster)

        # At its end kopf waits for every task that was started after it: those of ours have to end first.
        @kopf.on.cleanup(registry=registry)
        async def stop(**_: Any) -> None:
            for one in ours:
                one.cancel()

        group.create_task(
            kopf.operator(
                registry=registry, settings=kopf_settings(), clusterwide=True, standalone=True
            )
        )


def handlers(queue: Queue, watching: Watching, cluster: Kubernetes) -> kopf.OperatorRegistry:
    """What wakes a key. kopf's first list tells of everything that is there already, claims without a cache included."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return connection(await load_configuration())

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def cache(event: Mapping[str, Any], namespace: str | None, name: str, **_: Any) -> None:
        key = Key(namespace or "", name)
        gone = event["type"] == "DELETED"
        watching.follow(key, () if gone else named(event["object"]))
        if gone:
            cluster.forget_writes(event["object"])
        if gone or not cluster.is_own_write(event["object"]):
            queue.wake(
                key, urgent=event["type"] is not None
            )  # a person's edit may let pods go; a start's list may be long

    async def part(namespace: str | None, labels: Mapping[str, str], **_: Any) -> None:
        if name := labels[CACHE]:  # a label's value may be empty: no cache has that name
            queue.wake(Key(namespace or "", name))

    for kind in LABELLED:
        if kind != PODS:
            kopf.on.event(*kind, registry=registry)(part)
    return registry


def kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # Events are decided (model.Event), not made of log lines
    settings.scanning.disabled = (
        True  # our kinds are installed with us, and namespaces are not looked at one by one
    )
    settings.watching.chunk_size = 500
    for kind in LABELLED:
        settings.watching.label_selectors[kind] = (
            CACHE  # on the server: a handler's filter would still read everything
        )
    settings.queueing.idle_timeout = (
        0.5  # seconds that kopf keeps a task for an object after its last event
    )
    settings.queueing.exit_timeout = 0.5
    # Never written, since no handler of ours keeps a state on an object; ours, should one ever be.
    settings.persistence.finalizer = f"{GROUP}/finalizer"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"kopf.{GROUP}")
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=f"kopf.{GROUP}")
    return settings


def connection(config: Configuration) -> kopf.ConnectionInfo:
    """The same cluster and identity for kopf. It asks again when the API server answers 401: by then the token is renewed."""
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


def trouble(queue: Queue) -> str:
    """What /healthz says; kopf's own is not there while we wait for the lease."""
    stuck = queue.stuck()
    return "" if stuck < DEAD else f"the queue has not moved for {stuck:.0f} s"
