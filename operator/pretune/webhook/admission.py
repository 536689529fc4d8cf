"""Admission of a pod: the API server asks the webhook about each pod with the cache's label.

The answer adds to the pod or leaves it as it is, and never refuses it. policy/pods/delivery.py
decides, from what the watches have brought (webhook/informers.py) and the owner's template
(webhook/template_cache.py). After any error here the pod is admitted unchanged. Why this is no kopf
handler: docs/decisions/0005.
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

from pretune.api import delivery_reasons
from pretune.api.names import CACHE, ROLE
from pretune.api.reasons import Refused
from pretune.api.types import Object
from pretune.manifests.delivery_modes import NONE, Delivery
from pretune.manifests.injection import inject, is_injected
from pretune.manifests.json_patch import Operation
from pretune.podspec.template import all_containers
from pretune.podspec.workloads import POD, controller_of
from pretune.policy.model import Origin
from pretune.policy.pods.delivery import decide_delivery
from pretune.webhook.cache_store import MAX_NAMESPACE_BYTES
from pretune.webhook.informers import MAX_OUTAGE_SECONDS, CacheInformer, LeaseMonitor
from pretune.webhook.template_cache import SizedLRU, TemplateCache

log = logging.getLogger(__name__)

ADMISSION_BUDGET_SECONDS = 2.0  # for one answer; the API server waits 5 s
MAX_WARNING_CHARACTERS = 256  # of one warning: so much the API server passes on in any case

TOKEN_VOLUME_PREFIX = "kube-api-access-"

# Beside the delivery reasons: the pod is not a consumer; the webhook had an error.
SKIPPED, FAILED = "Skipped", "Failed"


@dataclass(frozen=True)
class Answer:
    """The answer about one pod, which is admitted in any case."""

    mode: str  # ReadOnly | Overlay | None
    reason: str  # a DeliveryReason, SKIPPED or FAILED
    patch: tuple[Operation, ...] = ()
    warnings: tuple[str, ...] = ()

    @cached_property
    def response(self) -> str:
        """The fields of an AdmissionResponse except its uid, as JSON without the outer braces."""
        fields: Object = {"allowed": True}
        if self.patch:
            patch = json.dumps(self.patch, separators=(",", ":"))
            fields["patchType"] = "JSONPatch"
            fields["patch"] = base64.b64encode(patch.encode()).decode()
        if self.warnings:
            fields["warnings"] = self.warnings
        return json.dumps(fields)[1:-1]


class Admission:
    """Answers the requests of AdmissionReviews (admission.k8s.io/v1)."""

    def __init__(
        self,
        templates: TemplateCache,
        caches: CacheInformer,
        controller: LeaseMonitor,
        agent_name: str,
    ) -> None:
        """agent_name: the name of the agent's ConfigMap."""
        self._templates, self._caches, self._controller = templates, caches, controller
        self._agent_name = agent_name
        # Of each revision the last pod with its answer (docs/decisions/0005).
        self._answers: SizedLRU[Hashable, tuple[Object, Answer]] = SizedLRU()

    def can_hold(self, namespace: str = "") -> bool:
        """Whether pods of a namespace may be held; "": of those that may be read.

        Then the controller is alive, and the caches are current.
        """
        return self._controller.is_alive() and self._caches.is_current(namespace)

    def find_problem(self, namespace: str = "") -> str:
        """Return why the webhook is not ready (for a namespace), in a sentence; "" when it is."""
        if not (self._caches.has_synced and self._controller.has_synced):
            return "the caches and the controller's lease have not been read yet"
        if self._caches.is_outdated(namespace):
            which = f"AutotuneCaches of namespace {namespace}" if namespace else "AutotuneCaches"
            return (
                f"the webhook could not read the {which} for {MAX_OUTAGE_SECONDS / 60:.0f} minutes:"
                " ask the cluster's administrator to check its log"
            )
        return ""

    async def answer(self, request: Object) -> Answer:
        """Return the answer to one request, whose object may be changed here. Never raises."""
        try:
            async with asyncio.timeout(ADMISSION_BUDGET_SECONDS):
                return await self._answer(request)
        except Exception as error:
            description = _describe_error(error)
            log.error("%s: admitted unchanged: %s", _describe_pod(request), description)
            return Answer(NONE, FAILED)

    async def _answer(self, request: Object) -> Answer:
        pod = request.get("object") or {}
        labels = (pod.get("metadata") or {}).get("labels") or {}
        is_new_consumer = (
            request.get("operation") == "CREATE" and CACHE in labels and ROLE not in labels
        )
        if not is_new_consumer or is_injected(pod):
            return Answer(NONE, SKIPPED)
        namespace, name = request["namespace"], labels[CACHE]
        problem = self.find_problem(namespace)
        if self._caches.is_too_large(namespace, name):
            problem = (
                f"the AutotuneCaches of namespace {namespace} have more than"
                f" {MAX_NAMESPACE_BYTES >> 20} MiB together: delete those that are not used"
            )
        if problem:
            warning = _truncate(f"pretune: the pod starts without its bundle: {problem}")
            return Answer(NONE, FAILED, warnings=(warning,))
        cache, can_hold = self._caches.get(namespace, name), self.can_hold(namespace)
        if cache is None:
            unread = Origin(POD, "", pod)
            decision = decide_delivery(namespace, None, pod, unread, can_hold, self._agent_name)
            return self._build_answer(request, decision)
        origin, revision = await self._templates.find_origin(namespace, pod)
        _rename_token_volume(pod)
        key = (revision, cache["metadata"]["uid"], cache["metadata"]["resourceVersion"], can_hold)
        answered_pod, answer = self._answers.get(key) or (None, None)
        if answer is None or answered_pod != pod:
            decision = decide_delivery(namespace, cache, pod, origin, can_hold, self._agent_name)
            answer = self._build_answer(request, decision)
            if revision is not None and not isinstance(origin.template, Refused):
                self._answers.put(key, (pod, answer), pod)
        return answer

    def _build_answer(self, request: Object, decision: Delivery) -> Answer:
        pod = request["object"]
        cache = f"{request['namespace']}/{pod['metadata']['labels'][CACHE]}"
        log.info("%s: %s: %s: %s", cache, _describe_pod(request), decision.reason, decision.message)
        warnings = tuple(_truncate(warning) for warning in decision.warnings)
        return Answer(decision.mode, decision.reason, tuple(inject(pod, decision)), warnings)


