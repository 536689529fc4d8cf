"""How consumers' engines started: what their logs say of it, why one tuned although it had its bundle, and what proven bundles saved.

Level-triggered: a log is worth reading as long as its answer is not known, an answer is counted as long as its engine runs, and a start
is saved time once, since the status remembers until when starts were counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pretune.api import reasons
from pretune.api.reasons import Refused
from pretune.api.status import BundleStatus, ConsumerCounts
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.engines import logs
from pretune.kube.types import Event
from pretune.manifests.delivery_modes import find_mode
from pretune.podspec import canonical
from pretune.podspec.template import engine_of, engine_type
from pretune.policy.model import EngineStart
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pods.consumers import Consumer, digest_of
from pretune.protocol import NO_BUNDLE, NOT_PROVEN, SEEDED

SETTLE = 10.0  # seconds that what happened may take until it is seen
NAMED = 3  # pods that an event names

# Seed found no bundle to give: nothing was promised.
NONE_THERE = (NO_BUNDLE, NOT_PROVEN)


# --- whose log is read


def worth_reading(plan: PlanBuilder, pods: Sequence[Consumer]) -> tuple[EngineStart, ...]:
    """Every start that a log can tell of: of ready consumers that were given a bundle."""
    return tuple(_start(one) for one in pods if _is_told(one))


def _is_told(one: Consumer) -> bool:
    return (
        one.is_ready
        and bool(one.given_bundle and one.started_at and one.ready_at)
        and find_mode(one.mode) is not None
    )


def _start(one: Consumer) -> EngineStart:
    engine = _engine(one)
    return EngineStart(
        pod=one.name,
        uid=str(one.pod["metadata"]["uid"]),
        container=one.engine,
        since=one.started_at,
        ready=one.ready_at or 0.0,
        probed=engine is None or "readinessProbe" in engine or "startupProbe" in engine,
        engine=engine,
    )


def _engine(one: Consumer) -> Object | None:
    """The engine as the pod's author wrote it; None where that cannot be told."""
    if one.origin is None or isinstance(one.origin.template, Refused) or not one.engine:
        return None
    try:
        return engine_of(one.origin.template, one.engine)
    except Refused:
        return None


# --- how many were warm


def told(plan: PlanBuilder, pods: Sequence[Consumer]) -> ConsumerCounts:
    """Return how many started warm, in part, or tuned; nothing where no logs are read.

    As they were while an answer is still to come: else each start of the controller, and each new
    pod, would take back what was reported.
    """
    if plan.observed.start_logs is None:
        return ConsumerCounts()
    found = [plan.observed.start_logs.get(_start(one).key) for one in pods if _is_told(one)]
    if None in found:
        before = plan.status.consumers or ConsumerCounts()
        return ConsumerCounts(warm=before.warm, partial=before.partial, tuned=before.tuned)
    results = [one.log_summary.result for one in found if one is not None]
    return ConsumerCounts(
        warm=results.count(logs.WARM),
        partial=results.count(logs.PARTIAL),
        tuned=results.count(logs.TUNED),
    )


def tell(plan: PlanBuilder, pods: Sequence[Consumer], counted: ConsumerCounts) -> None:
    """The event TunedAgain, when the status newly counts pods that tuned: one for each bundle and factor."""
    before = plan.status.consumers or ConsumerCounts()
    if (counted.tuned or 0) <= (before.tuned or 0) and (counted.partial or 0) <= (
        before.partial or 0
    ):
        return
    groups: dict[tuple[str, str, str], list[Consumer]] = {}
    warm = _warm_folders(plan, pods)
    for one in pods:
        answer = (
            plan.observed.start_logs.get(_start(one).key)
            if plan.observed.start_logs and _is_told(one)
            else None
        )
        if (
            answer is not None
            and answer.log_summary.result in (logs.TUNED, logs.PARTIAL)
            and _was_promised(one)
        ):
            why = factor(plan, one, warm.get(one.given_bundle, set()))
            groups.setdefault((one.given_bundle, answer.log_summary.result, why), []).append(one)
    for (bundle, result, why), some in sorted(groups.items()):
        how = "tuned all of it again" if result == logs.TUNED else "tuned some of it again"
        plan.events.append(
            Event(
                reasons.TUNED_AGAIN,
                f"bundle {bundle}: {_names(some)} had it and {how}, by the engine's log: {why}",
                True,
            )
        )


