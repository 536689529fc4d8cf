"""The only module that talks to Kubernetes: plain dicts in, plain dicts out.

The client's typed models reject unknown fields on write and drop them on read
(docs/dev/facts-kubernetes.md), and its dynamic client keeps what it discovers in a temporary file,
which a read-only root file system does not allow. So only its configuration (service account,
kubeconfig, renewal of tokens) and its HTTP session are used. `tests/sim` implements the same
Protocol in memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config.incluster_config import load_incluster_config
from kubernetes.aio.config.kube_config import load_kube_config

from pretune.api.names import GROUP, KIND, PLURAL, VERSION
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.intake import (
    ENVELOPE,
    OBJECT,
    PAGE,
    Bounds,
    TooLarge,
    cut_event,
    cut_list,
    cut_object,
    find_excess,
    parse_json,
)
from pretune.kube.server_clock import ServerClock
from pretune.kube.types import ApiError, Event, NoSuchKind, keep_all, metadata_only
from pretune.kube.watch import ADDED, LISTED, Change

log = logging.getLogger(__name__)

FIELD_MANAGER = "pretune"  # also the name under which Events are reported
# Objects of one list request. A page that exceeds intake.PAGE is not read to its end, but asked for
# again with fewer: 3,000 pods at once were 17 MB and 149 MiB resident, and a tenant's may have
# 1.5 MiB each.
PAGE_SIZE = 250
SMALLER_PAGE = 8  # the divisor of the number of objects
CALL_TIMEOUT = aiohttp.ClientTimeout(total=30)
# At a time, of this process, each with a connection of some hundred KiB (`make bench
# ROWS=namespaces`): what one namespace holds may ask for thousands. Watches and logs are counted by
# those who open them. The lease does not wait for others' calls.
MAX_SHORT_CALLS = 64
LEASES = "/apis/coordination.k8s.io/"
# A watch sends a bookmark a minute even when nothing happens: without one its connection is dead.
WATCH_IDLE_SECONDS = 90.0
LOG_CHUNK_BYTES = 64 << 10
MAX_OBJECT_BYTES = 8 << 20  # one object, as JSON: in a watch, or alone in its page
RESOURCE_TTL_SECONDS = 600.0  # after which a discovered kind's resource is asked for again

MAX_QUOTED = 100  # characters of what others wrote, in an error

# `v1`, `apps/v1`, `example.com/v1beta1`.
_API_VERSION = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[a-z][a-z0-9]{0,62}")

Cut = Callable[[bytes], Object]  # of intake.py

_JSON = "application/json"
# Accept of a request for metadata only, where the resource can answer so.
METADATA_LIST = f"{_JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,{_JSON}"
METADATA = f"{_JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1,{_JSON}"


@dataclass(frozen=True)
class Resource:
    """Where the API serves a kind: /apis/<group>/<version>[/namespaces/<namespace>]/<plural>."""

    plural: str
    namespaced: bool = True


KNOWN_RESOURCES: Mapping[tuple[str, str], Resource] = {
    (f"{GROUP}/{VERSION}", KIND): Resource(PLURAL),
    ("v1", "Pod"): Resource("pods"),
    ("v1", "PersistentVolumeClaim"): Resource("persistentvolumeclaims"),
    ("v1", "ConfigMap"): Resource("configmaps"),
    ("v1", "Event"): Resource("events"),
    ("v1", "Secret"): Resource("secrets"),
    ("batch/v1", "Job"): Resource("jobs"),
    ("apps/v1", "Deployment"): Resource("deployments"),
    ("apps/v1", "StatefulSet"): Resource("statefulsets"),
    ("apps/v1", "DaemonSet"): Resource("daemonsets"),
    ("apps/v1", "ReplicaSet"): Resource("replicasets"),
    ("apps/v1", "ControllerRevision"): Resource("controllerrevisions"),
    ("resource.k8s.io/v1", "ResourceClaimTemplate"): Resource("resourceclaimtemplates"),
    ("storage.k8s.io/v1", "StorageClass"): Resource("storageclasses", namespaced=False),
    ("coordination.k8s.io/v1", "Lease"): Resource("leases"),
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"): Resource(
        "mutatingwebhookconfigurations", namespaced=False
    ),
}


async def load_configuration() -> Configuration:
    """Return how to reach the cluster.

    From KUBECONFIG where it is set, else the pod's service account, else ~/.kube/config.
    """
    config = Configuration()
    if "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
        # It reads the service account's token again every minute.
        load_incluster_config(client_configuration=config)  # type: ignore[no-untyped-call]
    else:
        await load_kube_config(  # type: ignore[no-untyped-call]
            client_configuration=config, persist_config=False
        )
    # No limit here: each watched object holds a connection. Of others: MAX_SHORT_CALLS.
    config.connection_pool_maxsize = 0
    return config


class Kubernetes:
    """A real cluster. Use as `async with Kubernetes(await load_configuration()) as cluster`."""

    def __init__(self, config: Configuration) -> None:
        self._client = ApiClient(config)
        self._client.user_agent = FIELD_MANAGER
        self._discovered: dict[tuple[str, str], tuple[Resource, float]] = {}
        # By the object's uid: the resourceVersion of our last write of its status.
        self._status_versions: dict[str, str] = {}
        self._server_clock = ServerClock(time.monotonic, time.time)
        self._short_calls = asyncio.Semaphore(MAX_SHORT_CALLS)

    async def __aenter__(self) -> Kubernetes:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    # --- as kube.types.Cluster says

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        if not is_object_name(name):
            return None  # its path would be that of something else
        path = await self._path(api_version, kind, namespace, name)
        code, answer = await self._request_json("GET", path)
        if code == 404 and "name" in (answer.get("details") or {}):
            return None
        if code == 404:  # the resource is missing, not the object
            self._discovered.pop((api_version, kind), None)
            raise NoSuchKind(api_version, kind)
        return _require_success(code, answer)

    async def list(
        self,
        api_version: str,
        kind: str,
        namespace: str,
        *,
        labels: str = "",
        fields: str = "",
        project: Callable[[Object], Object] = keep_all,
    ) -> list[Object]:
        path = await self._path(api_version, kind, namespace)
        selectors = {"labelSelector": labels, "fieldSelector": fields}
        accept = METADATA_LIST if project is metadata_only else _JSON
        while True:
            objects: list[Object] = []
            try:
                async for page in self._read_pages(path, selectors, accept):
                    objects += [
                        project({**item, "apiVersion": api_version, "kind": kind})
                        for item in page.pop("items", None) or ()
                    ]
                return objects
            except ApiError as error:
                if error.code != 410 or not objects:
                    raise
                # The pages' snapshot has expired: start again.

    async def create(self, obj: Object) -> Object:
        path = await self._path(
            obj["apiVersion"], obj["kind"], obj["metadata"].get("namespace", "")
        )
        query = {"fieldManager": FIELD_MANAGER}
        code, answer = await self._request_json("POST", path, body=obj, query=query)
        if code == 422 and "ValidatingAdmissionPolicy" in str(answer.get("message")):
            code = 403  # as where a webhook refuses it: the object is valid, and may be taken later
        return _require_success(code, answer)

    async def apply(self, obj: Object) -> Object:
        path = await self._object_path(obj)
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        content = "application/apply-patch+yaml"
        code, answer = await self._request_json(
            "PATCH", path, body=obj, query=query, content=content
        )
        return _require_success(code, answer)

    async def patch(
        self,
        ref: Object,
        patch: Mapping[str, Any],
        *,
        status: bool = False,
        strategic: bool = False,
    ) -> Object:
        body = {**patch, "metadata": {**patch.get("metadata", {}), **_preconditions(ref)}}
        path = await self._object_path(ref) + ("/status" if status else "")
        content = f"application/{'strategic-' if strategic else ''}merge-patch+json"
        code, answer = await self._request_json(
            "PATCH", path, body=body, query={"fieldManager": FIELD_MANAGER}, content=content
        )
        causes = (answer.get("details") or {}).get("causes") or ()
        if code == 422 and any(cause.get("field") == "metadata.uid" for cause in causes):
            code = 409  # another object of that name: reported as a field that is immutable
        stored = _require_success(code, answer)
        if status:
            meta = stored["metadata"]
            self._status_versions[meta["uid"]] = meta["resourceVersion"]
        return stored

    async def delete(self, ref: Object) -> None:
        body: Object = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
        }
        if preconditions := _preconditions(ref):
            body["preconditions"] = preconditions
        code, answer = await self._request_json("DELETE", await self._object_path(ref), body=body)
        if code != 404:
            _require_success(code, answer)

    async def record_event(self, cache: Object, event: Event) -> None:
        try:
            await self._record_event(build_event(cache, event, time.time()))
        except (ApiError, OSError, TimeoutError) as error:
            meta = cache["metadata"]
            log.warning(
                "%s/%s: event %s was not written: %s",
                *(meta["namespace"], meta["name"], event.reason, error),
            )

    async def _record_event(self, obj: Object) -> None:
        try:
            await self.create(obj)
        except ApiError as error:
            if error.code != 409:
                raise
            meta = obj["metadata"]
            stored = await self.get("v1", "Event", meta["namespace"], meta["name"])
            if stored is not None:
                patch = {
                    "count": (stored.get("count") or 1) + 1,
                    "lastTimestamp": obj["lastTimestamp"],
                }
                await self.patch(obj, patch)

    # --- beyond kube.types.Cluster

    def now(self) -> float:
        """Return Unix seconds by the API server's clock."""
        return self._server_clock.now()

    def is_own_write(self, obj: Mapping[str, Any]) -> bool:
        """Whether the object is as our own last write of its status left it.

        A watch event that brings it reports nothing new.
        """
        meta = obj["metadata"]
        return bool(meta["resourceVersion"] == self._status_versions.get(meta["uid"]))

    def forget_writes(self, obj: Mapping[str, Any]) -> None:
        """Forget our writes of an object, which was deleted."""
        self._status_versions.pop(obj["metadata"]["uid"], None)

    async def watch(
        self,
        api_version: str,
        kind: str,
        namespace: str,
        name: str = "",
        *,
        labels: str = "",
        project: Callable[[Object], Object] = metadata_only,
        idle_seconds: float = WATCH_IDLE_SECONDS,
    ) -> AsyncIterator[Change]:
        """Yield what happens to one object, or to all of a namespace that match a label selector.

        namespace: "" for the whole cluster. `project` cuts each object down, as in `list`.

        A stream begins with what is there, as ADDED, and then (LISTED, {}); after that come ADDED,
        MODIFIED and DELETED. An object that does not match any more is DELETED, as it was before.
        It ends when the API server ends it, at least once an hour. Raises as `get` does,
        TimeoutError when nothing arrives for `idle_seconds`, and ApiError 410 when the API server
        does not remember what happened meanwhile: open another one
        (`kube.watch.watch_with_backoff`).
        """
        path = await self._path(api_version, kind, namespace)
        selectors = {
            "fieldSelector": f"metadata.name={_escape(name)}" if name else "",
            "labelSelector": labels,
        }
        partial = project is metadata_only
        # A list first: an older etcd refuses a watch without a version that asks for bookmarks
        # (Kubernetes 1.34 on etcd 3.4).
        version = ""
        try:
            accept = METADATA_LIST if partial else _JSON
            async for page in self._read_pages(path, selectors, accept):
                version = page["metadata"]["resourceVersion"]
                for item in _take_each(page.pop("items", None) or []):
                    yield ADDED, project({**item, "apiVersion": api_version, "kind": kind})
        except ApiError as error:
            if error.code != 404:
                raise
            self._discovered.pop((api_version, kind), None)
            raise NoSuchKind(api_version, kind) from error
        yield LISTED, {}
        query = {name: value for name, value in selectors.items() if value}
        query |= {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version}
        limit = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=idle_seconds)
        async with self._send(
            "GET", path, query=query, accept=METADATA if partial else _JSON, limit=limit
        ) as response:
            if response.status >= 400:
                _require_success(response.status, await _read_answer(response))
            while line := await response.content.readline(max_line_length=MAX_OBJECT_BYTES):
                change = await _parse_or_cut(line, ENVELOPE, cut_event)
                if change["type"] == "ERROR":
                    _require_success(int(change["object"].get("code") or 500), change["object"])
                if change["type"] != "BOOKMARK":
                    yield (
                        change["type"],
                        project({**change["object"], "apiVersion": api_version, "kind": kind}),
                    )

    async def read_log(
        self,
        namespace: str,
        pod: str,
        container: str,
        max_bytes: int,
        tail_lines: int = 0,
        previous: bool = False,
    ) -> AsyncGenerator[bytes, None]:
        """Yield a container's log from its beginning, at most `max_bytes`, in chunks as they come.

        Its last `tail_lines` only, where that is not 0. previous: of the start before the last one.

        Each line begins with the time at which the runtime received it (RFC 3339). Only the file
        that the kubelet writes now is read, not those that it has rotated away. Raises as `get`
        does; ApiError 404 when the pod is gone, 400 when the container has no log.
        """
        path = await self._path("v1", "Pod", namespace, pod) + "/log"
        query = {"container": container, "timestamps": "true", "limitBytes": str(max_bytes)}
        if tail_lines:
            query["tailLines"] = str(tail_lines)
        if previous:
            query["previous"] = "true"
        limit = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=20)
        async with self._send("GET", path, query=query, accept="*/*", limit=limit) as response:
            if response.status >= 400:
                _require_success(response.status, await _read_answer(response))
            async for chunk in response.content.iter_chunked(LOG_CHUNK_BYTES):
                yield chunk

    # --- HTTP

    async def _object_path(self, obj: Object) -> str:
        meta = obj["metadata"]
        return await self._path(
            obj["apiVersion"], obj["kind"], meta.get("namespace", ""), meta["name"]
        )

    async def _path(
        self, api_version: str, kind: str, namespace: str, name: str | None = None
    ) -> str:
        """Return the path of an object, or of all objects of its kind (no name).

        The only place where a path is made of what others wrote. Raises ValueError for what is no
        object's name: the path of "" is that of all objects, and a deletion there deletes all of
        them. Raises NoSuchKind for what is no apiVersion.
        """
        if name is not None and not is_object_name(name):
            what = "empty" if not name else f"no object's name: {name[:MAX_QUOTED]!r}"
            raise ValueError(f"{kind} in {namespace or 'the cluster'}: the name is {what}")
        resource = await self._resource(api_version, kind)
        steps = [_base_path(api_version)]
        if resource.namespaced and namespace:
            steps += ["namespaces", quote(namespace, safe="")]
        steps.append(quote(resource.plural, safe=""))
        if name:
            steps.append(quote(name, safe=""))
        return "/".join(steps)

    async def _resource(self, api_version: str, kind: str) -> Resource:
        """Return the kind's resource: a known one, or as the API server says. Raises NoSuchKind."""
        if known := KNOWN_RESOURCES.get((api_version, kind)):
            return known
        if not _API_VERSION.fullmatch(api_version):
            raise NoSuchKind(api_version[:MAX_QUOTED], kind[:MAX_QUOTED])
        resource, expires_at = self._discovered.get((api_version, kind), (None, 0.0))
        if resource is not None and time.monotonic() < expires_at:
            return resource
        code, answer = await self._request_json("GET", _base_path(api_version))
        if code == 404:
            raise NoSuchKind(api_version, kind)
        for entry in _require_success(code, answer).get("resources") or ():
            if entry["kind"] == kind and "/" not in entry["name"]:
                resource = Resource(entry["name"], entry["namespaced"])
                expires_at = time.monotonic() + RESOURCE_TTL_SECONDS
                self._discovered[api_version, kind] = resource, expires_at
                return resource
        raise NoSuchKind(api_version, kind)

    async def _read_pages(
        self, path: str, selectors: Mapping[str, str], accept: str
    ) -> AsyncIterator[Object]:
        """Yield the pages of a list, each within intake.PAGE or with one object.

        Raises ApiError: 410 when the API server does not remember the list any more, 413 for an
        object of more than MAX_OBJECT_BYTES.
        """
        given = {name: value for name, value in selectors.items() if value}
        limit, rest = PAGE_SIZE, ""
        while True:
            query = {"limit": str(limit), **given, **({"continue": rest} if rest else {})}
            async with self._send("GET", path, query=query, accept=accept) as response:
                raw = await _read_at_most(response, PAGE.size if limit > 1 else MAX_OBJECT_BYTES)
            if limit > 1 and (raw is None or find_excess(raw, PAGE)):
                limit = max(1, limit // SMALLER_PAGE)
                continue
            if raw is None:
                raise ApiError(413, "TooLarge", f"{path}: an object is larger than 8 MiB")
            page = await _parse_answer(raw, PAGE if limit > 1 else ENVELOPE, cut_list)
            if len(raw) < PAGE.size // (2 * SMALLER_PAGE):
                limit = min(PAGE_SIZE, limit * SMALLER_PAGE)
            page = _require_success(response.status, page)
            del raw  # it may be megabytes, and the page with it
            rest = (page.get("metadata") or {}).get("continue") or ""
            yield page
            del page
            if not rest:
                return

    async def _request_json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        content: str = _JSON,
        accept: str = _JSON,
    ) -> tuple[int, Object]:
        """Return the answer's HTTP status and JSON. Raises OSError or TimeoutError without one."""
        async with self._send(
            method, path, query=query, body=body, content=content, accept=accept
        ) as response:
            return response.status, await _read_answer(response)

    @asynccontextmanager
    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        content: str = _JSON,
        accept: str = _JSON,
        limit: aiohttp.ClientTimeout = CALL_TIMEOUT,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Accept": accept, "Content-Type": content, **self._client.default_headers}
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = self._client.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        is_counted = limit is CALL_TIMEOUT and not path.startswith(LEASES)
        try:
            async with self._short_calls if is_counted else nullcontext():
                answer = await self._client.call_api(
                    method, url, headers, body, _request_timeout=limit
                )
                async with answer.response as response:
                    self._server_clock.observe(response.headers.get("Date"))
                    yield response
        except aiohttp.ClientError as error:
            kind = TimeoutError if isinstance(error, TimeoutError) else ConnectionError
            raise kind(f"{method} {path}: {type(error).__name__} {error}") from error


