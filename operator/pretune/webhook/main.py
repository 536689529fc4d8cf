"""The webhook's process."""

from __future__ import annotations

import asyncio
import logging
import signal
import time

from pretune.config import WebhookSettings
from pretune.health import serve_health
from pretune.kube.client import Kubernetes, load_configuration
from pretune.kube.types import ALL_NAMESPACES
from pretune.manifests.agent_archive import agent_name
from pretune.webhook.admission import Admission
from pretune.webhook.certificates import CertificateWatcher
from pretune.webhook.informers import CacheInformer, LeaseMonitor, watch_caches, watch_lease
from pretune.webhook.metrics import WebhookMetrics
from pretune.webhook.server import PATH, bound_connections, build_application, serve
from pretune.webhook.template_cache import TemplateCache

log = logging.getLogger(__name__)


async def run(settings: WebhookSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises CertificateError, and whatever else ended the work."""
    stop = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, stop.set)
    bound_connections()
    certificates = CertificateWatcher(settings.certificates, settings.client_ca)
    caches, controller = CacheInformer(time.monotonic), LeaseMonitor(time.monotonic)
    async with Kubernetes(await load_configuration()) as cluster, asyncio.TaskGroup() as group:
        watches = [
            group.create_task(watch_caches(cluster, caches, settings.namespaces or ALL_NAMESPACES)),
            group.create_task(watch_lease(cluster, settings.namespace, controller)),
            group.create_task(certificates.watch_files()),
        ]
        admission = Admission(TemplateCache(cluster), caches, controller, agent_name())
        metrics = WebhookMetrics(lambda: certificates.expires_at, admission.can_hold)
        app = build_application(admission.answer, metrics.record_answer, metrics.record_refusal)

        def find_problem() -> str:
            return "stopping" if stop.is_set() else admission.find_problem()

        async with (
            serve_health(settings.health_port, ready=find_problem, metrics=metrics.expose),
            serve(settings.port, certificates.context, app),
        ):
            log.info("serving POST %s on port %d", PATH, settings.port)
            await stop.wait()
        for watch in watches:
            watch.cancel()
