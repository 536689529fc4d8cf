"""spec.verify on the real cluster: who waits for a proof, what a proof finds, and that nobody gets a bundle that failed one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.conftest import Apply, Ready, fresh
from tests.cluster.kube import Kube, Object, bundles, condition, event
from tests.cluster.seen import Seen, given, seed_report
from tests.cluster.test_rehearsal import ENTRIES, rehearsal, site_packages
from tests.cluster.workloads import PER_RANK, autotune_cache, deployment, serving

__all__ = ["rehearsal", "site_packages"]

PROOF = "pretune.dev/role=proof"
ASKED: dict[str, Any] = {"verify": "BeforeRelease", "hold": {"when": "Always"}}
SLOW = {"ENGINE_SECONDS_PER_ENTRY": "0.4"}  # a cold start takes seconds, a warm one none of them


def asked(kube: Kube, namespace: str, name: str, **of_engine: Any) -> None:
    """A cache whose bundles are to be proven, in one attempt, and one pod that waits for that."""
    kube.create(autotune_cache(namespace, name, tuning={"maxAttempts": 1}, **ASKED))
    kube.until(
        "AutotuneCache",
        namespace,
        name,
        lambda one: condition(one, "StorageReady").get("status") == "True",
        60,
    )
    kube.create(deployment(namespace, serving("v1", cache=name, **of_engine), name=name))


FAULTS = {"hang": "warm-hang", "crash": "warm-crash", "again": "never-keeps-one"}


@pytest.fixture(scope="module")
def faulty(kube: Kube, operator: str) -> Iterator[str]:
    """A namespace with engines that are no good when they are warm, side by side: a hang takes a minute to be told."""
    namespace = fresh(kube, "t-proof-faults")
    for name, fault in FAULTS.items():
        asked(kube, namespace, name, env={"ENGINE_FAULT": fault})
    yield namespace
    kube.delete("Namespace", "", namespace)


def failed(kube: Kube, namespace: str, name: str, reason: str, seconds: float = 120) -> Object:
    """The record of a bundle whose proof failed so, once its pod, which was held, serves without it."""
    cache = kube.until(
        "AutotuneCache",
        namespace,
        name,
        lambda one: condition(one, "Ready").get("reason") == reason,
        seconds,
        reason,
    )
    [record] = bundles(cache)
    assert (record["state"], record["reason"], record["proofs"]) == (
        "Failed",
        reason,
        1,
    ) and "proven" not in record
    pod = kube.until_one(
        "Pod",
        namespace,
        f"workload={name}",
        lambda one: condition(one, "Ready").get("status") == "True",
        60,
    )
    assert given(pod) == ("Overlay", "Held")
    assert '"NotProven"' in seed_report(pod), (
        "it starts cold, though it was held for this very bundle"
    )
    event(kube, namespace, "Released", reason)
    return record


@pytest.mark.usefixtures("faulty")  # which need their time
def test_a_held_pod_waits_for_the_proof_and_starts_warm_after_it(
    kube: Kube, namespace: str, seen: Seen
) -> None:
    asked(kube, namespace, "demo", env=SLOW)
    kube.create(autotune_cache(namespace, "ranks", delivery={"mode": "ReadOnly"}, verify="BeforeRelease",
                               source={"template": serving(cache="ranks", **PER_RANK)}))  # fmt: skip
    seen.until(
        lambda s: s.sealed() and s.ready(1), 120, "a proven bundle, and the pod that waited for it"
    )
    [record] = bundles(seen.cache())
    assert (record["proven"], record["proofs"], record["newEntries"], record["gpus"]) == (
        True,
        1,
        0,
        1,
    )
    assert record["coldSeconds"] >= 8 and record["coldSeconds"] > record["warmSeconds"], record
    assert f"instead of {record['coldSeconds']} s and tuned nothing new" in record["message"]
    [pod] = seen.pods()
    name = pod["metadata"]["name"]
    began = seen.first(
        lambda one: any(b["state"] == "Proving" for b in bundles(one)), "AutotuneCache", "demo"
    )
    assert began < seen.sealed_at() < seen.released_at(name), (
        "it is let go by the proof, not by the seal"
    )
    assert given(pod) == ("Overlay", "Held") and '"Seeded"' in seed_report(pod)
    assert "Preloaded 20/20 managed cache entries" in kube.log(namespace, name, "vllm")
    event(kube, namespace, "Proving", "20 entries; the engine is started from the bundle once more")

    seen.until(
        lambda s: s.sealed(name="ranks"),
        60,
        "rank files are proven where they lie, since pods read them there",
    )
    [record] = bundles(seen.cache("ranks"))
    assert record["proven"] and record["layout"] == "PerRank"
    [proof] = [
        one for one in kube.list("Pod", namespace, PROOF) if "ranks" in one["metadata"]["name"]
    ]
    names = [one["name"] for one in proof["spec"]["initContainers"]]
    assert names == ["vllm"], "read-only on the claim there is nothing to seed"


def test_a_bundle_that_fails_its_proof_is_given_to_no_pod(kube: Kube, faulty: str) -> None:
    record = failed(kube, faulty, "crash", "WarmCrash")
    assert "exit code 1" in record["message"] and "Traceback" in record["message"], record[
        "message"
    ]
    record = failed(kube, faulty, "again", "NotReproducible")
    assert record["newEntries"] == 1 and "1 new entry" in record["message"], record["message"]
    kube.patch("Deployment", faulty, "again", {"spec": {"replicas": 2}})
    left = kube.until_one("Pod", faulty, "workload=again", lambda one: given(one)[1] != "Held")
    assert given(left) == ("None", "TuningFailed")
    jobs = kube.list("Job", faulty, PROOF)
    assert len(jobs) == len({one["metadata"]["labels"]["pretune.dev/cache"] for one in jobs}), (
        "no second proof"
    )


@pytest.mark.rehearsal
def test_vllms_own_code_proves_its_own_store(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, rehearsal: Any
) -> None:
    apply(template=rehearsal(), verify="BeforeRelease")
    [record] = bundles(ready(seconds=400))
    assert (record["layout"], record["entries"], record["proven"]) == ("Managed", ENTRIES, True)
    assert record["newEntries"] == 0 and record["coldSeconds"] > 0 < record["warmSeconds"]
    [pod] = kube.list("Pod", namespace, PROOF)
    log = kube.log(namespace, pod["metadata"]["name"], "vllm")
    assert (
        f"Preloaded {ENTRIES}/{ENTRIES} managed cache entries" in log
        and "rehearsal: profiled 0" in log
    )


def test_an_engine_that_hangs_when_it_is_warm_is_ended_and_its_bundle_given_to_nobody(
    kube: Kube, faulty: str
) -> None:
    record = failed(kube, faulty, "hang", "WarmHang", 150)
    assert f"its cold start took {record['coldSeconds']} s" in record["message"], record["message"]
    kube.until_one(
        "Job",
        faulty,
        f"{PROOF},pretune.dev/cache=hang",
        lambda one: condition(one, "Failed").get("status") == "True",
        60,
    )
    assert not kube.list("Pod", faulty, f"{PROOF},pretune.dev/cache=hang"), "its GPU is given back"
