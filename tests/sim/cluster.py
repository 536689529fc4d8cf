"""An API server in memory, and clients of it that can be killed at any call.

`Server` is the truth: what the world (world.py) and a person's hand change. `Client` is what a controller holds: the Protocol of
`pretune.kube.types.Cluster`, which counts its calls, fails at those it is told to, and dies before or after one of them.
"""

from __future__ import annotations

import asyncio
import marshal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import cache
from typing import Any, TypeVar

from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.controller.release_refusals import ReleaseRefusals
from pretune.kube.server_clock import ServerClock
from pretune.kube.types import ApiError, Event, NoSuchKind, keep_all
from pretune.manifests.json_patch import copy_json

T = TypeVar("T")
Place = tuple[str, str, str, str]  # apiVersion, kind, namespace, name

# Kinds whose status is a subresource: a write to one side leaves the other as it is.
SUBRESOURCE = frozenset({"AutotuneCache", "Job", "Pod", "PersistentVolumeClaim", "Deployment"})
KINDS = frozenset(
    {
        ("pretune.dev/v1alpha1", "AutotuneCache"),
        ("apps/v1", "Deployment"),
        *(
            ("apps/v1", kind)
            for kind in ("StatefulSet", "DaemonSet", "ReplicaSet", "ControllerRevision")
        ),
        ("batch/v1", "Job"),
        ("storage.k8s.io/v1", "StorageClass"),
        ("resource.k8s.io/v1", "ResourceClaimTemplate"),
        *(
            ("v1", kind)
            for kind in (
                "Pod",
                "PersistentVolumeClaim",
                "ConfigMap",
                "Event",
                "Service",
                "Secret",
                "Node",
            )
        ),
    }
)
MERGE_KEYS = {
    "schedulingGates": "name"
}  # of lists that a strategic merge patch merges by their items
NAME_LIMIT = 253
LABEL_LIMIT = 63


def copied(value: T) -> T:
    """A deep copy of plain data, ten times as fast as copy.deepcopy; anything but plain data is an error."""
    return marshal.loads(marshal.dumps(value))  # type: ignore[arg-type, no-any-return]


class Killed(BaseException):
    """The controller's process ended here. No `except Exception` may catch it, as none catches a SIGKILL."""


class Clock:
    """Unix seconds; moves only when told."""

    def __init__(self, now: float = 1_767_225_600.0) -> None:  # 2026-01-01T00:00:00Z
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        assert seconds >= 0, seconds
        self.now += seconds


@dataclass(frozen=True)
class Write:
    """One write that the server accepted."""

    verb: str  # create | apply | patch | patch status | delete
    kind: str
    name: str
    by: str  # the client's name; "" is the world or a person
    object: Object = field(compare=False)  # as stored (as it was, for delete)


Admission = Callable[
    [str, Object], None
]  # (verb, object): raises ApiError to refuse it, may change it in place
Listener = Callable[[Write], None]


