"""What happened in a namespace and when: every state of its caches and consumers, recorded as a watch told it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import requests

from tests.cluster.kube import Kube, Object, Refusal, bundles, condition

HOLD = "pretune.dev/hold"
SOON = 5  # seconds: at once, where two cores do all of this; tests/bench measures what it takes


@dataclass(frozen=True)
class Moment:
    """One object as it was from `at` on (time.monotonic()); `gone`: it was deleted then."""

    at: float
    kind: str
    object: Object
    gone: bool = False

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])


class Seen:
    """Records pods and caches of a namespace from its making on. `until` waits for what the records show; the rest reads them."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.namespace, self._kube = namespace, kube
        self.moments: list[Moment] = []
        self._news = threading.Condition()
        self._closed = False
        self._listed = {kind: threading.Event() for kind in ("Pod", "AutotuneCache")}
        for kind in self._listed:
            threading.Thread(target=self._follow, args=(kube.again(), kind), daemon=True).start()
        assert all(one.wait(20) for one in self._listed.values()), "the API server does not answer"

    def close(self) -> None:
        self._closed = True

    def _follow(self, kube: Kube, kind: str) -> None:
        """A thread: list, watch, and again when the watch breaks, as it does when the API server restarts."""
        while not self._closed:
            try:
                for change, obj in kube.changes(kind, self.namespace, seconds=300):
                    if self._closed:
                        return
                    if change == "LISTED":
                        there = {one["metadata"]["name"] for one in obj["items"]}
                        lost = [one for name, one in self._now(kind).items() if name not in there]
                        self._note(kind, lost, gone=True)  # a watch that broke did not tell
                        self._note(kind, obj["items"])
                        self._listed[kind].set()
                    else:
                        self._note(kind, [obj], gone=change == "DELETED")
            except (requests.RequestException, Refusal, ValueError):
                time.sleep(0.2)  # between two tries to reach an API server that is down

    def _note(self, kind: str, objects: list[Object], gone: bool = False) -> None:
        with self._news:
            self.moments += [Moment(time.monotonic(), kind, one, gone) for one in objects]
            self._news.notify_all()

    def until(self, holds: Callable[[Seen], Any], seconds: float, what: str) -> float:
        """Wait until `holds`; returns the seconds that it took. AssertionError with what is there, otherwise."""
        began = time.monotonic()
        with self._news:
            while not holds(self):
                left = began + seconds - time.monotonic()
                if left <= 0:
                    raise AssertionError(
                        f"not within {seconds} s: {what}. There is:\n{self.picture()}"
                    )
                self._news.wait(left)
        return time.monotonic() - began

    # --- as it is

    def pods(self, version: str | None = None) -> list[Object]:
        """The consumers that are there and not being deleted; of one version's engines."""
        return [
            one
            for one in self._now("Pod").values()
            if is_consumer(one)
            and not one["metadata"].get("deletionTimestamp")
            and version in (None, version_of(one))
        ]

    def cache(self, name: str = "demo") -> Object:
        return self._now("AutotuneCache").get(name, {})

    def sealed(self, number: int = 1, name: str = "demo") -> bool:
        """Whether so many bundles are sealed."""
        return sum(one["state"] == "Sealed" for one in bundles(self.cache(name))) >= number

    def ready(self, number: int, version: str | None = None) -> bool:
        """Whether exactly so many pods are there, of the version or at all, and all of them are ready."""
        pods = self.pods(version)
        return len(pods) == number and all(is_ready(one) for one in pods)

    def _now(self, kind: str) -> dict[str, Object]:
        found: dict[str, Object] = {}
        for one in self.moments:
            if one.kind == kind:
                found.pop(one.name, None)
                if not one.gone:
                    found[one.name] = one.object
        return found

    # --- as it was

    def history(self, kind: str = "Pod") -> Iterator[tuple[float, dict[str, Object]]]:
        """(from when, the objects by name) after each change."""
        found: dict[str, Object] = {}
        for one in list(self.moments):
            if one.kind == kind and (kind != "Pod" or is_consumer(one.object)):
                found = {name: obj for name, obj in found.items() if name != one.name}
                if not one.gone:
                    found[one.name] = one.object
                yield one.at, found

    def least_ready(self, since: float) -> int:
        """The fewest ready pods at any time since then; one that is being deleted serves no more."""
        counts = [(at, sum(serves(one) for one in pods.values())) for at, pods in self.history()]
        before = [count for at, count in counts if at <= since][-1:]
        return min(before + [count for at, count in counts if at > since])

    def first(self, holds: Callable[[Object], Any], kind: str = "Pod", name: str = "") -> float:
        """When `holds` was first true of an object of that kind, and name. AssertionError if never."""
        for one in self.moments:
            if one.kind == kind and name in ("", one.name) and not one.gone and holds(one.object):
                return one.at
        raise AssertionError(f"never so for {kind} {name}; there is:\n{self.picture()}")

    def sealed_at(self, number: int = 1, name: str = "demo") -> float:
        """When the status first told of so many sealed bundles."""
        return self.first(
            lambda cache: sum(one["state"] == "Sealed" for one in bundles(cache)) >= number,
            "AutotuneCache",
            name,
        )

    def cold(self, version: str | None = None) -> list[str]:
        """Lines on the pods that did not start with their bundle."""
        pods = self.pods(version)
        return [
            _pod_line(one)
            for one in pods
            if given(one)[0] != "ReadOnly" and "Seeded" not in seed_report(one)
        ]

    def were_held(self, version: str | None = None) -> set[str]:
        """Names of the pods that were behind our gate at any time."""
        return {
            one.name
            for one in self.moments
            if one.kind == "Pod"
            and is_held(one.object)
            and version in (None, version_of(one.object))
        }

    def released_at(self, pod: str) -> float:
        """When a pod that was held was so no more."""
        return self.first(lambda one: not is_held(one), name=pod)

    def picture(self) -> str:
        """What is there, in lines, for who reads a failure."""
        lines = [_pod_line(one) for one in self._now("Pod").values()]
        for name, cache in self._now("AutotuneCache").items():
            lines += [
                f"cache {name}: {kind} {found.get('status')} {found.get('reason')}: {found.get('message')}"
                for kind in ("Ready", "StorageReady", "Stalled")
                if (found := condition(cache, kind))
            ]
            lines += [
                f"  bundle {one['id']}: {one['state']} {one.get('reason')}: {one.get('message')}"
                f" running={one.get('running')} serving={one.get('serving')} undeliverable={one.get('undeliverable')}"
                for one in bundles(cache)
            ]
            lines.append(f"  consumers: {(cache.get('status') or {}).get('consumers')}")
        warnings = [
            one
            for one in self._kube.again().list("Event", self.namespace)
            if one.get("type") == "Warning"
        ]
        lines += [
            f"{one['involvedObject'].get('name')}: {one['reason']}: {one['message']}"
            for one in warnings[-8:]
        ]
        return "\n".join(lines)


