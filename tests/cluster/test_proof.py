"""spec.verify on the real cluster: pods wait for the proof, and none gets a bundle that failed it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.conftest import CreateCache, WaitForCondition, create_namespace
from tests.cluster.kube import Kube, Object, bundles, condition, wait_for_event
from tests.cluster.recorder import Recorder, delivery_of, seed_report
from tests.cluster.test_rehearsal import ENTRIES, rehearsal, site_packages
from tests.cluster.workloads import PER_RANK, autotune_cache, deployment, serving_template

__all__ = ["rehearsal", "site_packages"]

PROOF = "pretune.dev/role=proof"
ASKED: dict[str, Any] = {"verify": "BeforeRelease", "hold": {"when": "Always"}}
SLOW = {"ENGINE_SECONDS_PER_ENTRY": "0.4"}  # a cold start takes seconds, a warm one none of them


def asked(kube: Kube, namespace: str, name: str, **of_engine: Any) -> None:
    """Create a cache whose bundles are proven in one attempt, and one pod that waits for that."""
    kube.create(autotune_cache(namespace, name, tuning={"maxAttempts": 1}, **ASKED))
    kube.wait_until(
        "AutotuneCache",
        namespace,
        name,
        lambda cache: condition(cache, "StorageReady").get("status") == "True",
        60,
    )
    kube.create(deployment(namespace, serving_template("v1", cache=name, **of_engine), name=name))


FAULTS = {"hang": "warm-hang", "crash": "warm-crash", "again": "never-keeps-one"}


@pytest.fixture(scope="module")
def faulty(kube: Kube, operator: str) -> Iterator[str]:
    """A namespace with engines that fail when warm, all at once: a hang is seen after one minute."""
    namespace = create_namespace(kube, "t-proof-faults")
    for name, fault in FAULTS.items():
        asked(kube, namespace, name, env={"ENGINE_FAULT": fault})
    yield namespace
    kube.delete("Namespace", "", namespace)


def failed(kube: Kube, namespace: str, name: str, reason: str, seconds: float = 120) -> Object:
    """Return a bundle whose proof failed with the reason, once its held pod serves without it."""
    cache = kube.wait_until(
        "AutotuneCache",
        namespace,
        name,
        lambda cache: condition(cache, "Ready").get("reason") == reason,
        seconds,
        reason,
    )
    [record] = bundles(cache)
    assert (record["state"], record["reason"], record["proofs"]) == (
        "Failed",
        reason,
        1,
    ) and "proven" not in record
    pod = kube.wait_for_any(
        "Pod",
        namespace,
        f"workload={name}",
        lambda cache: condition(cache, "Ready").get("status") == "True",
        60,
    )
    assert delivery_of(pod) == ("Overlay", "Held")
    assert '"NotProven"' in seed_report(pod), (
        "it starts cold, though it was held for this very bundle"
    )
    wait_for_event(kube, namespace, "Released", reason)
    return record


@pytest.mark.usefixtures("faulty")  # which need their time
def test_a_held_pod_waits_for_the_proof_and_then_starts_warm(
    kube: Kube, namespace: str, recorder: Recorder
) -> None:
    asked(kube, namespace, "demo", env=SLOW)
    kube.create(autotune_cache(namespace, "ranks", delivery={"mode": "ReadOnly"}, verify="BeforeRelease",
                               source={"template": serving_template(cache="ranks", **PER_RANK)}))  # fmt: skip
    recorder.wait_until(
        lambda s: s.has_sealed() and s.are_ready(1),
        120,
        "a proven bundle, and the pod that waited for it",
    )
    [record] = bundles(recorder.cache())
    assert (record["proven"], record["proofs"], record["newEntries"], record["gpus"]) == (
        True,
        1,
        0,
        1,
    )
    assert record["coldSeconds"] >= 8 and record["coldSeconds"] > record["warmSeconds"], record
    assert f"instead of {record['coldSeconds']} s and tuned nothing new" in record["message"]
    [pod] = recorder.pods()
    name = pod["metadata"]["name"]
    began = recorder.first_time(
        lambda cache: any(bundle["state"] == "Proving" for bundle in bundles(cache)),
        "AutotuneCache",
        "demo",
    )
    assert began < recorder.sealed_at() < recorder.released_at(name), (
        "the proof releases it, and not the seal"
    )
    assert delivery_of(pod) == ("Overlay", "Held") and '"Seeded"' in seed_report(pod)
    assert "Preloaded 20/20 managed cache entries" in kube.log(namespace, name, "vllm")
    wait_for_event(
        kube, namespace, "Proving", "20 entries; the engine is started from the bundle once more"
    )

    recorder.wait_until(
        lambda s: s.has_sealed(name="ranks"),
        60,
        "rank files are proven where they lie, since pods read them there",
    )
    [record] = bundles(recorder.cache("ranks"))
    assert record["proven"] and record["layout"] == "PerRank"
    [proof] = [
        pod for pod in kube.list("Pod", namespace, PROOF) if "ranks" in pod["metadata"]["name"]
    ]
    names = [container["name"] for container in proof["spec"]["initContainers"]]
    assert names == ["vllm"], "read-only on the claim there is nothing to seed"


def test_no_pod_gets_a_bundle_that_failed_its_proof(kube: Kube, faulty: str) -> None:
    record = failed(kube, faulty, "crash", "WarmCrash")
    assert "exit code 1" in record["message"] and "CrashError" in record["message"], record[
        "message"
    ]
    record = failed(kube, faulty, "again", "NotReproducible")
    assert record["newEntries"] == 1 and "1 new entry" in record["message"], record["message"]
    kube.patch("Deployment", faulty, "again", {"spec": {"replicas": 2}})
    left = kube.wait_for_any(
        "Pod", faulty, "workload=again", lambda pod: delivery_of(pod)[1] != "Held"
    )
    assert delivery_of(left) == ("None", "TuningFailed")
    jobs = kube.list("Job", faulty, PROOF)
    assert len(jobs) == len({job["metadata"]["labels"]["pretune.dev/cache"] for job in jobs}), (
        "no second proof"
    )


@pytest.mark.long
@pytest.mark.rehearsal
def test_vllms_own_code_proves_its_own_store(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    rehearsal: Any,
) -> None:
    create_cache(template=rehearsal(), verify="BeforeRelease")
    [record] = bundles(wait_for_condition(seconds=400))
    assert (record["layout"], record["entries"], record["proven"]) == ("Managed", ENTRIES, True)
    assert record["newEntries"] == 0 and record["coldSeconds"] > 0 < record["warmSeconds"]
    [pod] = kube.list("Pod", namespace, PROOF)
    log = kube.log(namespace, pod["metadata"]["name"], "vllm")
    assert (
        f"Preloaded {ENTRIES}/{ENTRIES} managed cache entries" in log
        and "rehearsal: profiled 0" in log
    )


def test_an_engine_that_hangs_warm_is_ended_and_no_pod_gets_its_bundle(
    kube: Kube, faulty: str
) -> None:
    record = failed(kube, faulty, "hang", "WarmHang", 150)
    assert f"its cold start took {record['coldSeconds']} s" in record["message"], record["message"]
    kube.wait_for_any(
        "Job",
        faulty,
        f"{PROOF},pretune.dev/cache=hang",
        lambda job: condition(job, "Failed").get("status") == "True",
        60,
    )
    pods = kube.list("Pod", faulty, f"{PROOF},pretune.dev/cache=hang")
    assert [pod["status"]["phase"] for pod in pods] == ["Failed"], "its GPU is given back"
