"""make demo: a Deployment without pretune beside one with it, during a rollout to a new engine.

Every figure is measured. It uses the local cluster, or the one that KUBECONFIG names. There, OPERATOR_IMAGE and ENGINE_IMAGE
name the images, and ENGINE_IMAGE_NEW, where it is set, the image of the rollout (by default an
argument of the engine changes). It needs 9 GPUs at a time; on the local cluster they exist on paper
only. KEEP=1 keeps the namespace. The engine is the stand-in of images/engine: its tuning time is
configured, not measured on a GPU, and the demo says so.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from tools.demo.cluster import SYSTEM, Cluster, Object
from tools.demo.engine import (
    CACHE,
    DIGEST_PROGRAM,
    ENTRIES,
    REPLICAS,
    SECONDS_PER_ENTRY,
    START_SECONDS,
    WITH,
    WITHOUT,
    cache,
    deployment,
    template,
    tuning_seconds,
)
from tools.demo.screen import Screen
from tools.demo.watcher import Observed, Pod, Watcher

NAMESPACE = "pretune-demo"
PHASE_TIMEOUT_SECONDS = 900.0


@dataclass(frozen=True)
class Result:
    """What a rollout was like for one Deployment. Times in seconds."""

    first: float  # from the change to the first new pod that was Ready
    all: float  # to the last one
    start: float  # the longest, from a pod's creation or release to Ready
    held: list[float]  # how long each held pod was held
    fewest_ready: int
    digests: list[str]  # of the tactics of each new pod
    tuning_in_pods: float  # GPU-seconds of tuning in the new pods
    tuning_ahead: float  # and in the Job


class Demo:
    """The demo's steps, from an empty machine to the table at the end."""

    def __init__(self) -> None:
        self.cluster, self.screen = Cluster(), Screen()
        self.observed = Observed()

    def run(self) -> None:
        """Bring the cluster up, play the rollout and print the table."""
        self.cluster.bring_up()
        self.screen.repeat_in_silence()
        self.screen.say("installing the chart")
        self.cluster.install()
        self.screen.say(
            f"the chart is in namespace {SYSTEM}; the engine is the stand-in: {ENTRIES} entries to"
            f" tune, {SECONDS_PER_ENTRY} s each, and {START_SECONDS} s for the rest of its start"
        )
        kubectl = self.cluster.kubectl
        kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true")
        self.cluster.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        )
        try:
            with Watcher(self.cluster, NAMESPACE) as self.observed:
                ready_after = self.start_serving()
                results = self.roll_out()
            self.screen.plain(self.report(ready_after, *results))
        finally:
            if os.environ.get("KEEP"):
                self.screen.say(f"kept: namespace {NAMESPACE}")
            else:
                self.screen.say(f"cleaning up: namespace {NAMESPACE}")
                kubectl("delete", "namespace", NAMESPACE, "--wait=false")

    # --- the two phases

    def start_serving(self) -> float:
        """Create both Deployments and the cache; return the seconds until the cache was Ready."""
        self.screen.say(
            f"apply: Deployments {WITHOUT} and {WITH}, the second labelled pretune.dev/cache;"
            f" AutotuneCache {CACHE}"
        )
        began = time.monotonic()
        self.cluster.apply(cache(NAMESPACE), *self.deployments(self.old_template()))
        ready_after: list[float] = []

        def is_done() -> bool:
            return self.observed.is_ready and all(
                self.observed.count_ready(app) == REPLICAS for app in (WITHOUT, WITH)
            )

        def show() -> None:
            if self.observed.is_ready and not ready_after:
                ready_after.append(time.monotonic() - began)
            self.show({})

        self.wait(is_done, show)
        self.screen.say(
            "both serve. These pods started cold, as pods do today: no older ones served, so none"
            " was held"
        )
        return ready_after[0]

    def roll_out(self) -> tuple[Result, Result]:
        """Change both templates at once, and wait until both have new pods only."""
        old = {app: self.observed.pods_of(app)[0].template for app in (WITHOUT, WITH)}
        known = set(self.observed.tuning_pods)
        self.screen.say(f"rollout of both, at the same moment, to {self.describe_change()}")
        deployments = self.deployments(self.new_template())
        self.observed.fewest_ready = dict.fromkeys((WITHOUT, WITH), REPLICAS)
        changed_at = time.monotonic()
        self.cluster.apply(*deployments)

        def is_done() -> bool:
            return all(
                self.observed.count_ready(app) == REPLICAS == len(self.observed.pods_of(app))
                and all(pod.template != old[app] for pod in self.observed.pods_of(app))
                for app in (WITHOUT, WITH)
            )

        self.wait(is_done, lambda: self.show(old))
        self.screen.say(
            "both rollouts are complete; reading the engines' logs, and the tactics in each pod"
        )
        attempts = sorted(self.observed.tuning_pods - known)
        return self.result(WITHOUT, changed_at, []), self.result(WITH, changed_at, attempts)

    def result(self, app: str, changed_at: float, attempts: list[str]) -> Result:
        """Return what the rollout was like for a Deployment; `attempts` are its tuning pods."""
        pods = {name: pod for name, pod in self.observed.pods.items() if pod.app == app}
        ready = [pod.ready_at - changed_at for pod in pods.values() if pod.ready_at is not None]
        return Result(
            first=min(ready),
            all=max(ready),
            start=max(_start_seconds(pod) for pod in pods.values()),
            held=[
                pod.released_at - pod.held_at
                for pod in pods.values()
                if pod.released_at and pod.held_at
            ],
            fewest_ready=self.observed.fewest_ready[app],
            digests=[self.read_digest(name) for name in pods],
            tuning_in_pods=sum(tuning_seconds(self.read_log(name)) for name in pods),
            tuning_ahead=sum(tuning_seconds(self.read_log(name)) for name in attempts),
        )

    # --- what they are made of

    def old_template(self) -> Object:
        """Return the pod template that serves first."""
        release = "" if self.cluster.is_users else "0.32.0"
        return template(self.cluster.engine_image, self.cluster.pull_policy, release, [])

    def new_template(self) -> Object:
        """Return the pod template that the rollout changes to."""
        image, pull_policy = self.cluster.engine_image, self.cluster.pull_policy
        if not self.cluster.is_users:
            return template(image, pull_policy, "0.33.0", [])
        if new_image := os.environ.get("ENGINE_IMAGE_NEW"):
            return template(new_image, pull_policy, "", [])
        return template(image, pull_policy, "", ["--max-model-len", "4096"])

    def describe_change(self) -> str:
        """Return what the rollout changes, in words."""
        if not self.cluster.is_users:
            return "a new engine: the stand-in plays vLLM 0.33.0 instead of 0.32.0"
        return os.environ.get("ENGINE_IMAGE_NEW") or "the engine's argument --max-model-len 4096"

    def deployments(self, pods: Object) -> list[Object]:
        """Return both Deployments with this pod template."""
        return [
            deployment(NAMESPACE, WITHOUT, pods, False),
            deployment(NAMESPACE, WITH, pods, True),
        ]

    def read_digest(self, pod: str) -> str:
        """Return a digest of the tactics that a pod serves with."""
        container = ("exec", "-n", NAMESPACE, pod, "-c", "vllm", "--")
        return self.cluster.kubectl(*container, "python3", "-c", DIGEST_PROGRAM).strip()

    def read_log(self, pod: str) -> str:
        """Return what a pod's engine has logged."""
        return self.cluster.kubectl("logs", "-n", NAMESPACE, pod, "-c", "vllm")

    def wait(self, until: Callable[[], bool], show: Callable[[], None]) -> None:
        """Wait for the end of a phase.

        Ends the demo when it takes too long, or the cache is stalled.
        """
        if not self.observed.wait(until, PHASE_TIMEOUT_SECONDS, show):
            sys.exit(
                f"not done within {PHASE_TIMEOUT_SECONDS:.0f} s; the cache reports"
                f" {self.observed.reason}: {self.observed.message}"
            )
        if self.observed.stalled:
            sys.exit(f"the cache is stalled: {self.observed.stalled}")

    def show(self, old: dict[str, str]) -> None:
        """Show the state of both Deployments and of the cache.

        `old` are the pod templates before the rollout.
        """
        states = {
            app: _describe_pods(self.observed.pods_of(app), old.get(app, ""))
            for app in (WITHOUT, WITH)
        }
        reason, message = self.observed.reason, self.observed.message
        rows = {**states, "AutotuneCache": f"{reason}: {message}" if reason else ""}
        lines = [f"{time.monotonic() - self.screen.began:7.1f} s"]
        lines += [f"    {name:14} {state}" for name, state in rows.items()]
        summary = f"  without: {states[WITHOUT]} | with: {states[WITH]} | cache: {reason}"
        self.screen.block(lines, summary)

    def report(self, ready_after: float, without: Result, with_: Result) -> list[str]:
        """Return the table at the end."""
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
            ("new pods held, for", _describe_held(without), _describe_held(with_)),
            (
                "GPU-seconds of tuning, in the pods",
                f"{without.tuning_in_pods:.1f}",
                f"{with_.tuning_in_pods:.1f}",
            ),
            (
                "  ahead of them, in one Job",
                f"{without.tuning_ahead:.1f}",
                f"{with_.tuning_ahead:.1f}",
            ),
            (
                f"ready pods throughout, of {REPLICAS}, at the fewest",
                str(without.fewest_ready),
                str(with_.fewest_ready),
            ),
            ("tactics of the replicas", _describe_tactics(without), _describe_tactics(with_)),
        ]
        first, second = (max(len(row[column]) for row in rows) for column in range(2))
        second = max(second, len("without pretune"))
        return [
            "",
            f"  {'':{first}}   {'without pretune':{second}}   with pretune",
            *(f"  {name:{first}}   {left:{second}}   {right}" for name, left, right in rows),
            "",
            f"  AutotuneCache, apply → Ready: {ready_after:.1f} s, including the first tuning.",
            "  The stand-in engine played vLLM: its tuning time is configured, not a GPU's.",
            "",
        ]


def _start_seconds(pod: Pod) -> float:
    """Return the seconds from a pod's creation, or from the end of its hold, until it was Ready."""
    assert pod.ready_at is not None
    return pod.ready_at - (pod.released_at or pod.created_at)


def _describe_pods(pods: list[Pod], old_template: str) -> str:
    """Return, for example, `old 3 ready, new 1 held, 0 starting, 0 ready`."""
    new = [pod for pod in pods if pod.template != old_template]
    held, ready = sum(pod.is_held for pod in new), sum(pod.is_ready for pod in new)
    text = f"{held} held, {len(new) - held - ready} starting, {ready} ready"
    old_ready = sum(pod.is_ready for pod in pods if pod.template == old_template)
    return f"old {old_ready} ready, new {text}" if old_template else text


def _describe_held(result: Result) -> str:
    seconds = ", ".join(f"{seconds:.1f} s" for seconds in result.held)
    return f"{len(result.held)}: {seconds}" if seconds else "none"


def _describe_tactics(result: Result) -> str:
    digests = sorted(set(result.digests))
    if len(digests) == 1:
        return f"all the same ({digests[0]})"
    return f"{len(digests)} different: {' '.join(digests)}"


if __name__ == "__main__":
    Demo().run()
