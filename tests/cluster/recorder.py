"""What happened in a namespace and when: each state of its caches and consumers, from a watch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import requests

from tests.cluster.kube import Kube, Object, Refusal, bundles, condition

HOLD = "pretune.dev/hold"
# "At once", on two cores that do everything; tests/bench measures how long it takes.
SOON_SECONDS = 5


@dataclass(frozen=True)
class Record:
    """The state of an object from `at` on (time.monotonic()); `is_deleted`: it was deleted then."""

    at: float
    kind: str
    object: Object
    is_deleted: bool = False

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])


class Recorder:
    """Records the pods and caches of a namespace. `wait_until` waits for a state in the records."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.namespace, self._kube = namespace, kube
        self.records: list[Record] = []
        self._news = threading.Condition()
        self._closed = False
        self._listed = {kind: threading.Event() for kind in ("Pod", "AutotuneCache")}
        for kind in self._listed:
            threading.Thread(
                target=self._follow, args=(kube.new_session(), kind), daemon=True
            ).start()
        assert all(listed.wait(20) for listed in self._listed.values()), (
            "the API server does not answer"
        )

    def close(self) -> None:
        self._closed = True

    def _follow(self, kube: Kube, kind: str) -> None:
        """List and watch, again and again: a restart of the API server ends the watch. Runs in a thread."""
        while not self._closed:
            try:
                for change, obj in kube.changes(kind, self.namespace, seconds=300):
                    if self._closed:
                        return
                    if change == "LISTED":
                        names = {item["metadata"]["name"] for item in obj["items"]}
                        current = self._current(kind)
                        lost = [current[name] for name in current if name not in names]
                        self._record(kind, lost, is_deleted=True)  # while no watch was open
                        self._record(kind, obj["items"])
                        self._listed[kind].set()
                    else:
                        self._record(kind, [obj], is_deleted=change == "DELETED")
            except (requests.RequestException, Refusal, ValueError):
                time.sleep(0.2)  # the API server is down: try again

    def _record(self, kind: str, objects: list[Object], is_deleted: bool = False) -> None:
        with self._news:
            self.records += [Record(time.monotonic(), kind, obj, is_deleted) for obj in objects]
            self._news.notify_all()

    def wait_until(self, holds: Callable[[Recorder], Any], seconds: float, what: str) -> float:
        """Wait until `holds` is true, and return how many seconds that took. Raises AssertionError."""
        began = time.monotonic()
        with self._news:
            while not holds(self):
                left = began + seconds - time.monotonic()
                if left <= 0:
                    raise AssertionError(
                        f"not within {seconds} s: {what}. The state is:\n{self.describe()}"
                    )
                self._news.wait(left)
        return time.monotonic() - began

    # --- the current state

    def pods(self, version: str | None = None) -> list[Object]:
        """Return the consumers that are not being deleted, of one version or all."""
        return [
            pod
            for pod in self._current("Pod").values()
            if is_consumer(pod)
            and not pod["metadata"].get("deletionTimestamp")
            and version in (None, version_of(pod))
        ]

    def cache(self, name: str = "demo") -> Object:
        return self._current("AutotuneCache").get(name, {})

    def has_sealed(self, number: int = 1, name: str = "demo") -> bool:
        """Whether so many bundles are sealed."""
        return sum(bundle["state"] == "Sealed" for bundle in bundles(self.cache(name))) >= number

    def are_ready(self, number: int, version: str | None = None) -> bool:
        """Whether exactly so many pods exist, of one version or of all, and all are ready."""
        pods = self.pods(version)
        return len(pods) == number and all(is_ready(pod) for pod in pods)

    def _current(self, kind: str) -> dict[str, Object]:
        found: dict[str, Object] = {}
        for record in self.records:
            if record.kind == kind:
                found.pop(record.name, None)
                if not record.is_deleted:
                    found[record.name] = record.object
        return found

    # --- the records

    def history(self, kind: str = "Pod") -> Iterator[tuple[float, dict[str, Object]]]:
        """Yield the time of each change, and the objects by name after it."""
        found: dict[str, Object] = {}
        for record in list(self.records):
            if record.kind == kind and (kind != "Pod" or is_consumer(record.object)):
                found = {name: obj for name, obj in found.items() if name != record.name}
                if not record.is_deleted:
                    found[record.name] = record.object
                yield record.at, found

    def least_ready(self, since: float) -> int:
        """Return the lowest number of serving pods since then; a pod that is being deleted does not serve."""
        counts = [
            (at, sum(is_serving(pod) for pod in pods.values())) for at, pods in self.history()
        ]
        before = [count for at, count in counts if at <= since][-1:]
        return min(before + [count for at, count in counts if at > since])

    def first_time(
        self, holds: Callable[[Object], Any], kind: str = "Pod", name: str = ""
    ) -> float:
        """Return when `holds` was first true of an object. Raises AssertionError if it never was."""
        for record in self.records:
            is_named = record.kind == kind and name in ("", record.name)
            if is_named and not record.is_deleted and holds(record.object):
                return record.at
        raise AssertionError(f"never true of {kind} {name}; the state is:\n{self.describe()}")

    def sealed_at(self, number: int = 1, name: str = "demo") -> float:
        """Return when the status first had so many sealed bundles."""
        return self.first_time(
            lambda cache: sum(bundle["state"] == "Sealed" for bundle in bundles(cache)) >= number,
            "AutotuneCache",
            name,
        )

    def describe_cold_pods(self, version: str | None = None) -> list[str]:
        """Return a line for each pod that did not start with its bundle."""
        pods = self.pods(version)
        return [
            _pod_line(pod)
            for pod in pods
            if delivery_of(pod)[0] != "ReadOnly" and "Seeded" not in seed_report(pod)
        ]

    def names_of_held(self, version: str | None = None) -> set[str]:
        """Return the names of the pods that were held at any time."""
        return {
            record.name
            for record in self.records
            if record.kind == "Pod"
            and is_held(record.object)
            and version in (None, version_of(record.object))
        }

    def released_at(self, pod: str) -> float:
        """Return when a held pod was released."""
        return self.first_time(lambda pod: not is_held(pod), name=pod)

    def describe(self) -> str:
        """Return the current state, in lines, for the message of a failed test."""
        lines = [_pod_line(pod) for pod in self._current("Pod").values()]
        for name, cache in self._current("AutotuneCache").items():
            lines += [
                f"cache {name}: {kind} {found.get('status')} {found.get('reason')}: {found.get('message')}"
                for kind in ("Ready", "StorageReady", "Stalled")
                if (found := condition(cache, kind))
            ]
            lines += [
                f"  bundle {bundle['id']}: {bundle['state']} {bundle.get('reason')}: {bundle.get('message')}"
                f" running={bundle.get('running')} serving={bundle.get('serving')}"
                f" undeliverable={bundle.get('undeliverable')}"
                for bundle in bundles(cache)
            ]
            lines.append(f"  consumers: {(cache.get('status') or {}).get('consumers')}")
        warnings = [
            event
            for event in self._kube.new_session().list("Event", self.namespace)
            if event.get("type") == "Warning"
        ]
        lines += [
            f"{event['involvedObject'].get('name')}: {event['reason']}: {event['message']}"
            for event in warnings[-8:]
        ]
        return "\n".join(lines)


