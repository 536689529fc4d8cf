"""Plays the cells of one release: every engine is a pod of its own, some at a time; what it did is read from its log, its folder on the
node, and what the operator left on the pod and in the cache's status."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pretune.protocol import Report

from tests.cluster.conftest import ROOT
from tests.cluster.kube import Kube, Object, Refusal, bundles, condition
from tests.cluster.recorder import delivery_of, seed_report
from tests.cluster.workloads import autotune_cache
from tests.fidelity.matrix import pods
from tests.fidelity.matrix.cells import CELLS
from tests.fidelity.matrix.copies import (
    ANOTHER_FLASHINFER,
    copied,
    of_another_flashinfer,
    unchanged,
)
from tests.fidelity.matrix.outcome import (
    WARM,
    Files,
    Outcome,
    Played,
    error,
    files,
    now,
    profiled,
    said,
    shown,
)
from tests.fidelity.matrix.stage import Stage, versions

AT_A_TIME = (
    len(os.sched_getaffinity(0)) + 1
)  # engines: each takes a core while it imports, and 1.1 GiB
PATIENCE = 400.0  # seconds for one engine, on a machine that does other things too
CLAIM = "pretune-demo"
TWO = ("two GPUs", "two GPUs, an operation is missing")
_ID = re.compile(r"\b[0-9a-f]{12}-default\b")

Say = Callable[[str], None]


def play(
    stage: Stage,
    cells: Sequence[str] = tuple(CELLS),
    say: Say = lambda text: None,
    at_a_time: int = AT_A_TIME,
) -> Played:
    """All of the cells, so many engines at a time. Raises AssertionError where the cluster or the operator did not do what every cell
    needs; a cell that could not be played is among the missing, with the reason."""
    missing = {}
    if "image swapped" in cells and not stage.other:
        missing["image swapped"] = "no other release was installed"
    chosen = [name for name in CELLS if name in cells and name not in missing]
    found, failed = _Play(stage, chosen, say, at_a_time).all()
    return Played(stage.release, versions(stage.release), now(), _commit(), found, missing | failed)


def _commit() -> str:
    ran = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.stdout.strip()


@dataclass
class _Play:
    stage: Stage
    cells: Sequence[str]
    say: Say
    at_a_time: int
    _running: dict[str, Future[Outcome]] = field(default_factory=dict)
    _mounted: dict[str, threading.Event] = field(default_factory=dict)

    def all(self) -> tuple[dict[str, Outcome], dict[str, str]]:
        """The outcomes, and why there is none of a cell."""
        stage = self.stage
        made = pods.template(stage.image, str(stage.link))
        # Its GPU is one whose kernels FlashInfer never tunes.
        silent = pods.template(stage.image, str(stage.link), REHEARSAL_CAPABILITY="8.0")
        workers = ThreadPoolExecutor(self.at_a_time)
        try:
            self._cache("demo", made)
            if "nothing to tune" in self.cells:
                self._cache("silent", silent)
            if set(TWO) & set(self.cells):
                self._cache("two", pods.on_two_gpus(made))
            self._until("demo", "StorageReady")
            self._start(workers, "cold", self._tuned)
            self._consumer(workers, "no bundle", made, "demo")
            self._consumer(workers, "nothing to tune", silent, "silent")
            [bundle] = bundles(self._until("demo", "Ready", PATIENCE))
            self._copies(made, bundle["id"])
            self._warm(workers, made)
            self._by_hand(workers, made, bundle["id"])
            two = pods.on_two_gpus(made)
            for cell, operations in zip(TWO, (pods.OPERATION, pods.MORE), strict=True):
                self._consumer(workers, cell, two, "two", operations=operations)
            if "image swapped" in self.cells:
                self._start(workers, "image swapped", lambda kube: self._swapped(kube, made))
            return self._ended()
        except BaseException:
            for one in self._running.values():
                one.cancel()
            for event in self._mounted.values():
                event.set()
            raise
        finally:
            workers.shutdown(
                wait=False, cancel_futures=True
            )  # what still waits, waits for pods of a namespace that goes

    def _ended(self) -> tuple[dict[str, Outcome], dict[str, str]]:
        found, failed = {}, {}
        for name in self.cells:
            try:
                found[name] = self._running[name].result()
            except (AssertionError, Refusal, OSError) as problem:  # requests' errors are OSErrors
                failed[name] = _plain(str(problem).partition("\n")[0])[:300]
                self.say(f"{self.stage.release}: {name}: NOT PLAYED: {problem}")
        return found, failed

    # --- the caches

    def _cache(self, name: str, template: Object, **spec: object) -> None:
        more = {"source": pods.source(template), "hold": {"when": "Never"}, **spec}
        self.stage.kube.create(autotune_cache(self.stage.namespace, name, **more))

    def _until(self, name: str, kind: str, seconds: float = 60) -> Object:
        def holds(cache: Object) -> bool:
            return bool(condition(cache, kind).get("status") == "True")

        return self.stage.kube.wait_until(
            "AutotuneCache", self.stage.namespace, name, holds, seconds, f"{kind}=True"
        )

    def _copies(self, template: Object, bundle: str) -> None:
        """Caches that find a bundle on the claim, of the same id: the id knows nothing of who made its files."""
        volume, spec = (
            self.stage.volume(self.stage.kube, CLAIM),
            {"storage": {"existingClaim": {"name": CLAIM}}},
        )
        source = volume / f"{self.stage.namespace}.demo/bundles" / bundle

        def adopted(
            name: str,
            change: Callable[[Path], None],
            *cells: str,
            flashinfer: str | None = None,
            **more: object,
        ) -> None:
            if not set(cells) & set(self.cells):
                return
            folder = f"{self.stage.namespace}.{name}"
            told = {} if flashinfer is None else {"flashinfer": flashinfer}
            copied(source, volume / folder / "bundles" / bundle, folder, change, **told)
            self._cache(name, template, **spec, **more)

        forced = ("read-only forced", "read-only forced, an operation is missing")
        adopted("forced", unchanged, *forced, delivery={"mode": "ReadOnly"})
        adopted(
            "foreign", of_another_flashinfer, "another FlashInfer", flashinfer=ANOTHER_FLASHINFER
        )
        adopted("untold", of_another_flashinfer, "another FlashInfer, unrecorded", flashinfer="")

    # --- the cells

    def _warm(self, workers: ThreadPoolExecutor, made: Object) -> None:
        consumer = self._consumer
        consumer(workers, "warm", made, "demo")
        consumer(
            workers, "warm as another uid", made, "demo", change=lambda pod: pods.as_uid(pod, 2000)
        )
        consumer(workers, "an operation is missing", made, "demo", operations=pods.MORE)
        consumer(workers, "another GPU product", made, "demo", gpu=pods.H100)
        consumer(workers, "another FlashInfer", made, "foreign")
        consumer(workers, "another FlashInfer, unrecorded", made, "untold")
        consumer(workers, "read-only forced", made, "forced")
        consumer(
            workers,
            "read-only forced, an operation is missing",
            made,
            "forced",
            operations=pods.MORE,
        )

    def _by_hand(self, workers: ThreadPoolExecutor, made: Object, bundle: str) -> None:
        folder = f"{self.stage.namespace}.demo/bundles/{bundle}/tactics"

        def mounted(pod: Object) -> Object:
            return pods.by_hand(pod, CLAIM, folder)

        self._consumer(workers, "read-only by hand", made, "demo", change=mounted)
        self._consumer(
            workers,
            "read-only by hand, another GPU product",
            made,
            "demo",
            change=mounted,
            gpu=pods.H100,
        )
        # With the label it would be an engine that is to be tuned.
        other = pods.with_words(made, "--max-num-seqs", "64")
        self._consumer(
            workers, "read-only by hand, another configuration", other, "", change=mounted
        )

    def _pod(self, made: Object, name: str, cache: str, **seen: str) -> Object:
        pod = pods.consumer(made, self.stage.namespace, name, cache, **seen)
        pod["metadata"]["ownerReferences"] = [self.stage.owner]
        return pod

    def _consumer(
        self,
        workers: ThreadPoolExecutor,
        cell: str,
        made: Object,
        cache: str,
        change: Callable[[Object], Object] = lambda pod: pod,
        **seen: str,
    ) -> None:
        def run(kube: Kube) -> Outcome:
            return self._engine(
                kube,
                cell,
                change(self._pod(made, _name(cell), cache, **seen)),
            )

        self._start(workers, cell, run)

    def _swapped(self, kube: Kube, made: Object) -> Outcome:
        """Last: what all others mount must be what it was."""
        for name, mounted in self._mounted.items():
            assert name == "image swapped" or mounted.wait(PATIENCE), (
                f"{name}: its engine did not come to its start"
            )
        self.stage.swap()
        pod = pods.pulled_if_not_present(self._pod(made, "image-swapped", "demo"))
        return self._engine(kube, "image swapped", pod)

    def _start(
        self, workers: ThreadPoolExecutor, cell: str, run: Callable[[Kube], Outcome]
    ) -> None:
        if cell not in self.cells:
            return
        self._mounted[cell] = threading.Event()
        self._running[cell] = workers.submit(self._told, cell, run)

    def _told(self, cell: str, run: Callable[[Kube], Outcome]) -> Outcome:
        try:
            outcome = run(self.stage.kube.new_session())
        finally:
            self._mounted[cell].set()
        how = f"profiled {outcome.profiled}" if outcome.started else f"ended: {outcome.error}"
        self.say(f"{self.stage.release}: {cell}: {how} ({outcome.seconds:.0f} s)")
        return outcome

    # --- one engine

    def _tuned(self, kube: Kube) -> Outcome:
        """The attempt's: its pod is the operator's."""
        labels = "pretune.dev/role=tuning,pretune.dev/cache=demo"
        pod = kube.wait_for_any("Pod", self.stage.namespace, labels, _engine_runs, PATIENCE)
        self._mounted["cold"].set()
        log, seconds = _followed(kube, pod)
        found = files(
            self.stage.tactics(pod)
        )  # before seal is done: then nothing of the pod's is kept
        cache = self._sealed(kube, "demo")
        return _outcome(
            log, seconds, {}, found, [*_of_cache(cache), _environment(cache), *_advice(cache)]
        )

    def _engine(self, kube: Kube, cell: str, pod: Object) -> Outcome:
        """A consumer's."""
        namespace, name = self.stage.namespace, pod["metadata"]["name"]
        cache = (pod["metadata"].get("labels") or {}).get("pretune.dev/cache", "")
        if cache and cell != "no bundle":
            self._sealed(kube, cache)
        kube.create(pod)
        warnings = [f"warning at its making: {one}" for one in kube.warnings]
        found = kube.wait_until(
            "Pod", namespace, name, _engine_runs, PATIENCE, "an engine that runs"
        )
        self._mounted[cell].set()
        folder = self._folder(kube, found)
        before = files(folder)
        log, seconds = _followed(kube, found)
        after = files(folder)
        words = [*_of_pod(found), *map(_plain, warnings)]
        last = kube.get("AutotuneCache", namespace, cache) if cache else None
        if last and cell != "no bundle":  # its bundle may be sealed by now, or not
            words += [*_of_cache(last), *(_advice(last) if cell == "image swapped" else [])]
        kube.delete("Pod", namespace, name, gracePeriodSeconds=1)
        return _outcome(log, seconds, before, after, words)

    def _sealed(self, kube: Kube, cache: str) -> Object:
        """Or refused."""

        def settled(one: Object) -> bool:
            refused = [bundle for bundle in bundles(one) if bundle["state"] == "Refused"]
            seen = (one.get("status") or {}).get("observedGeneration") == one["metadata"][
                "generation"
            ]
            return seen and bool(refused or condition(one, "Ready").get("status") == "True")

        return kube.wait_until(
            "AutotuneCache",
            self.stage.namespace,
            cache,
            settled,
            PATIENCE,
            "Ready=True, or refused",
        )

    def _folder(self, kube: Kube, pod: Object) -> Path:
        """Where its override folder is on this machine: the emptyDir, or the bundle on the claim."""
        [engine] = [one for one in pod["spec"]["containers"] if one["name"] == pods.ENGINE]
        place = next(
            (one["value"] for one in engine.get("env") or () if one["name"] == pods.OVERRIDE), ""
        )
        for root in ("/bundles/", "/pretune/claim/"):
            if place.startswith(root):
                return self.stage.volume(kube, CLAIM) / place.removeprefix(root)
        return self.stage.tactics(pod)


