"""make demo: a Deployment without pretune beside one with it, through a rollout to a new engine. Every figure is measured in this run.

Uses the local cluster, or the one that KUBECONFIG names; there OPERATOR_IMAGE and ENGINE_IMAGE say where the images are, and
ENGINE_IMAGE_NEW, where it is set, which image the rollout goes to (else a changed argument of the engine). It needs 9 GPUs at a time,
written down or real. KEEP=1 leaves the namespace.
The engine is the stand-in of images/engine: its tuning time is set, not measured on a GPU, and the demo says so.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass

from tools.demo.cluster import SYSTEM, Cluster, Object
from tools.demo.engine import (
    CACHE,
    DIGEST,
    ENTRIES,
    REPLICAS,
    SECONDS_PER_ENTRY,
    START,
    WITH,
    WITHOUT,
    cache,
    deployment,
    template,
    tuned,
)
from tools.demo.screen import Screen
from tools.demo.seen import Eyes, Pod, Seen

NAMESPACE = "pretune-demo"
LIMIT = 900.0  # seconds for one phase


@dataclass(frozen=True)
class Result:
    """What a rollout was like for one Deployment. Seconds."""

    first: float  # from the change to the first new pod that was Ready
    all: float  # to the last one
    start: float  # the longest from a pod's creation or release to Ready
    held: list[float]  # how long each held pod was held
    fewest: int  # pods that were Ready at the least
    digests: list[str]  # of the tactics of each new pod
    in_pods: float  # GPU-seconds of tuning in the new pods
    ahead: float  # and in the Job


class Demo:
    def __init__(self) -> None:
        self.cluster, self.screen = Cluster(), Screen()
        self.seen = Seen()

    def run(self) -> None:
        self.cluster.bring_up()
        self.screen.repeat_in_silence()
        self.screen.say("installing the chart")
        self.cluster.install()
        self.screen.say(
            f"the chart is in namespace {SYSTEM}; the engine is the stand-in: {ENTRIES} entries of {SECONDS_PER_ENTRY} s to tune,"
            f" {START} s for the rest of its start"
        )
        self.cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true")
        self.cluster.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        )
        try:
            with Eyes(self.cluster, NAMESPACE) as self.seen:
                ready = self.begin()
                results = self.roll_out()
            self.screen.plain(self.report(ready, *results))
        finally:
            if os.environ.get("KEEP"):
                self.screen.say(f"kept: namespace {NAMESPACE}")
            else:
                self.screen.say(f"cleaning up: namespace {NAMESPACE}")
                self.cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")

    # --- the story

    def begin(self) -> float:
        """Both Deployments and the cache; seconds from the cache's apply to Ready."""
        self.screen.say(
            f"apply: Deployments {WITHOUT} and {WITH}, the second labelled pretune.dev/cache; AutotuneCache {CACHE}"
        )
        began = time.monotonic()
        self.cluster.apply(cache(NAMESPACE), *self.deployments(self.old()))

        def settled() -> bool:
            return self.seen.is_ready and all(
                sum(one.is_ready for one in self.seen.of(app)) == REPLICAS
                for app in (WITHOUT, WITH)
            )

        ready_at: list[float] = []

        def show() -> None:
            if self.seen.is_ready and not ready_at:
                ready_at.append(time.monotonic() - began)
            self.show({})

        self.wait(settled, show)
        self.screen.say(
            "both serve: all of these pods started cold, as pods do today; nothing older served, so none was held"
        )
        return ready_at[0]

    def roll_out(self) -> tuple[Result, Result]:
        """Change both templates at once, and watch until both have new pods only."""
        old = {app: self.seen.of(app)[0].template for app in (WITHOUT, WITH)}
        known = set(self.seen.tuning)
        self.screen.say(f"rollout of both, at the same moment, to {self.new_words()}")
        new = self.deployments(self.new())
        self.seen.fewest = dict.fromkeys((WITHOUT, WITH), REPLICAS)
        changed = time.monotonic()
        self.cluster.apply(*new)

        def done() -> bool:
            return all(
                sum(one.is_ready for one in self.seen.of(app)) == REPLICAS == len(self.seen.of(app))
                and old[app] not in {one.template for one in self.seen.of(app)}
                for app in (WITHOUT, WITH)
            )

        self.wait(done, lambda: self.show(old))
        self.screen.say(
            "both rollouts are complete; reading the engines' logs, and the tactics in each pod"
        )
        attempts = sorted(set(self.seen.tuning) - known)
        return self.result(WITHOUT, changed, []), self.result(WITH, changed, attempts)

    def result(self, app: str, changed: float, attempts: list[str]) -> Result:
        pods = {name: one for name, one in self.seen.pods.items() if one.app == app}
        ready = [one.ready_at - changed for one in pods.values() if one.ready_at is not None]
        return Result(
            first=min(ready),
            all=max(ready),
            start=max(_start(one) for one in pods.values()),
            held=[
                one.let_go - one.held_since
                for one in pods.values()
                if one.let_go and one.held_since
            ],
            fewest=self.seen.fewest[app],
            digests=[self.digest(name) for name in pods],
            in_pods=sum(tuned(self.log(name)) for name in pods),
            ahead=sum(tuned(self.log(name)) for name in attempts),
        )

    # --- its parts

    def digest(self, pod: str) -> str:
        return self.cluster.kubectl(
            "exec", "-n", NAMESPACE, pod, "-c", "vllm", "--", "python3", "-c", DIGEST
        ).strip()

    def old(self) -> Object:
        return template(
            self.cluster.engine, self.cluster.pull, "" if self.cluster.own else "0.32.0", []
        )

    def new(self) -> Object:
        if not self.cluster.own:
            return template(self.cluster.engine, self.cluster.pull, "0.33.0", [])
        if image := os.environ.get("ENGINE_IMAGE_NEW"):
            return template(image, self.cluster.pull, "", [])
        return template(self.cluster.engine, self.cluster.pull, "", ["--max-model-len", "4096"])

    def new_words(self) -> str:
        if not self.cluster.own:
            return "a new engine: the stand-in plays vLLM 0.33.0 instead of 0.32.0"
        return os.environ.get("ENGINE_IMAGE_NEW") or "the engine's argument --max-model-len 4096"

    def deployments(self, pods: Object) -> list[Object]:
        return [
            deployment(NAMESPACE, WITHOUT, pods, False),
            deployment(NAMESPACE, WITH, pods, True),
        ]

    def log(self, pod: str) -> str:
        return self.cluster.kubectl("logs", "-n", NAMESPACE, pod, "-c", "vllm")

    def wait(self, until: object, show: object) -> None:
        if not self.seen.wait(until, LIMIT, show):  # type: ignore[arg-type]
            sys.exit(
                f"not done within {LIMIT:.0f} s; the cache says: {self.seen.reason}: {self.seen.message}"
            )
        if self.seen.stalled:
            sys.exit(f"the cache is stalled: {self.seen.stalled}")

    def show(self, old: dict[str, str]) -> None:
        """How both stand, and what the cache says."""
        rows = {app: _counted(self.seen.of(app), old.get(app, "")) for app in (WITHOUT, WITH)}
        cached = f"{self.seen.reason}: {self.seen.message}" if self.seen.reason else ""
        gone = time.monotonic() - self.screen.began
        lines = [f"{gone:7.1f} s"]
        lines += [
            f"    {name:14} {words}" for name, words in (*rows.items(), ("AutotuneCache", cached))
        ]
        self.screen.block(
            lines, f"  without: {rows[WITHOUT]} | with: {rows[WITH]} | cache: {self.seen.reason}"
        )

    def report(self, ready: float, without: Result, with_: Result) -> list[str]:
        rows = [
            ("change → first new pod ready", f"{without.first:.1f} s", f"{with_.first:.1f} s"),
            (
                f"change → all {REPLICAS} new pods ready",
                f"{without.all:.1f} s",
                f"{with_.all:.1f} s",
            ),
            (
                "a new pod's start, held time left out",
                f"{without.start:.1f} s",
                f"{with_.start:.1f} s",
            ),
            ("new pods held, for", _held(without), _held(with_)),
            (
                "GPU-seconds of tuning, in the pods",
                f"{without.in_pods:.1f}",
                f"{with_.in_pods:.1f}",
            ),
            ("  ahead of them, in one Job", f"{without.ahead:.1f}", f"{with_.ahead:.1f}"),
            (
                f"ready pods throughout, of {REPLICAS}, at the fewest",
                str(without.fewest),
                str(with_.fewest),
            ),
            ("tactics of the replicas", _same(without), _same(with_)),
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        head = f"  {'':{widths[0]}}   {'without pretune':{max(widths[1], 15)}}   with pretune"
        lines = [
            f"  {what:{widths[0]}}   {one:{max(widths[1], 15)}}   {two}" for what, one, two in rows
        ]
        return [
            "",
            head,
            *lines,
            "",
            f"  AutotuneCache, apply → Ready: {ready:.1f} s, the first tuning in it.",
            "  The stand-in engine played vLLM: these seconds show the machinery, not a GPU's tuning time.",
            "",
        ]


def _start(pod: Pod) -> float:
    """From its creation, or from the end of its hold, to Ready."""
    assert pod.ready_at is not None
    return pod.ready_at - (pod.let_go or pod.made)


def _counted(pods: list[Pod], old: str) -> str:
    """`old 3 ready · new 1 held, 0 starting, 0 ready`."""
    new = [one for one in pods if one.template != old]
    held, ready = sum(one.is_held for one in new), sum(one.is_ready for one in new)
    words = f"{held} held, {len(new) - held - ready} starting, {ready} ready"
    return (
        f"old {sum(one.is_ready for one in pods if one.template == old)} ready, new {words}"
        if old
        else words
    )


def _held(result: Result) -> str:
    return (
        f"{len(result.held)}: {', '.join(f'{one:.1f} s' for one in result.held)}"
        if result.held
        else "none"
    )


def _same(result: Result) -> str:
    different = sorted(set(result.digests))
    return (
        f"all the same ({different[0]})"
        if len(different) == 1
        else f"{len(different)} different: {' '.join(different)}"
    )


if __name__ == "__main__":
    Demo().run()
