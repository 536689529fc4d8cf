"""The webhook in this process, with a cache and the pods of a ReplicaSet that arrive at it."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from pathlib import Path
from typing import Any

import aiohttp
from pretune.api.names import CACHE
from pretune.api.spec import Spec
from pretune.api.types import Object
from pretune.kube.watch import LISTED
from pretune.policy.pods.admission import find_need
from pretune.webhook.admission import Admission
from pretune.webhook.certificates import CertificateWatcher
from pretune.webhook.informers import CacheInformer, LeaseMonitor
from pretune.webhook.server import build_application, serve
from pretune.webhook.template_cache import TemplateCache

from tests.builders.patches import patched
from tests.ports import free_port

SECRET = "hunter2"  # an env value, which must never be in a log


def template() -> Object:
    container = {
        "name": "vllm",
        "image": "vllm:2",
        "env": [{"name": "TOKEN", "value": SECRET}],
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
    }
    labels = {"app": "qwen3", CACHE: "qwen3", "pod-template-hash": "1"}
    return {"metadata": {"labels": labels}, "spec": {"containers": [container]}}


def pod(**spec: Any) -> Object:
    """Return a pod as a ReplicaSet creates it, and as the API server sends it: without a name."""
    pod = template()
    owner = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": "qwen3-1",
        "uid": "rs",
        "controller": True,
    }
    pod["metadata"] |= {"generateName": "qwen3-1-", "ownerReferences": [owner]}
    pod["spec"] |= spec
    return {"apiVersion": "v1", "kind": "Pod", **pod}


def review(the_pod: Any, **changes: Any) -> Object:
    request = {
        "uid": "u-1",
        "operation": "CREATE",
        "namespace": "inference",
        "dryRun": False,
        "object": the_pod,
        **changes,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def cache(version: int = 1, *bundles: Object, **spec: Any) -> Object:
    """Return a cache whose older revision serves."""
    serves = {
        "id": "0lder-default",
        "fingerprint": "0",
        "state": "Sealed",
        "servingWorkloads": ["ReplicaSet/qwen3-1"],
    }
    ready = {"type": "StorageReady", "status": "True", "reason": "Bound", "message": ""}
    return {
        "metadata": {"namespace": "inference", "name": "qwen3", "uid": "c", "generation": version, "resourceVersion": str(version)},
        "spec": {"storage": {"claim": {}}, **spec},
        "status": {"observedGeneration": version, "conditions": [ready], "bundles": [serves, *bundles]},
    }  # fmt: skip


class Cluster:
    """Holds the ReplicaSet; answers after `slow` seconds, or not at all."""

    def __init__(self) -> None:
        self.slow, self.read = 0.0, 0
        self.error: Exception | None = None

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        self.read += 1
        await asyncio.sleep(self.slow)
        if self.error:
            raise self.error
        meta = {"namespace": namespace, "name": name, "uid": "rs"}
        return {
            "apiVersion": api_version,
            "kind": kind,
            "metadata": meta,
            "spec": {"template": template()},
        }


JSON_CONTENT = {"Content-Type": "application/json"}


class Webhook:
    """The webhook, with the changes of its watches given by the test."""

    def __init__(self) -> None:
        self.now = 0.0  # monotonic seconds: some webhooks are built long before their test
        self.cluster = Cluster()
        self.caches = CacheInformer(lambda: self.now)
        self.controller = LeaseMonitor(lambda: self.now)
        self.reasons: list[str] = []
        templates = TemplateCache(self.cluster)  # type: ignore[arg-type]
        self.admission = Admission(templates, self.caches, self.controller, "pretune-agent-0")

    def with_caches(self, *caches: Object) -> Webhook:
        for cache in caches:
            self.caches.on_event("ADDED", cache)
        self.caches.on_event(LISTED, {})
        return self

    def with_live_controller(self) -> Webhook:
        self.controller.on_event(LISTED, {})
        self.controller.on_event("ADDED", {"spec": {"holderIdentity": "a", "renewTime": "now"}})
        return self

    def record_answer(self, mode: str, reason: str, seconds: float) -> None:
        assert 0 <= seconds < 60 and mode in ("ReadOnly", "Overlay", "None")
        self.reasons.append(reason)

    def ask(self, tls: Path, *reviews: Any, at_once: bool = False) -> list[Any]:
        """Return each answer: the response of an AdmissionReview, or (status, text)."""

        async def story() -> list[Any]:
            port, app = free_port(), build_application(self.admission.answer, self.record_answer)
            trust = ssl.create_default_context(cafile=str(tls / "tls.crt"))
            async with (
                serve(port, CertificateWatcher(tls).context, app),
                aiohttp.ClientSession() as session,
            ):

                async def post(review: Any) -> Any:
                    body = review if isinstance(review, bytes) else json.dumps(review).encode()
                    url = f"https://localhost:{port}/pods?timeout=5s"
                    async with session.post(
                        url, data=body, headers=JSON_CONTENT, ssl=trust
                    ) as answer:
                        return (
                            response_of(await answer.json())
                            if answer.status == 200
                            else (answer.status, await answer.text())
                        )

                if at_once:
                    return await asyncio.gather(*(post(review) for review in reviews))
                return [await post(review) for review in reviews]

        return asyncio.run(story())


def webhook(*bundles: Object, **spec: Any) -> Webhook:
    return Webhook().with_caches(cache(1, *bundles, **spec)).with_live_controller()


def response_of(answer: Object) -> Object:
    assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response: Object = answer["response"]
    assert response["uid"] == "u-1" and response["allowed"] is True
    return response


def admitted(pod: Object, response: Object) -> Object:
    """Return the pod as the API server stores it."""
    if "patch" not in response:
        return pod
    assert response["patchType"] == "JSONPatch"
    return patched(pod, json.loads(base64.b64decode(response["patch"])))


def bundle_id() -> str:
    spec = Spec.from_cache(cache())
    return find_need(template(), spec, spec.targets[0]).bundle_id


def sealed(layout: str = "Managed") -> Object:
    return {"id": bundle_id(), "fingerprint": "1", "state": "Sealed", "layout": layout}