class Server:
    """The objects, with what the API server does to each write: versions, generations, conflicts, finalizers, subresources.

    What is stored is never changed, but replaced: whoever was handed it has it as it was. Nobody else may change it either.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.objects: dict[Place, Object] = {}
        self._places: dict[
            tuple[str, str], list[Place]
        ] = {}  # by kind, sorted; as far as asked for
        self.writes: list[Write] = []
        self.events: list[Event] = []
        self.admission: list[Admission] = []
        self.listeners: list[Listener] = []
        self._version = 0
        self._uids = 0

    # --- reading

    def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        found = self.stored(api_version, kind, namespace, name)
        return copied(found) if found is not None else None

    def stored(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        """The stored object itself: not to be changed."""
        self._known(api_version, kind)
        return self.objects.get((api_version, kind, namespace, name))

    def list(
        self, api_version: str, kind: str, namespace: str, labels: str = "", fields: str = ""
    ) -> list[Object]:
        """In the order of their names, as etcd answers. `namespace` "" is all of them."""
        return [copied(one) for one in self.matching(api_version, kind, namespace, labels, fields)]

    def matching(
        self, api_version: str, kind: str, namespace: str, labels: str, fields: str
    ) -> Iterator[Object]:
        """The stored objects themselves: not to be changed."""
        self._known(api_version, kind)
        wanted = (api_version, kind)
        if wanted not in self._places:
            self._places[wanted] = sorted(place for place in self.objects if place[:2] == wanted)
        for place in self._places[wanted]:
            found = self.objects[place] if namespace in ("", place[2]) else None
            if found and _labels_match(found, labels) and _fields_match(found, fields):
                yield found

    # --- writing

    def create(self, obj: Object, by: str = "") -> Object:
        new = copied(copy_json(obj))  # plain, even if a builder has made it
        place = self._place(new)
        for admit in self.admission:
            admit("create", new)
        _validate(new)
        if new["kind"] == "Pod":
            _gated(new)
        if place in self.objects:
            raise ApiError(409, "AlreadyExists", f'{place[1].lower()}s "{place[3]}" already exists')
        if new["kind"] in SUBRESOURCE:
            new.pop("status", None)
        meta = new["metadata"]
        self._uids += 1
        meta.update(
            uid=f"{self._uids:08x}-0000-4000-8000-000000000000",
            creationTimestamp=format_timestamp(self.clock.now),
            generation=1,
        )
        meta.pop("deletionTimestamp", None)
        if new["kind"] == "PersistentVolumeClaim":
            meta["finalizers"] = [*meta.get("finalizers", ()), "kubernetes.io/pvc-protection"]
            new["status"] = {"phase": "Pending"}
        if new["kind"] == "Pod":
            new["status"] = {"phase": "Pending"}
        return self._store(place, new, "create", by)

    def apply(self, obj: Object, by: str = "") -> Object:
        """Server-side apply of a wholly owned object: made when it is missing, else merged over what is there."""
        place = self._place(obj)
        if place not in self.objects:
            return self.create(obj, by)
        new = _merge(
            self.objects[place], {name: value for name, value in obj.items() if name != "status"}
        )
        for admit in self.admission:
            admit("update", new)
        return self._replace(place, new, "apply", by)

    def patch(
        self,
        ref: Object,
        patch: Mapping[str, Any],
        *,
        status: bool = False,
        strategic: bool = False,
        by: str = "",
    ) -> Object:
        place = self._place(ref)
        old = self._held(place, ref)
        if status:
            sides = {name: value for name, value in patch.items() if name == "status"}
        else:
            sides = {
                name: value
                for name, value in patch.items()
                if name != "status" or old["kind"] not in SUBRESOURCE
            }
        new = (_merge_strategically if strategic else _merge)(old, sides)
        fixed = ("uid", "resourceVersion", "creationTimestamp", "generation", "deletionTimestamp")
        kept = {name: old["metadata"][name] for name in fixed if name in old["metadata"]}
        new["metadata"] = {**new["metadata"], **kept}
        if not status:
            for admit in self.admission:
                admit("update", new)
        return self._replace(place, new, "patch status" if status else "patch", by)

    def delete(self, ref: Object, by: str = "", grace: float | None = None) -> None:
        """A pod on a node gets its grace period, an object with finalizers waits for them; everything else goes at once.
        Dependents are the garbage collector's (world.py)."""
        place = self._place(ref)
        if place not in self.objects:
            return
        old = self._held(place, ref)
        meta = self.objects[place]["metadata"]
        running = (
            old["kind"] == "Pod"
            and old["spec"].get("nodeName")
            and old["status"]["phase"] in ("Pending", "Running")
        )
        if running or meta.get("finalizers"):
            if "deletionTimestamp" not in meta:
                period = (
                    old["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
                )
                when = format_timestamp(self.clock.now + (period if running else 0))
                self._store(
                    place, {**old, "metadata": {**meta, "deletionTimestamp": when}}, "delete", by
                )
            return
        self.remove(place, by)

    def remove(self, place: Place, by: str = "") -> None:
        """The object is gone, whatever stood in the way."""
        gone = self.objects.pop(place)
        self._places.pop(place[:2], None)
        self._version += 1
        self._tell(Write("delete", place[1], place[3], by, gone))

    def finalize(self, obj: Object) -> None:
        """Every finalizer is done: a terminating object goes."""
        place = self._place(obj)
        old = self.objects[place]
        meta = {name: one for name, one in old["metadata"].items() if name != "finalizers"}
        self.objects[place] = {**old, "metadata": meta}
        if "deletionTimestamp" in meta:
            self.remove(place)

    # --- inside

    def _known(self, api_version: str, kind: str) -> None:
        if (api_version, kind) not in KINDS:
            raise NoSuchKind(api_version, kind)

    def _place(self, obj: Object) -> Place:
        meta = obj["metadata"]
        self._known(obj["apiVersion"], obj["kind"])
        return (obj["apiVersion"], obj["kind"], meta.get("namespace", ""), meta["name"])

    def _held(self, place: Place, ref: Object) -> Object:
        """What is there, if `ref`'s preconditions hold."""
        found = self.objects.get(place)
        if found is None:
            raise ApiError(404, "NotFound", f'{place[1].lower()}s "{place[3]}" not found')
        for name in ("uid", "resourceVersion"):
            wanted = ref["metadata"].get(name)
            if wanted is not None and wanted != found["metadata"][name]:
                raise _conflict(place)
        return found

    def _replace(self, place: Place, new: Object, verb: str, by: str) -> Object:
        old = self.objects[place]
        _validate(new)
        _immutable(old, new)
        if new == old:  # a write that changes nothing makes no version
            self._tell(Write(verb, place[1], place[3], by, old))
            return old
        if new.get("spec") != old.get("spec"):
            new["metadata"] = {**new["metadata"], "generation": old["metadata"]["generation"] + 1}
        return self._store(place, new, verb, by)

    def _store(self, place: Place, obj: Object, verb: str, by: str) -> Object:
        self._version += 1
        stored = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self._version)}}
        if place not in self.objects:
            self._places.pop(place[:2], None)
        self.objects[place] = stored
        self._tell(Write(verb, place[1], place[3], by, stored))
        return stored

    def _tell(self, write: Write) -> None:
        self.writes.append(write)
        for listener in self.listeners:
            listener(write)