def build_event(cache: Object, event: Event, now: float) -> Object:
    """Return the core/v1 Event to write.

    Its name is made of the cache, the reason and the message: a repeated event has the same name.
    """
    meta = cache["metadata"]
    text = json.dumps([meta["uid"], event.reason, event.message])
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "namespace": meta["namespace"],
            "name": f"{meta['name'][:200]}.{hashlib.sha256(text.encode()).hexdigest()[:16]}",
        },
        "involvedObject": {
            "apiVersion": cache["apiVersion"],
            "kind": cache["kind"],
            **{name: meta[name] for name in ("namespace", "name", "uid")},
        },
        "type": "Warning" if event.warning else "Normal",
        "reason": event.reason,
        "message": event.message if len(event.message) <= 1024 else event.message[:1023] + "…",
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": FIELD_MANAGER,
        "firstTimestamp": format_timestamp(now),
        "lastTimestamp": format_timestamp(now),
        "count": 1,
    }


async def _read_at_most(response: aiohttp.ClientResponse, max_bytes: int) -> bytes | None:
    """Return the body, or None where it is larger: the rest is not read."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > max_bytes:
            response.close()
            return None
    return bytes(body)


def _take_each(items: list[Object]) -> Iterator[Object]:
    """Yield the items and keep none, so that a page is freed while it is read."""
    items.reverse()
    while items:
        yield items.pop()


def is_object_name(name: str) -> bool:
    """Whether an object can have this name, as the API server sees it: one segment of a path."""
    return name not in ("", ".", "..") and "/" not in name and "%" not in name


def _base_path(api_version: str) -> str:
    root = "apis" if "/" in api_version else "api"
    return "/".join(("", root, *(quote(step, safe="") for step in api_version.split("/"))))


def _escape(value: str) -> str:
    """Return the value as one of a field selector."""
    return re.sub(r"([\\,=])", r"\\\1", value)


def _preconditions(ref: Object) -> Object:
    meta = ref["metadata"]
    return {name: meta[name] for name in ("uid", "resourceVersion") if name in meta}


async def _read_answer(response: aiohttp.ClientResponse) -> Object:
    """Return an answer with one object. Raises ApiError where it is larger than MAX_OBJECT_BYTES."""
    raw = await _read_at_most(response, MAX_OBJECT_BYTES)
    if raw is None:
        raise ApiError(413, "TooLarge", f"{response.url.path}: the answer is larger than 8 MiB")
    return await _parse_answer(raw, OBJECT, cut_object)


async def _parse_answer(raw: bytes, bounds: Bounds, cut: Cut) -> Object:
    """Return the answer as JSON; a text that is not JSON as a Status with that text as message.

    Texts are `404 page not found`, or a proxy's page. Raises ApiError for an object of which
    nothing can be read.
    """
    try:
        answer = await _parse_or_cut(raw, bounds, cut)
    except TooLarge as error:
        raise ApiError(413, "TooLarge", f"the answer {error}") from None
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        return answer
    return {"kind": "Status", "message": raw[:4096].decode(errors="replace")[:1024]}


async def _parse_or_cut(raw: bytes, bounds: Bounds, cut: Cut) -> Any:
    """Return the JSON; what `cut` leaves of it where it exceeds the bounds. Raises ValueError."""
    try:
        return parse_json(raw, bounds)
    except TooLarge as error:
        excess = str(error)
    try:
        return await asyncio.to_thread(cut, raw)
    except ValueError as error:
        raise TooLarge(f"{excess}: {error}") from None


def _require_success(code: int, answer: Object) -> Object:
    """Return the answer, unless its HTTP status is an error. Raises ApiError."""
    if code >= 400:
        message = answer.get("message") or f"HTTP {code}"
        raise ApiError(code, answer.get("reason") or "", message)
    return answer
