"""A user's access to the cluster: create, read, and wait by watching, never by sleeping."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import requests
from kubernetes import client, config
from pretune.api.advice import ADVICE

Object = dict[str, Any]

PATHS = {
    "AutotuneCache": ("apis/pretune.dev/v1alpha1", "autotunecaches"),
    "Job": ("apis/batch/v1", "jobs"),
    "Deployment": ("apis/apps/v1", "deployments"),
    "StatefulSet": ("apis/apps/v1", "statefulsets"),
    "DaemonSet": ("apis/apps/v1", "daemonsets"),
    "ReplicaSet": ("apis/apps/v1", "replicasets"),
    "Pod": ("api/v1", "pods"),
    "PersistentVolumeClaim": ("api/v1", "persistentvolumeclaims"),
    "PersistentVolume": ("api/v1", "persistentvolumes"),
    "ConfigMap": ("api/v1", "configmaps"),
    "Event": ("api/v1", "events"),
    "ResourceQuota": ("api/v1", "resourcequotas"),
    "LimitRange": ("api/v1", "limitranges"),
    "Service": ("api/v1", "services"),
    "Lease": ("apis/coordination.k8s.io/v1", "leases"),
    "ServiceAccount": ("api/v1", "serviceaccounts"),
    "Secret": ("api/v1", "secrets"),
    "Namespace": ("api/v1", "namespaces"),
    "Node": ("api/v1", "nodes"),
    "MutatingWebhookConfiguration": (
        "apis/admissionregistration.k8s.io/v1",
        "mutatingwebhookconfigurations",
    ),
    "ValidatingAdmissionPolicy": (
        "apis/admissionregistration.k8s.io/v1",
        "validatingadmissionpolicies",
    ),
    "ValidatingAdmissionPolicyBinding": (
        "apis/admissionregistration.k8s.io/v1",
        "validatingadmissionpolicybindings",
    ),
    "Role": ("apis/rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ("apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    "ClusterRole": ("apis/rbac.authorization.k8s.io/v1", "clusterroles"),
    "ClusterRoleBinding": ("apis/rbac.authorization.k8s.io/v1", "clusterrolebindings"),
}
CLUSTER_WIDE = {
    *("PersistentVolume", "Namespace", "Node", "ClusterRole", "ClusterRoleBinding"),
    *("MutatingWebhookConfiguration", "ValidatingAdmissionPolicy"),
    "ValidatingAdmissionPolicyBinding",
}


class Refusal(Exception):
    """The API server refused: the status code, and its message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class Kube:
    """One kubeconfig, optionally as another user. A namespace is "" for cluster-wide kinds."""

    def __init__(self, kubeconfig: str, as_user: str = "") -> None:
        settings = client.Configuration()
        config.load_kube_config(kubeconfig, client_configuration=settings)
        self.kubeconfig, self.host, self.as_user = kubeconfig, settings.host, as_user
        self.warnings: list[str] = []  # those of the API server's last answer
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = settings.ssl_ca_cert or True
        if settings.cert_file:
            self.session.cert = (settings.cert_file, settings.key_file)
        if token := (settings.api_key or {}).get("authorization") or (settings.api_key or {}).get(
            "BearerToken"
        ):
            self.session.headers["Authorization"] = (
                token if token.startswith("Bearer ") else f"Bearer {token}"
            )
        if as_user:
            self.session.headers["Impersonate-User"] = as_user

    def _url(self, kind: str, namespace: str, name: str = "", part: str = "") -> str:
        base, plural = PATHS[kind]
        scope = "" if kind in CLUSTER_WIDE else f"namespaces/{namespace}/"
        return "/".join(step for step in (self.host, base, f"{scope}{plural}", name, part) if step)

    def _call(self, verb: str, url: str, **more: Any) -> Any:
        answer = self.session.request(verb, url, timeout=60, **more)
        headers = answer.raw.headers.getlist("Warning")  # `299 - "…"`
        self.warnings = [header.split(" ", 2)[2].strip('"') for header in headers]
        if answer.status_code >= 400:
            try:
                message = answer.json().get("message", answer.text)
            except ValueError:
                message = answer.text
            raise Refusal(answer.status_code, message)
        return (
            answer.json()
            if answer.headers.get("Content-Type", "").startswith("application/json")
            else answer.text
        )

    def create(self, obj: Object, dry_run: bool = False) -> Object:
        url = self._url(obj["kind"], obj["metadata"].get("namespace", ""))
        created: Object = self._call(
            "POST", url, json=obj, params={"dryRun": "All"} if dry_run else {}
        )
        return created

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        try:
            found: Object = self._call("GET", self._url(kind, namespace, name))
        except Refusal as refusal:
            if refusal.code == 404:
                return None
            raise
        return found

    def list(self, kind: str, namespace: str, labels: str = "") -> list[Object]:
        items: list[Object] = self._call(
            "GET", self._url(kind, namespace), params={"labelSelector": labels}
        )["items"]
        return items

    def new_session(self) -> Kube:
        """Return the same user with new connections: a session serves one thread."""
        return Kube(self.kubeconfig, self.as_user)

    def patch(self, kind: str, namespace: str, name: str, patch: Object, part: str = "") -> Object:
        patched: Object = self._call(
            "PATCH",
            self._url(kind, namespace, name, part),
            data=json.dumps(patch),
            headers={"Content-Type": "application/merge-patch+json"},
        )
        return patched

    def delete(self, kind: str, namespace: str, name: str, **body: Any) -> None:
        try:
            self._call(
                "DELETE",
                self._url(kind, namespace, name),
                json={"propagationPolicy": "Background", **body},
            )
        except Refusal as refusal:
            if refusal.code != 404:
                raise

    def evict(self, namespace: str, pod: str) -> None:
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": namespace},
        }
        self._call("POST", self._url("Pod", namespace, pod, "eviction"), json=body)

    def log(self, namespace: str, pod: str, container: str) -> str:
        text: str = self._call(
            "GET", self._url("Pod", namespace, pod, "log"), params={"container": container}
        )
        return text

    def changes(
        self, kind: str, namespace: str, name: str = "", labels: str = "", seconds: float = 60
    ) -> Iterator[tuple[str, Object]]:
        """Yield ("LISTED", the list), then (type, object) of its watch, again and again for `seconds`."""
        end = time.monotonic() + seconds
        select = {"labelSelector": labels, "fieldSelector": f"metadata.name={name}" if name else ""}
        while True:
            page = self._call("GET", self._url(kind, namespace), params=select)
            yield "LISTED", page
            left = end - time.monotonic()
            if left <= 0:
                return
            params = {
                **select,
                "watch": "1",
                "resourceVersion": page["metadata"]["resourceVersion"],
            }
            params["timeoutSeconds"] = str(max(1, int(left)))
            with self.session.get(
                self._url(kind, namespace), params=params, stream=True, timeout=left + 5
            ) as stream:
                for line in stream.iter_lines():
                    event = json.loads(line)
                    if event.get("type") in (
                        None,
                        "ERROR",
                    ):  # None: a Status, of a server that ends
                        break
                    yield event["type"], event["object"]
            if time.monotonic() >= end:
                return

    def watch(
        self, kind: str, namespace: str, name: str = "", labels: str = "", seconds: float = 60
    ) -> Iterator[tuple[str, Object]]:
        """Yield (type, object) of a list and its watch, for `seconds`; ("NONE", {}) for an empty list."""
        for change, obj in self.changes(kind, namespace, name, labels, seconds):
            if change != "LISTED":
                yield change, obj
            elif obj["items"]:
                yield from (("ADDED", item) for item in obj["items"])
            else:
                yield "NONE", {}

    def wait_until(
        self,
        kind: str,
        namespace: str,
        name: str,
        wanted: Callable[[Object], Any],
        seconds: float = 180,
        what: str = "",
    ) -> Object:
        """Return the object once `wanted` is true of it. Raises AssertionError with its last state."""
        last: Object = {}
        for change, obj in self.watch(kind, namespace, name, seconds=seconds):
            last = obj if change not in ("DELETED", "NONE") else {}
            if last and wanted(last):
                return last
        shown = json.dumps(last.get("status", last), indent=1)[:6000]
        raise AssertionError(
            f"{kind} {namespace}/{name}: not {what or 'as wanted'} within {seconds} s; it is: {shown}"
        )

    def wait_for_any(
        self,
        kind: str,
        namespace: str,
        labels: str,
        wanted: Callable[[Object], Any] = bool,
        seconds: float = 180,
    ) -> Object:
        """Return the first object with these labels of which `wanted` is true."""
        for change, obj in self.watch(kind, namespace, labels=labels, seconds=seconds):
            if change not in ("DELETED", "NONE") and wanted(obj):
                return obj
        raise AssertionError(
            f"no {kind} with {labels} in {namespace} was as wanted within {seconds} s"
        )

    def wait_until_gone(self, kind: str, namespace: str, name: str, seconds: float = 60) -> None:
        for change, _ in self.watch(kind, namespace, name, seconds=seconds):
            if change in ("DELETED", "NONE"):
                return
        raise AssertionError(f"{kind} {namespace}/{name} still exists after {seconds} s")


def wait_for_event(kube: Kube, namespace: str, reason: str, *words: str) -> Object:
    """Return an event of the cache with this reason, once there is one with these words."""
    return kube.wait_for_any(
        "Event",
        namespace,
        "",
        lambda e: (
            e["involvedObject"]["kind"] == "AutotuneCache"
            and e["reason"] == reason
            and all(word in e["message"] for word in words)
        ),
        seconds=15,
    )


def list_failures(kube: Kube, namespace: str) -> list[str]:
    """Return what the caches' events of type Warning say, but for advice."""
    return [
        f"{event['reason']}: {event['message']}"
        for event in kube.list("Event", namespace)
        if event["involvedObject"]["kind"] == "AutotuneCache"
        and event["type"] == "Warning"
        and event["reason"] not in ADVICE
    ]


def condition(obj: Object, kind: str) -> Object:
    """Return the condition of a type; {} if there is none."""
    return next(
        (
            item
            for item in (obj.get("status") or {}).get("conditions") or ()
            if item["type"] == kind
        ),
        {},
    )


def bundles(cache: Object) -> list[Object]:
    return list((cache.get("status") or {}).get("bundles") or ())
