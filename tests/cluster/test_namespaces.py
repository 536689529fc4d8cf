"""controller.namespaces: pretune works in these namespaces, and has no right in any other one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.conftest import SYSTEM, CreateCache, WaitForCondition, create_namespace, install
from tests.cluster.kube import Kube, Refusal
from tests.cluster.operator_control import OperatorControl
from tests.cluster.test_policy import held_pod
from tests.cluster.workloads import autotune_cache, engine_template

pytestmark = pytest.mark.disturbs


@pytest.fixture
def others(kube: Kube) -> Iterator[list[str]]:
    """A namespace that is in the value too and is deleted, and one that is not."""
    names = [create_namespace(kube, "t-doomed"), create_namespace(kube, "t-outside")]
    yield names
    for name in names:
        kube.delete("Namespace", "", name)


def test_it_works_in_the_namespaces_of_the_value_and_nowhere_else(
    kube: Kube,
    namespace: str,
    others: list[str],
    operator_control: OperatorControl,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
) -> None:
    doomed, outside = others
    try:
        install(kube, "--set", f"controller.namespaces={{{namespace},{doomed}}}")
        operator_control.wait_until_ready("pretune-webhook")
        operator_control.wait_until_led()
        for account in ("pretune", "pretune-webhook"):
            person = Kube(kube.kubeconfig, as_user=f"system:serviceaccount:{SYSTEM}:{account}")
            person.list("AutotuneCache", namespace)
            for kind in ("AutotuneCache", "Job", "ConfigMap", "Pod", "Secret"):
                with pytest.raises(Refusal, match="forbidden"):
                    person.list(kind, outside)
        with pytest.raises(Refusal, match=r"not in controller.namespaces of .*" + namespace):
            kube.create(autotune_cache(outside))
        for place, answered in ((namespace, True), (outside, False)):
            pod = held_pod(place, **{"pretune.dev/cache": "none"})
            del pod["spec"]["schedulingGates"]
            created = kube.create(pod, dry_run=True)
            assert ("pretune.dev/reason" in created["metadata"]["annotations"]) == answered
        kube.delete("Namespace", "", doomed)
        kube.wait_until_gone("Namespace", "", doomed, seconds=90)
        create_cache(template=engine_template())
        wait_for_condition()
    finally:
        install(kube)