@dataclass
class Faults:
    """What happens to a client's calls, by their number from 1."""

    crash_at: tuple[int, str] | None = None  # (n, "before" | "after"): killed there
    errors: Mapping[int, Exception] = field(
        default_factory=dict
    )  # answered instead; the call did not take effect
    lost_answers: Mapping[int, Exception] = field(
        default_factory=dict
    )  # raised although the call took effect


class Client:
    """One controller's connection to the Server: the Protocol of pretune.kube.types.Cluster."""

    def __init__(
        self,
        server: Server,
        name: str = "controller",
        faults: Faults | None = None,
        pause_before: int = 0,
    ) -> None:
        self.server, self.name, self.faults = server, name, faults or Faults()
        self.pause_before = pause_before  # this call waits until `resume`: a process that was stopped, and goes on late
        self.paused, self.resume = asyncio.Event(), asyncio.Event()
        self.calls: list[str] = []
        # What a controller's process has of its own: its clocks, and what it was refused.
        self.ahead = 0.0  # seconds by which its machine's clock is ahead of the API server's
        self.refusals = ReleaseRefusals()
        self._server_clock = ServerClock(server.clock, lambda: server.clock.now + self.ahead)
        self.dead = False
        self.broken: Exception | None = None  # answered to every call

    def now(self) -> float:
        return self._server_clock.now()

    @property
    def writes(self) -> list[str]:
        """The calls that write, events not counted."""
        return [
            call
            for call in self.calls
            if call.split()[0] in ("create", "apply", "patch", "status", "delete")
        ]

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        return await self._call(
            f"get {kind} {name}", lambda: self.server.get(api_version, kind, namespace, name)
        )

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
        def read() -> list[Object]:
            return [
                copied(project(one))
                for one in self.server.matching(api_version, kind, namespace, labels, fields)
            ]

        return await self._call(f"list {kind}", read)

    async def create(self, obj: Object) -> Object:
        return copied(
            await self._call(_words("create", obj), lambda: self.server.create(obj, self.name))
        )

    async def apply(self, obj: Object) -> Object:
        return copied(
            await self._call(_words("apply", obj), lambda: self.server.apply(obj, self.name))
        )

    async def patch(
        self,
        ref: Object,
        patch: Mapping[str, Any],
        *,
        status: bool = False,
        strategic: bool = False,
    ) -> Object:
        words = _words("status" if status else "patch", ref)
        return copied(
            await self._call(
                words,
                lambda: self.server.patch(
                    ref, patch, status=status, strategic=strategic, by=self.name
                ),
            )
        )

    async def delete(self, ref: Object) -> None:
        return await self._call(_words("delete", ref), lambda: self.server.delete(ref, self.name))

    async def record_event(self, cache: Object, event: Event) -> None:
        return await self._call(f"event {event.reason}", lambda: self.server.events.append(event))

    async def _call(self, words: str, act: Callable[[], T]) -> T:
        if self.dead:
            raise Killed(f"{self.name} is dead, and called {words}")
        self.calls.append(words)
        number, crash = len(self.calls), self.faults.crash_at
        if number == self.pause_before:
            self.paused.set()
            await self.resume.wait()
        if crash == (number, "before"):
            self.dead = True
            raise Killed(f"before call {number}: {words}")
        if self.broken is not None:
            raise self.broken
        if number in self.faults.errors and not words.startswith("event"):
            raise self.faults.errors[number]
        try:
            self._server_clock.observe(formatdate(self.server.clock.now, usegmt=True))
            answer = act()
        finally:
            if crash == (number, "after"):
                self.dead = True
                raise Killed(f"after call {number}: {words}")
        if number in self.faults.lost_answers and not words.startswith("event"):
            raise self.faults.lost_answers[number]
        return answer


def _words(verb: str, obj: Object) -> str:
    return f"{verb} {obj['kind']} {obj['metadata']['name']}"