def _was_promised(one: Consumer) -> bool:
    """It had its bundle, or would have, had seed not found fault with it."""
    return one.is_mounted or (
        one.seed_report is not None and one.seed_report.reason not in NONE_THERE
    )


def _warm_folders(plan: PlanBuilder, pods: Sequence[Consumer]) -> dict[str, set[str]]:
    """Of each bundle, where engines that started warm from it found it."""
    found: dict[str, set[str]] = {}
    for one in pods:
        answer = (plan.observed.start_logs or {}).get(_start(one).key) if _is_told(one) else None
        if answer is not None and answer.log_summary.result == logs.WARM:
            found.setdefault(one.given_bundle, set()).update(answer.log_summary.folders)
    return found


def _names(some: Sequence[Consumer]) -> str:
    listed = ", ".join(one.name for one in some[:NAMED])
    rest = len(some) - NAMED
    kind = "pod" if len(some) == 1 else "pods"
    return f"{kind} {listed}" + (f" and {rest} more" if rest > 0 else "")


# --- why one tuned again

FACTORS = {"gpu": "GPU", "flashinfer_version": "FlashInfer version"}


def factor(plan: PlanBuilder, one: Consumer, warm: set[str]) -> str:
    """Why a consumer that had its bundle tuned: the first that can be told. `warm`: folders in which others found it."""
    answer = (plan.observed.start_logs or {})[_start(one).key]
    said, bundle = answer.log_summary, plan.bundles.get(one.given_bundle)
    if one.seed_report is not None and one.seed_report.reason != SEEDED:
        return f"its folder was empty: {one.seed_report.reason}: {one.seed_report.message}"
    if said.differences:
        return "; ".join(
            f"{FACTORS.get(each.name, each.name)} differs: the bundle has {each.saved}, the pod {each.current}"
            for each in said.differences
        )
    image = digest_of((bundle.engine_image if bundle is not None else None) or "")
    moved = (
        "the image under its name is another one than was tuned; "
        if image and digest_of(one.image_id) not in ("", image)
        else ""
    )
    if said.result == logs.PARTIAL:
        operations = ", ".join(said.operations) or "operations that the log does not name"
        number = "1 entry is" if said.new == 1 else f"{said.new} entries at most are"
        return f"{moved}{number} not in the bundle, of {operations}"
    if warm & set(said.folders):
        where = (
            f"it looked in {_short(said.folders)}, where other pods found it, and loaded nothing"
        )
        return f"{moved}{where}: its ranks did not agree, or it may not read the files"
    if said.managed:
        return f"{moved}{_other_store(said, warm)}"
    return f"{moved}{_other_key(said, warm)}{_what_differs(answer.differences, _references(_engine(one)))}"


def _other_store(said: logs.LogSummary, warm: set[str]) -> str:
    """FlashInfer names the folder after the GPU and the versions of its libraries (docs/dev/facts-flashinfer.md)."""
    there = f", others found it in {_short(warm)}" if warm else ""
    return (
        f"its store {_short(said.folders)} has no entries{there}: the GPU, or the version of FlashInfer, CUDA, cuBLAS, cuDNN or CUTLASS,"
        " is not the one that was tuned with"
    )


def _other_key(said: logs.LogSummary, warm: set[str]) -> str:
    """vLLM names the folder after its configuration; seed has checked that all of the bundle's is there."""
    there = f", which is in {_short(warm)} for other pods" if warm else ""
    return f"its engine looked for it in the key folder {_short(said.folders)}, and the bundle has none of that name{there}"


def _short(folders: Iterable[str]) -> str:
    return (
        ", ".join(sorted(f"{name[:12]}…" if len(name) > 12 else name for name in folders))
        or "(not named)"
    )


def _what_differs(differs: Sequence[str], references: Sequence[str]) -> str:
    if differs:
        return f"; in its pod, other than in the template: {', '.join(differs)}"
    if references:
        return f"; its template leaves open: {', '.join(references)}"
    return (
        "; its engine's image, command, args and env are the template's: look for what they name (a model's config.json, a file of"
        " arguments, values in ConfigMaps)"
    )


