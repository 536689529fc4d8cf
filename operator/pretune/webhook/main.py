"""The webhook's process."""

from __future__ import annotations

import asyncio
import logging
import signal
import time

from pretune.config import WebhookSettings
from pretune.health import serve_health
from pretune.kube.client import Kubernetes, load_configuration
from pretune.manifests.agent_archive import agent
from pretune.webhook.admission import Admission
from pretune.webhook.certificates import Certificates
from pretune.webhook.informers import Caches, Controller, watch_caches, watch_controller
from pretune.webhook.metrics import WebhookMetrics
from pretune.webhook.server import PATH, application, serve
from pretune.webhook.template_cache import Revisions

log = logging.getLogger(__name__)


async def run(settings: WebhookSettings) -> None:
    """Work until SIGTERM or SIGINT. Raises CertificateError, and what ended the work otherwise."""
    stop = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, stop.set)
    certificates = Certificates(settings.certificates)
    caches, controller = Caches(time.monotonic), Controller(time.monotonic)
    async with Kubernetes(await load_configuration()) as cluster, asyncio.TaskGroup() as group:
        ours = [
            group.create_task(watch_caches(cluster, caches)),
            group.create_task(watch_controller(cluster, settings.namespace, controller)),
            group.create_task(certificates.follow()),
        ]
        admission = Admission(Revisions(cluster), caches, controller, agent()[0])
        metrics = WebhookMetrics(lambda: certificates.ends, admission.alive)

        def trouble() -> str:
            return "stopping" if stop.is_set() else admission.trouble()

        async with (
            serve_health(settings.health_port, ready=trouble, metrics=metrics.exposition),
            serve(
                settings.port, certificates.context, application(admission.answer, metrics.admitted)
            ),
        ):
            log.info("asked at port %d%s", settings.port, PATH)
            await stop.wait()
        for one in ours:
            one.cancel()