def is_consumer(pod: Object) -> bool:
    return "pretune.dev/role" not in (pod["metadata"].get("labels") or {})


def is_held(pod: Object) -> bool:
    return any(gate["name"] == HOLD for gate in pod["spec"].get("schedulingGates") or ())


def is_ready(pod: Object) -> bool:
    return bool(condition(pod, "Ready").get("status") == "True")


def is_serving(pod: Object) -> bool:
    return is_ready(pod) and "deletionTimestamp" not in pod["metadata"]


def version_of(pod: Object) -> str:
    env = pod["spec"]["containers"][0].get("env") or ()
    return next((item.get("value", "") for item in env if item["name"] == "VERSION"), "")


def delivery_of(pod: Object) -> tuple[str, str]:
    """Return delivery and reason from a pod's annotations; ("", "") if the webhook did not see it."""
    annotations = pod["metadata"].get("annotations") or {}
    reason = annotations.get("pretune.dev/reason", "").partition(":")[0]
    return annotations.get("pretune.dev/delivery", ""), reason


def seed_report(pod: Object) -> str:
    """Return the termination message of pretune-seed."""
    for status in (pod.get("status") or {}).get("initContainerStatuses") or ():
        if status["name"] == "pretune-seed":
            return str(((status.get("state") or {}).get("terminated") or {}).get("message", ""))
    return ""


def _pod_line(pod: Object) -> str:
    status = pod.get("status") or {}
    states = [
        f"{container['name']}={json_like(container.get('state'))}"
        for part in ("initContainerStatuses", "containerStatuses")
        for container in status.get(part) or ()
    ]
    waits = condition(pod, "PodScheduled")
    return (
        f"pod {pod['metadata']['name']}: {status.get('phase')}{' held' if is_held(pod) else ''}"
        f"{' ready' if is_ready(pod) else ''}{' deleting' if pod['metadata'].get('deletionTimestamp') else ''}"
        f" version={version_of(pod)} {(pod['metadata'].get('annotations') or {}).get('pretune.dev/reason', '(not injected)')}"
        f" {waits.get('message', '') if waits.get('status') != 'True' else ''} {' '.join(states)}"
    )


def json_like(state: Object | None) -> str:
    """Return a container's state in a few words."""
    for kind, more in (state or {}).items():
        return f"{kind}({more.get('reason', '')}{' ' + more['message'][:200] if more.get('message') else ''})"
    return "-"


def wait_until_held(recorder: Recorder, number: int, version: str = "v2") -> None:
    """Wait until so many pods of the version are held, and their bundle is being tuned."""
    recorder.wait_until(
        lambda s: sum(is_held(pod) for pod in s.pods(version)) == number and is_tuning(s),
        120,
        f"{number} held pods of {version}, while it is tuned",
    )


def is_tuning(recorder: Recorder) -> bool:
    return any(
        bundle["state"] == "Tuning" and bundle["reason"] == "Tuning"
        for bundle in bundles(recorder.cache())
    )
