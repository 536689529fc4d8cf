"""The webhook: the API server asks it about each pod that opted in, when that is made; it adds, or does nothing, and never refuses.

What it answers is decided in policy/pods/delivery.py from what is known already (webhook/informers.py) and the owner's template
(webhook/template_cache.py). Whatever goes wrong here, the pod is allowed as it came. Why this is no handler of kopf's: docs/decisions/0005.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import traceback
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

from pretune.api.names import CACHE, ROLE
from pretune.api.reasons import Refused
from pretune.api.types import Object
from pretune.manifests.delivery_modes import NONE, Delivery
from pretune.manifests.injection import inject, is_injected
from pretune.manifests.json_patch import Operation
from pretune.podspec.template import all_containers
from pretune.podspec.workloads import controller_of
from pretune.policy.pods.delivery import delivery
from pretune.webhook.informers import Caches, Controller
from pretune.webhook.template_cache import Lately, Revisions

log = logging.getLogger(__name__)
BUDGET = 2.0  # seconds for an answer; the API server waits 5
WARNING = 256  # characters of a warning that the API server hands on for sure

TOKEN = "kube-api-access-"

SKIPPED, FAILED = (
    "Skipped",
    "Failed",
)  # beside the reasons of delivery_reasons.DELIVERIES: none of our business; an error of ours


@dataclass(frozen=True)
class Answer:
    """What is said about one pod, which is allowed in any case."""

    mode: str  # ReadOnly | Overlay | None
    reason: str  # SKIPPED, FAILED, or one of delivery_reasons.DELIVERIES
    patch: tuple[Operation, ...] = ()
    warnings: tuple[str, ...] = ()

    @cached_property
    def response(self) -> str:
        """The fields of an AdmissionResponse but its uid, as JSON without the braces."""
        fields: Object = {"allowed": True}
        if self.patch:
            fields["patchType"] = "JSONPatch"
            fields["patch"] = base64.b64encode(
                json.dumps(self.patch, separators=(",", ":")).encode()
            ).decode()
        if self.warnings:
            fields["warnings"] = self.warnings
        return json.dumps(fields)[1:-1]


class Admission:
    """Judges the requests of AdmissionReviews (admission.k8s.io/v1)."""

    def __init__(
        self, revisions: Revisions, caches: Caches, controller: Controller, agent_name: str
    ) -> None:
        self._revisions, self._caches, self._controller = revisions, caches, controller
        self._agent = agent_name
        # Each with the pod that it was given for.
        self._answers: Lately[Hashable, tuple[Object, Answer]] = Lately()

    def alive(self) -> bool:
        """Whether somebody lives who could release a pod."""
        return self._controller.alive() and self._caches.current()

    def trouble(self) -> str:
        """Why the webhook is not ready; ""."""
        return (
            ""
            if self._caches.listed and self._controller.listed
            else "caches and lease were not read yet"
        )

    async def answer(self, request: Object) -> Answer:
        """Never raises. The request's object is ours to change."""
        try:
            async with asyncio.timeout(BUDGET):
                return await self._answer(request)
        except Exception as error:
            log.error("%s: left as it came: %s", _who(request), _where(error))
            return Answer(NONE, FAILED)

    async def _answer(self, request: Object) -> Answer:
        pod = request.get("object") or {}
        labels = (pod.get("metadata") or {}).get("labels") or {}
        if (
            request.get("operation") != "CREATE"
            or CACHE not in labels
            or ROLE in labels
            or is_injected(pod)
        ):
            return Answer(NONE, SKIPPED)
        if trouble := self.trouble():
            return Answer(
                NONE,
                FAILED,
                warnings=(_short(f"pretune: {trouble}: the pod starts without its bundle"),),
            )
        namespace, name = request["namespace"], labels[CACHE]
        cache, alive = self._caches.get(namespace, name), self.alive()
        if cache is None:
            return self._decided(
                request, delivery(namespace, None, pod, pod, "", alive, self._agent)
            )
        origin, revision = await self._revisions.of(namespace, pod)
        _name_token(pod)
        same = (revision, cache["metadata"]["uid"], cache["metadata"]["resourceVersion"], alive)
        known, answer = self._answers.get(same) or (None, None)
        if answer is None or known != pod:
            given = delivery(
                namespace, cache, pod, origin.template, origin.kind, alive, self._agent
            )
            answer = self._decided(request, given)
            if revision is not None and not isinstance(origin.template, Refused):
                # The revision's other pods are mostly alike, and what is said of one holds for them, while the cache is as it was.
                self._answers.put(same, (pod, answer), pod)
        return answer

    def _decided(self, request: Object, given: Delivery) -> Answer:
        pod = request["object"]
        cache = f"{request['namespace']}/{pod['metadata']['labels'][CACHE]}"
        log.info("%s: %s: %s: %s", cache, _who(request), given.reason, given.message)
        warnings = tuple(_short(one) for one in given.warnings)
        return Answer(given.mode, given.reason, tuple(inject(pod, given)), warnings)


def _name_token(pod: Object) -> None:
    """Give the ServiceAccount plugin's volume one name in all pods: its end is random, and nothing that we add says it."""
    spec = pod["spec"]
    tokens = {
        one["name"]
        for one in spec.get("volumes") or ()
        if one["name"].startswith(TOKEN) and "projected" in one
    }
    if not tokens:
        return
    for holder in (
        spec["volumes"],
        *(one.get("volumeMounts") or () for _, one in all_containers(pod)),
    ):
        for one in holder:
            if one["name"] in tokens:
                one["name"] = TOKEN


def _short(warning: str) -> str:
    return warning if len(warning) <= WARNING else warning[: WARNING - 1] + "…"


def _who(request: Object) -> str:
    """The pod that a request is about, and whose it is; for a log line, whatever the request is."""
    pod = request.get("object")
    meta = pod.get("metadata") if isinstance(pod, dict) else None
    meta = meta if isinstance(meta, dict) else {}
    name = meta.get("name") or f"{meta.get('generateName') or ''}…"
    try:
        owner = controller_of({"metadata": meta})
        whose = f" of {owner['kind']} {owner['name']}" if owner else ""
    except (TypeError, LookupError, AttributeError):
        whose = ""
    return f"pod {request.get('namespace')}/{name}{whose}{' (dry run)' if request.get('dryRun') else ''}"


def _where(error: Exception) -> str:
    """What went wrong, without its message: that may quote an env value."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__} at {last.filename.rpartition('/')[2]}:{last.lineno} in {last.name}"
    )