def _name(cell: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", cell.lower()).strip("-")


def _engine_status(pod: Object) -> Object:
    status = pod.get("status") or {}
    both = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    return next((one for one in both if one["name"] == pods.ENGINE), {})


def _engine_runs(pod: Object) -> bool:
    """Or has ended already."""
    state = _engine_status(pod).get("state") or {}
    return "running" in state or "terminated" in state


def _followed(kube: Kube, pod: Object) -> tuple[str, float]:
    """The engine's log until it serves or ends, and the seconds that it took. AssertionError where it does neither in time."""
    began, namespace, name = time.monotonic(), pod["metadata"]["namespace"], pod["metadata"]["name"]
    lines: list[str] = []
    ask = {"follow": "true", "container": pods.ENGINE}
    with kube.session.get(
        kube._url("Pod", namespace, name, "log"), params=ask, stream=True, timeout=PATIENCE
    ) as stream:
        for line in stream.iter_lines():
            lines.append(line.decode(errors="replace"))
            if WARM in lines[-1]:
                return "\n".join(lines), time.monotonic() - began
    kube.wait_until(
        "Pod",
        namespace,
        name,
        lambda one: "terminated" in (_engine_status(one).get("state") or {}),
        30,
        "ended",
    )
    return "\n".join(lines), time.monotonic() - began


def _outcome(log: str, seconds: float, before: Files, after: Files, operator: list[str]) -> Outcome:
    started = WARM in log
    was, changed = shown(before, after)
    ended = "" if started else error(log)
    return Outcome(
        started, profiled(log), said(log), ended, was, changed, operator, round(seconds, 1)
    )


# --- the operator's words, without what differs from run to run


def _of_pod(pod: Object) -> list[str]:
    notes = pod["metadata"].get("annotations") or {}
    delivery, _ = delivery_of(pod)
    told = notes.get("pretune.dev/reason")
    words = [f"{delivery}: {told}" if told else "not asked: the pod has no label of ours"]
    if report := Report.load(seed_report(pod)):
        words.append(f"seed: {report.reason}: {report.message}")
    return [_plain(one) for one in words]


def _of_cache(cache: Object) -> list[str]:
    """Of its newest bundle."""
    ready = condition(cache, "Ready")
    words = [f"cache: Ready {ready.get('status')}: {ready.get('reason')}"]
    for one in bundles(cache)[:1]:
        words.append(
            f"bundle: {one['state']}: {one['reason']}: {one.get('layout')}: {one.get('message')}"
        )
    return [_plain(one) for one in words]


def _environment(cache: Object) -> str:
    """With which it was tuned, as the status says."""
    found = bundles(cache)[0].get("environment") or {}
    return "tuned with: " + ", ".join(f"{name} {value}" for name, value in sorted(found.items()))


def _advice(cache: Object) -> list[str]:
    return [
        _plain(f"cache warns: {one['reason']}") for one in cache["status"].get("warnings") or ()
    ]


def _plain(text: str) -> str:
    text = re.sub(r"localhost/pretune/t-fidelity-[0-9a-z-]+", "IMAGE", _ID.sub("ID", text))
    return re.sub(r"t-fidelity-[0-9a-z-]+", "NAMESPACE", text)