def differences(engine: Object, template: Object) -> tuple[str, ...]:
    """Where a container differs from the template's: names of variables and flags, never a value. What we add ourselves does not count."""
    ours = engine_type(template).variables
    here, there = (canonical.program(one, without=ours) for one in (engine, template))
    names = [
        f"env {name}"
        for name in sorted({**here["env"], **there["env"]})
        if here["env"].get(name) != there["env"].get(name)
    ]
    for part in ("command", "args"):
        mine, others = list(engine.get(part) or ()), list(template.get(part) or ())
        if mine != others:
            names.append(" ".join([part, *_flags(mine, others)]))
    names += [
        part
        for part in ("image", "envFrom")
        if canonical.to_json(here[part]) != canonical.to_json(there[part])
    ]
    return tuple(names)


def _flags(mine: Sequence[str], others: Sequence[str]) -> list[str]:
    """The flags whose words differ, each once: `--max-num-seqs`."""
    pairs = [set(_flagged(one)) for one in (mine, others)]
    return sorted({flag for flag, _ in pairs[0] ^ pairs[1] if flag})


def _flagged(words: Sequence[str]) -> Iterable[tuple[str, str]]:
    flag = ""
    for word in words:
        if word.startswith("-"):
            flag = word.partition("=")[0][:80]
        yield flag, word


def _references(engine: Object | None) -> list[str]:
    """Variables whose values the template does not hold, and that vLLM reads or an argument names: what may differ from pod to pod."""
    if engine is None:
        return []
    words = " ".join([*(engine.get("command") or ()), *(engine.get("args") or ())])
    values = " ".join(str(one.get("value") or "") for one in engine.get("env") or ())
    found = []
    for one in engine.get("env") or ():
        source = next(iter(one.get("valueFrom") or ()), "")
        if source and (
            one["name"].startswith("VLLM_")
            or f"$({one['name']})" in words
            or f"$({one['name']})" in values
        ):
            found.append(f"env {one['name']} ({source})")
    return [*found, *("envFrom" for _ in (engine.get("envFrom") or ())[:1])]


# --- what was saved


def saved(plan: PlanBuilder, pods: Sequence[Consumer]) -> tuple[int | None, float | None]:
    """Return gpuSecondsSaved and savedUntil (Unix seconds); None: nothing was saved yet.

    A start counts if the engine had a proven bundle and was ready within that bundle's coldSeconds.
    It is counted once that time is over: by then a pod that flips between ready and not ready has had
    its chance. Its start, not its readiness, decides whether it was counted before: savedUntil is the
    time up to which starts were, and moves only when one counts. A start that tuned by its log saved
    nothing.
    """
    total, until = plan.status.gpu_seconds_saved or 0, plan.status.saved_until
    gains = {
        bundle.id: value for bundle in plan.bundles.values() if (value := worth(bundle)) is not None
    }
    before = until if until is not None else -math.inf
    patience = max((cold for _, cold in gains.values()), default=0.0) + SETTLE
    horizon = math.floor(plan.now - patience)
    counted = 0
    for one in pods:
        if one.given_bundle not in gains or not (
            one.is_ready and one.is_seeded and one.started_at and one.ready_at
        ):
            continue
        gain, cold = gains[one.given_bundle]
        began = parse_timestamp(one.started_at)
        if began <= before or one.ready_at - began > cold or _tuned(plan, one):
            continue
        if began > horizon:
            plan.requeue_at(began + patience + 1)
        else:
            counted, total = counted + 1, total + gain
    if counted:
        until = float(horizon)
    return (total, until) if until is not None else (None, None)


def _tuned(plan: PlanBuilder, one: Consumer) -> bool:
    """Whether its log says that it tuned, all or some of it, however soon it was ready. False: it did not, or nobody knows."""
    answer = (plan.observed.start_logs or {}).get(_start(one).key)
    return answer is not None and answer.log_summary.result in (logs.TUNED, logs.PARTIAL)


def worth(bundle: BundleStatus) -> tuple[int, float] | None:
    """Return the GPU-seconds that a start saves, and coldSeconds, of a proven bundle.

    None where it is not proven, or one of its two times is unknown.
    """
    gpus, cold, warm = bundle.gpus, bundle.cold_seconds, bundle.warm_seconds
    if not bundle.proven or not gpus or not cold or warm is None:
        return None
    return gpus * max(0, cold - warm), float(cold)