def _conflict(place: Place) -> ApiError:
    return ApiError(
        409,
        "Conflict",
        f'{place[1].lower()}s "{place[3]}": the object has been modified; please apply your changes to it',
    )


def _merge(old: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, Mapping):
        return copied(patch)
    new = dict(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            new.pop(name, None)
        else:
            new[name] = _merge(new.get(name), value)
    return new


def _merge_strategically(old: Any, patch: Any, field: str = "") -> Any:
    """As RFC 7396, but that a list whose items have a merge key is merged item by item, and an item can be deleted by it."""
    if isinstance(patch, list) and field in MERGE_KEYS:
        key = MERGE_KEYS[field]
        new = {one[key]: copied(one) for one in old or ()}
        for one in patch:
            if one.get("$patch") == "delete":
                new.pop(one[key], None)
            else:
                new[one[key]] = _merge_strategically(new.get(one[key]), one)
        return list(new.values())
    if not isinstance(patch, Mapping):
        return copied(patch)
    new = dict(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            new.pop(name, None)
        else:
            new[name] = _merge_strategically(new.get(name), value, name)
            if new[name] == [] and name in MERGE_KEYS:
                del new[name]  # the API server keeps no empty list
    return new


@cache
def _requirements(selector: str) -> tuple[tuple[str, str, bool], ...]:
    """(key, value, equal) of `a=b,c!=d`; a bare key has the value "*": it is there."""
    return tuple(_parsed(selector))


def _parsed(selector: str) -> Iterator[tuple[str, str, bool]]:
    for term in filter(None, selector.split(",")):
        if "!=" in term:
            key, value = term.split("!=", 1)
            yield key, value, False
        elif term.startswith("!"):
            yield term[1:], "*", False
        elif "=" in term:
            key, value = term.replace("==", "=").split("=", 1)
            yield key, value, True
        else:
            yield term, "*", True


def _labels_match(obj: Object, selector: str) -> bool:
    labels = obj["metadata"].get("labels") or {}
    return all(
        ((key in labels) if value == "*" else labels.get(key) == value) == equal
        for key, value, equal in _requirements(selector)
    )


def _fields_match(obj: Object, selector: str) -> bool:
    def at(path: str) -> str:
        value: Any = obj
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return "" if value is None else str(value)

    return all((at(key) == value) == equal for key, value, equal in _requirements(selector))


def _validate(obj: Object) -> None:
    """The few rules of the API server that our own objects could break."""
    meta = obj["metadata"]
    what = f"{obj['kind']} {meta['name']!r} is invalid"
    if len(meta["name"]) > (LABEL_LIMIT if obj["kind"] == "Job" else NAME_LIMIT):
        raise ApiError(422, "Invalid", f"{what}: metadata.name: Too long")
    for value in (meta.get("labels") or {}).values():
        if not isinstance(value, str) or len(value) > LABEL_LIMIT:
            raise ApiError(422, "Invalid", f"{what}: metadata.labels: Invalid value: {value!r}")
    for value in (meta.get("annotations") or {}).values():
        if not isinstance(value, str):
            raise ApiError(
                422, "Invalid", f"{what}: metadata.annotations: Invalid value: {value!r}"
            )


def _gated(pod: Object) -> None:
    if pod["spec"].get("schedulingGates") and pod["spec"].get("nodeName"):
        what = f'Pod "{pod["metadata"]["name"]}" is invalid'
        raise ApiError(
            422,
            "Invalid",
            f"{what}: spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared",
        )


def _immutable(old: Object, new: Object) -> None:
    """Fields that the API server lets nobody change after creation."""
    fixed: dict[str, tuple[str, ...]] = {
        "Job": ("template", "selector", "completions", "podFailurePolicy", "podReplacementPolicy"),
        "PersistentVolumeClaim": ("accessModes", "storageClassName"),
    }
    for name in fixed.get(old["kind"], ()):
        before, after = (one["spec"].get(name) for one in (old, new))
        if before != after:
            raise ApiError(
                422,
                "Invalid",
                f'{old["kind"]} "{old["metadata"]["name"]}" is invalid: spec.{name}: Invalid value: field is immutable',
            )
    gates = [one["name"] for one in (old.get("spec") or {}).get("schedulingGates") or ()]
    for gate in (
        (new.get("spec") or {}).get("schedulingGates") or () if old["kind"] == "Pod" else ()
    ):
        if gate["name"] not in gates:
            raise ApiError(
                422,
                "Invalid",
                f'Pod "{old["metadata"]["name"]}" is invalid: spec.schedulingGates: Forbidden: only deletion is allowed,'
                f" but found new scheduling gate '{gate['name']}'",
            )
