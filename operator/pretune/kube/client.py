"""The only module that talks to Kubernetes: plain dicts in, plain dicts out.

The client's typed models reject unknown fields on write and drop them on read
(docs/dev/facts-kubernetes.md), and its dynamic client keeps
what it discovers in a temporary file, which a read-only root has not. So only its configuration (service account, kubeconfig,
renewal of tokens) and its HTTP session are used. `tests/sim` implements the same Protocol in memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
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
from pretune.kube.types import ApiError, Event, NoSuchKind, metadata, whole
from pretune.kube.watch import ADDED, LISTED, Change

log = logging.getLogger(__name__)

MANAGER = "pretune"  # field manager, and the name under which Events are reported
PAGE = 500  # objects of one list request: 3,000 pods at once were 17 MB and 149 MiB resident
CALL = aiohttp.ClientTimeout(total=30)
# A watch sends a bookmark a minute even when nothing happens; a silent one is a dead connection.
SILENT = 90.0  # seconds
LOG_CHUNK = 64 << 10  # bytes of a log that are looked at in one go
LONGEST = 8 << 20  # bytes of one line of a watch: an object, as JSON; aiohttp alone takes 128 KiB
DISCOVERED = 600.0  # seconds that a kind's resource is believed

_JSON = "application/json"
_METADATA_LIST = f"{_JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,{_JSON}"
_METADATA = f"{_JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1,{_JSON}"


@dataclass(frozen=True)
class Resource:
    """Where a kind is found in the API: /apis/<group>/<version>[/namespaces/<namespace>]/<plural>."""

    plural: str
    namespaced: bool = True


KNOWN: Mapping[tuple[str, str], Resource] = {
    (f"{GROUP}/{VERSION}", KIND): Resource(PLURAL),
    ("v1", "Pod"): Resource("pods"),
    ("v1", "PersistentVolumeClaim"): Resource("persistentvolumeclaims"),
    ("v1", "ConfigMap"): Resource("configmaps"),
    ("v1", "Event"): Resource("events"),
    ("batch/v1", "Job"): Resource("jobs"),
    ("apps/v1", "Deployment"): Resource("deployments"),
    ("apps/v1", "StatefulSet"): Resource("statefulsets"),
    ("apps/v1", "DaemonSet"): Resource("daemonsets"),
    ("apps/v1", "ReplicaSet"): Resource("replicasets"),
    ("apps/v1", "ControllerRevision"): Resource("controllerrevisions"),
    ("storage.k8s.io/v1", "StorageClass"): Resource("storageclasses", namespaced=False),
    ("coordination.k8s.io/v1", "Lease"): Resource("leases"),
}


async def configuration() -> Configuration:
    """How to reach the cluster: KUBECONFIG where it is set, else the pod's service account, else ~/.kube/config."""
    config = Configuration()
    if "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
        load_incluster_config(client_configuration=config)  # type: ignore[no-untyped-call]  # reads the token anew each minute
    else:
        await load_kube_config(client_configuration=config, persist_config=False)  # type: ignore[no-untyped-call]
    config.connection_pool_maxsize = 0  # no limit: each watched object holds a connection
    return config