def answer_too_large(request: Object, excess: str) -> Answer:
    """Return the answer about a pod that is too large to be read: it is admitted unchanged.

    request: without its object. excess: the bound that it exceeds.
    """
    log.warning("%s: admitted unchanged: it %s", _describe_pod(request), excess)
    warning = (
        f"pretune: {delivery_reasons.TOO_LARGE}: the pod {excess}, and starts without a bundle:"
        " make the pod smaller"
    )
    return Answer(NONE, delivery_reasons.TOO_LARGE, warnings=(_truncate(warning),))


def _rename_token_volume(pod: Object) -> None:
    """Give the ServiceAccount admission's volume the same name in every pod.

    Its name ends at random, and pods of one revision differ in nothing else. The patch does not
    refer to it.
    """
    volumes = pod["spec"].get("volumes") or ()
    token_volumes = {
        volume["name"]
        for volume in volumes
        if volume["name"].startswith(TOKEN_VOLUME_PREFIX) and "projected" in volume
    }
    if not token_volumes:
        return
    mounts = (container.get("volumeMounts") or () for _, container in all_containers(pod))
    for named in (volumes, *mounts):
        for item in named:
            if item["name"] in token_volumes:
                item["name"] = TOKEN_VOLUME_PREFIX


def _truncate(warning: str) -> str:
    if len(warning) <= MAX_WARNING_CHARACTERS:
        return warning
    return warning[: MAX_WARNING_CHARACTERS - 1] + "…"


def _describe_pod(request: Object) -> str:
    """Return which pod a request is about, and its owner, for a log line; never raises."""
    pod = request.get("object")
    meta = pod.get("metadata") if isinstance(pod, dict) else None
    meta = meta if isinstance(meta, dict) else {}
    name = meta.get("name") or f"{meta.get('generateName') or ''}…"
    try:
        owner = controller_of({"metadata": meta})
        of_owner = f" of {owner['kind']} {owner['name']}" if owner else ""
    except (TypeError, LookupError, AttributeError):
        of_owner = ""
    dry_run = " (dry run)" if request.get("dryRun") else ""
    return f"pod {request.get('namespace')}/{name}{of_owner}{dry_run}"


def _describe_error(error: Exception) -> str:
    """Return an error's type and place, without its message: that may quote an env value."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    file = frame.filename.rpartition("/")[2]
    return f"{type(error).__name__} at {file}:{frame.lineno} in {frame.name}"