def is_consumer(pod: Object) -> bool:
    return "pretune.dev/role" not in (pod["metadata"].get("labels") or {})


def is_held(pod: Object) -> bool:
    return any(gate["name"] == HOLD for gate in pod["spec"].get("schedulingGates") or ())


def is_ready(pod: Object) -> bool:
    return bool(condition(pod, "Ready").get("status") == "True")


def serves(pod: Object) -> bool:
    return is_ready(pod) and "deletionTimestamp" not in pod["metadata"]


def version_of(pod: Object) -> str:
    env = pod["spec"]["containers"][0].get("env") or ()
    return next((one.get("value", "") for one in env if one["name"] == "VERSION"), "")


def given(pod: Object) -> tuple[str, str]:
    """(delivery, reason) as the pod's annotations tell; ("", "") for a pod that the webhook did not see."""
    notes = pod["metadata"].get("annotations") or {}
    return notes.get("pretune.dev/delivery", ""), notes.get("pretune.dev/reason", "").partition(
        ":"
    )[0]


def seed_report(pod: Object) -> str:
    """What pretune-seed left as its termination message."""
    for one in (pod.get("status") or {}).get("initContainerStatuses") or ():
        if one["name"] == "pretune-seed":
            return str(((one.get("state") or {}).get("terminated") or {}).get("message", ""))
    return ""


def _pod_line(pod: Object) -> str:
    status = pod.get("status") or {}
    states = [
        f"{one['name']}={json_like(one.get('state'))}"
        for part in ("initContainerStatuses", "containerStatuses")
        for one in status.get(part) or ()
    ]
    waits = condition(pod, "PodScheduled")
    return (
        f"pod {pod['metadata']['name']}: {status.get('phase')}{' held' if is_held(pod) else ''}"
        f"{' ready' if is_ready(pod) else ''}{' deleting' if pod['metadata'].get('deletionTimestamp') else ''}"
        f" version={version_of(pod)} {(pod['metadata'].get('annotations') or {}).get('pretune.dev/reason', '(not injected)')}"
        f" {waits.get('message', '') if waits.get('status') != 'True' else ''} {' '.join(states)}"
    )


def json_like(state: Object | None) -> str:
    """A container's state in a few words."""
    for kind, more in (state or {}).items():
        return f"{kind}({more.get('reason', '')}{' ' + more['message'][:200] if more.get('message') else ''})"
    return "-"


def held(seen: Seen, number: int, version: str = "v2") -> None:
    """Wait until so many pods of the version are held, and their bundle is being tuned."""
    seen.until(
        lambda s: sum(is_held(one) for one in s.pods(version)) == number and tunes(s),
        120,
        f"{number} held pods of {version}, while it is tuned",
    )


def tunes(seen: Seen) -> bool:
    return any(
        one["state"] == "Tuning" and one["reason"] == "Tuning" for one in bundles(seen.cache())
    )
