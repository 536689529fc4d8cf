"""On the real cluster, where a serving engine and its copy have one node: neither is the other's."""

from __future__ import annotations

from typing import Any

from tests.cluster.conftest import CreateCache, WaitForCondition
from tests.cluster.kube import Kube, Object, bundles, condition
from tests.cluster.workloads import deployment, engine_template, serving_template

TUNING = "pretune.dev/role=tuning"


def workload(name: str = "serving") -> Object:
    return {"workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}}


def wait_until_ready(kube: Kube, namespace: str, name: str = "serving") -> None:
    kube.wait_until(
        "Deployment",
        namespace,
        name,
        lambda found: found["status"].get("readyReplicas") == 1,
        120,
    )


def test_an_engine_that_serves_on_its_nodes_network_does_not_answer_for_its_copy(
    kube: Kube, namespace: str, create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    """Else its probe passes before the copy has started, and an empty bundle is sealed."""
    port = 18417
    template = engine_template(
        args=("--port", str(port)),
        env={"ENGINE_START_SECONDS": "4"},
        ports=[{"containerPort": port, "hostPort": port}],
        readinessProbe={
            "httpGet": {"path": "/health", "port": port, "host": "127.0.0.1"},
            "periodSeconds": 1,
        },
    )
    template["spec"]["hostNetwork"] = True
    kube.create(deployment(namespace, template))
    wait_until_ready(kube, namespace)
    [serving] = kube.list("Pod", namespace, "app=demo")
    create_cache(source=workload())
    tuning: list[Object] = []

    def is_sealed(cache: Object) -> bool:
        tuning.extend(kube.list("Pod", namespace, TUNING))
        return condition(cache, "Ready").get("status") == "True"

    cache = kube.wait_until("AutotuneCache", namespace, "demo", is_sealed, 180)
    [bundle] = bundles(cache)
    assert (bundle["layout"], bundle["entries"], bundle["attempts"]) == ("Managed", 20, 1)
    assert tuning[-1]["spec"]["nodeName"] == serving["spec"]["nodeName"]
    addresses = {pod["status"].get("podIP") for pod in tuning} - {None}
    assert addresses and serving["status"]["hostIP"] not in addresses
    assert not any("hostPort" in str(pod["spec"]) for pod in tuning)


def test_a_port_that_opens_before_the_engine_is_ready_seals_no_empty_bundle(
    kube: Kube, namespace: str, create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    """A probe that passes at once, as KServe's: seal waits for the engine's own answer."""
    template = engine_template(
        env={"ENGINE_START_SECONDS": "5"},
        readinessProbe={"exec": {"command": ["true"]}},
    )
    create_cache(template=template)
    [bundle] = bundles(wait_for_condition())
    assert (bundle["layout"], bundle["entries"], bundle["attempts"]) == ("Managed", 20, 1)


def test_a_claim_for_one_node_stays_with_the_pod_that_serves(
    kube: Kube, namespace: str, create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    claim: Any = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"namespace": namespace, "name": "models"},
        "spec": {
            "storageClassName": "local-rwx",
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Mi"}},
        },
    }
    kube.create(claim)
    template = serving_template(volumeMounts=[{"name": "models", "mountPath": "/models"}])
    del template["metadata"]["labels"]["pretune.dev/cache"]
    template["spec"]["volumes"] = [
        {"name": "models", "persistentVolumeClaim": {"claimName": "models"}}
    ]
    kube.create(deployment(namespace, template, replicas=0))
    create_cache(source=workload())
    cache = wait_for_condition(status="False", reason="VolumeUnavailable")
    assert "claim models is ReadWriteOnce" in condition(cache, "Ready")["message"]
    assert kube.list("Pod", namespace, TUNING) == []
    kube.patch("Deployment", namespace, "serving", {"spec": {"replicas": 1}})
    wait_until_ready(kube, namespace)
    [bundle] = bundles(wait_for_condition(seconds=240))
    assert bundle["entries"] == 20