class Kubernetes:
    """A real cluster. Use as `async with Kubernetes(await configuration()) as cluster`."""

    def __init__(self, config: Configuration) -> None:
        self._client = ApiClient(config)
        self._client.user_agent = MANAGER
        self._found: dict[tuple[str, str], tuple[Resource, float]] = {}
        self._written: dict[
            str, str
        ] = {}  # resourceVersion of our last status write, by the object's uid

    async def __aenter__(self) -> Kubernetes:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    # --- the Protocol

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        if not name:
            return None  # its path would be the list's
        path = await self._path(api_version, kind, namespace, name)
        code, answer = await self._ask("GET", path)
        if code == 404 and "name" in (answer.get("details") or {}):
            return None
        if code == 404:  # not the object is missing, but its resource
            self._found.pop((api_version, kind), None)
            raise NoSuchKind(api_version, kind)
        return _accepted(code, answer)

    async def list(
        self,
        api_version: str,
        kind: str,
        namespace: str,
        *,
        labels: str = "",
        fields: str = "",
        keep: Callable[[Object], Object] = whole,
    ) -> list[Object]:
        path = await self._path(api_version, kind, namespace)
        query = {"limit": PAGE, "labelSelector": labels, "fieldSelector": fields, "continue": ""}
        accept = _METADATA_LIST if keep is metadata else _JSON
        found: list[Object] = []
        while True:
            code, page = await self._ask(
                "GET", path, query={k: v for k, v in query.items() if v}, accept=accept
            )
            if code == 410 and query["continue"]:  # the pages' snapshot is gone: begin again
                found, query["continue"] = [], ""
                continue
            _accepted(code, page)
            found += [
                keep({**item, "apiVersion": api_version, "kind": kind})
                for item in page.get("items") or ()
            ]
            query["continue"] = (page.get("metadata") or {}).get("continue") or ""
            if not query["continue"]:
                return found

    async def create(self, obj: Object) -> Object:
        path = await self._path(
            obj["apiVersion"], obj["kind"], obj["metadata"].get("namespace", "")
        )
        return _accepted(*await self._ask("POST", path, body=obj, query={"fieldManager": MANAGER}))

    async def apply(self, obj: Object) -> Object:
        query = {"fieldManager": MANAGER, "force": "true"}
        content = "application/apply-patch+yaml"
        return _accepted(
            *await self._ask("PATCH", await self._of(obj), body=obj, query=query, content=content)
        )

    async def patch(
        self,
        ref: Object,
        patch: Mapping[str, Any],
        *,
        status: bool = False,
        strategic: bool = False,
    ) -> Object:
        held = {
            name: ref["metadata"][name]
            for name in ("uid", "resourceVersion")
            if name in ref["metadata"]
        }
        body = {**patch, "metadata": {**patch.get("metadata", {}), **held}}
        path = await self._of(ref) + ("/status" if status else "")
        content = f"application/{'strategic-' if strategic else ''}merge-patch+json"
        code, answer = await self._ask(
            "PATCH", path, body=body, query={"fieldManager": MANAGER}, content=content
        )
        causes = (answer.get("details") or {}).get("causes") or ()
        if code == 422 and any(cause.get("field") == "metadata.uid" for cause in causes):
            code = 409  # another object of that name: said as a field that may not change
        made = _accepted(code, answer)
        if status:
            self._written[made["metadata"]["uid"]] = made["metadata"]["resourceVersion"]
        return made

    def wrote(self, obj: Mapping[str, Any]) -> bool:
        """Whether this is an object as our own last write of its status left it: its watch event is no news."""
        meta = obj["metadata"]
        return bool(meta["resourceVersion"] == self._written.get(meta["uid"]))

    def forget(self, obj: Mapping[str, Any]) -> None:
        """The object is gone."""
        self._written.pop(obj["metadata"]["uid"], None)

    async def delete(self, ref: Object) -> None:
        body: Object = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
        }
        if held := {
            name: ref["metadata"][name]
            for name in ("uid", "resourceVersion")
            if name in ref["metadata"]
        }:
            body["preconditions"] = held
        code, answer = await self._ask("DELETE", await self._of(ref), body=body)
        if code != 404:
            _accepted(code, answer)

    async def event(self, cache: Object, event: Event) -> None:
        try:
            await self._event(event_object(cache, event, time.time()))
        except (ApiError, OSError, TimeoutError) as error:
            meta = cache["metadata"]
            log.warning(
                "%s/%s: event %s was not written: %s",
                meta["namespace"],
                meta["name"],
                event.reason,
                error,
            )

    async def _event(self, obj: Object) -> None:
        try:
            await self.create(obj)
        except ApiError as error:
            if error.code != 409:
                raise
            meta = obj["metadata"]
            there = await self.get("v1", "Event", meta["namespace"], meta["name"])
            if there is not None:
                again = {
                    "count": (there.get("count") or 1) + 1,
                    "lastTimestamp": obj["lastTimestamp"],
                }
                await self.patch(obj, again)

    # --- beyond it

    async def watch(
        self,
        api_version: str,
        kind: str,
        namespace: str,
        name: str = "",
        *,
        labels: str = "",
        keep: Callable[[Object], Object] = metadata,
        silent: float = SILENT,
    ) -> AsyncIterator[Change]:
        """What happens to one object, or to all of a namespace ("": of the cluster) that match a label selector: (ADDED | MODIFIED
        | DELETED, object), each object cut down by `keep` as in `list`. One that does not match any more is DELETED, as it was before.

        Begins with what is there, as ADDED, and (LISTED, {}) after it. Ends when the API server ends the stream, which it does at
        least once an hour. Raises as `get` does, TimeoutError after `silent` seconds without a word, and ApiError 410 when what
        happened in between is forgotten: begin again.
        """
        path = await self._path(api_version, kind, namespace)
        selectors = {
            "fieldSelector": f"metadata.name={name}" if name else "",
            "labelSelector": labels,
        }
        query = {how: one for how, one in selectors.items() if one}
        partial = keep is metadata
        # A list first: a watch that begins by itself and asks for bookmarks is refused by an older etcd (seen: 1.34 on 3.4).
        rest, version = "", ""
        while not version or rest:
            page = {**query, "limit": str(PAGE), **({"continue": rest} if rest else {})}
            code, there = await self._ask(
                "GET", path, query=page, accept=_METADATA_LIST if partial else _JSON
            )
            if code == 404:
                self._found.pop((api_version, kind), None)
                raise NoSuchKind(api_version, kind)
            for item in _accepted(code, there).get("items") or ():
                yield ADDED, keep({**item, "apiVersion": api_version, "kind": kind})
            rest, version = (
                there["metadata"].get("continue") or "",
                there["metadata"]["resourceVersion"],
            )
            del there
        yield LISTED, {}
        query |= {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version}
        limit = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=silent)
        async with self._sent(
            "GET", path, query=query, accept=_METADATA if partial else _JSON, limit=limit
        ) as response:
            if response.status >= 400:
                _accepted(response.status, _parsed(await response.read()))
            while line := await response.content.readline(max_line_length=LONGEST):
                change = json.loads(line)
                if change["type"] == "ERROR":
                    _accepted(int(change["object"].get("code") or 500), change["object"])
                if change["type"] != "BOOKMARK":
                    yield (
                        change["type"],
                        keep({**change["object"], "apiVersion": api_version, "kind": kind}),
                    )

    async def log(
        self, namespace: str, pod: str, container: str, most: int
    ) -> AsyncGenerator[bytes, None]:
        """A container's log from its beginning, at most `most` bytes, as they come; each line behind the time at which the runtime had
        it (RFC 3339). Of the file that the kubelet writes now: an older one that it has rotated away is not there. Raises as `get` does;
        ApiError 404 where the pod is gone, 400 where the container has no log."""
        path = await self._path("v1", "Pod", namespace, pod) + "/log"
        query = {"container": container, "timestamps": "true", "limitBytes": str(most)}
        limit = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=20)
        async with self._sent("GET", path, query=query, accept="*/*", limit=limit) as response:
            if response.status >= 400:
                _accepted(response.status, _parsed(await response.read()))
            async for chunk in response.content.iter_chunked(LOG_CHUNK):
                yield chunk

    # --- HTTP

    async def _of(self, obj: Object) -> str:
        meta = obj["metadata"]
        return await self._path(
            obj["apiVersion"], obj["kind"], meta.get("namespace", ""), meta["name"]
        )

    async def _path(
        self, api_version: str, kind: str, namespace: str, name: str | None = None
    ) -> str:
        """An object's path, or its kind's (no name). Raises ValueError for an empty name, whose path would be the kind's: to delete
        there is to delete all."""
        if name == "":
            raise ValueError(f"{kind} in {namespace or 'the cluster'}: the name is empty")
        resource = await self._resource(api_version, kind)
        place = (
            f"/namespaces/{quote(namespace, safe='')}" if resource.namespaced and namespace else ""
        )
        return f"{_base(api_version)}{place}/{resource.plural}" + (
            f"/{quote(name, safe='')}" if name else ""
        )

    async def _resource(self, api_version: str, kind: str) -> Resource:
        """The kind's resource: known, or asked of the cluster. Raises NoSuchKind."""
        if known := KNOWN.get((api_version, kind)):
            return known
        found, until = self._found.get((api_version, kind), (None, 0.0))
        if found is not None and time.monotonic() < until:
            return found
        code, answer = await self._ask("GET", _base(api_version))
        if code == 404:
            raise NoSuchKind(api_version, kind)
        for one in _accepted(code, answer).get("resources") or ():
            if one["kind"] == kind and "/" not in one["name"]:
                resource = Resource(one["name"], one["namespaced"])
                self._found[api_version, kind] = resource, time.monotonic() + DISCOVERED
                return resource
        raise NoSuchKind(api_version, kind)

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        content: str = _JSON,
        accept: str = _JSON,
    ) -> tuple[int, Object]:
        """The answer's HTTP status and JSON, whatever it says. Raises OSError or TimeoutError when there is none."""
        async with self._sent(
            method, path, query=query, body=body, content=content, accept=accept
        ) as response:
            return response.status, _parsed(await response.read())

    @asynccontextmanager
    async def _sent(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        content: str = _JSON,
        accept: str = _JSON,
        limit: aiohttp.ClientTimeout = CALL,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Accept": accept, "Content-Type": content, **self._client.default_headers}
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = self._client.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        try:
            answer = await self._client.call_api(method, url, headers, body, _request_timeout=limit)
            async with answer.response as response:
                yield response
        except aiohttp.ClientError as error:
            kind = TimeoutError if isinstance(error, TimeoutError) else ConnectionError
            raise kind(f"{method} {path}: {type(error).__name__} {error}") from error


def event_object(cache: Object, event: Event, now: float) -> Object:
    """The Event as it is written; its name tells a repetition (same cache, reason and message) from news."""
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
        "source": {"component": MANAGER},
        "reportingComponent": MANAGER,
        "firstTimestamp": format_timestamp(now),
        "lastTimestamp": format_timestamp(now),
        "count": 1,
    }


def _base(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def _parsed(raw: bytes) -> Object:
    """The answer as JSON; a text that is none (`404 page not found`, a proxy's page) as a Status with that message."""
    try:
        answer = json.loads(raw)
    except ValueError:
        answer = None
    return (
        answer
        if isinstance(answer, dict)
        else {"kind": "Status", "message": raw.decode(errors="replace")[:1024]}
    )


def _accepted(code: int, answer: Object) -> Object:
    if code >= 400:
        raise ApiError(code, answer.get("reason") or "", answer.get("message") or f"HTTP {code}")
    return answer
