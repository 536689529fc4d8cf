"""Beside the real Argo Rollouts: canary, blue-green, rollback, abort, and the progress deadline."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.conftest import CreateCache, TuningSignals, WaitForCondition
from tests.cluster.kube import Kube, Object, bundles, condition
from tests.cluster.recorder import Recorder, is_held, is_ready, wait_until_held
from tests.cluster.workloads import serving_template
from tests.neighbours.argo import ArgoRollouts, rollout

pytestmark = [pytest.mark.neighbours, pytest.mark.usefixtures("argo")]

CANARY = {"canary": {"maxSurge": 1, "maxUnavailable": 0, "steps": [{"setWeight": 50}]}}
BLUE_GREEN = {"blueGreen": {"activeService": "active"}}
SECONDS = 180


class Serving:
    """A cache, and a Rollout of two pods, whose first revision is sealed and serves."""

    def __init__(self, kube: Kube, namespace: str, recorder: Recorder, folder: str) -> None:
        self.kube, self.namespace, self.recorder, self.folder = kube, namespace, recorder, folder

    def create(self, strategy: Object, **spec: object) -> None:
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"namespace": self.namespace, "name": "active"},
            "spec": {"selector": {"workload": "serving"}, "ports": [{"port": 8000}]},
        }
        self.kube.create(service)
        template = serving_template("v1", signals=self.folder)
        self.kube.create(rollout(self.namespace, template, 2, strategy, **spec))
        self.wait_until_serving("v1")
        self.recorder.wait_until(lambda s: s.has_sealed(), SECONDS, "v1 sealed")
        self.recorder.wait_until(
            lambda s: bundles(s.cache())[0].get("serving"), 15, "v1's bundle is known to serve"
        )

    def roll_out(self, version: str) -> None:
        pod = serving_template(version, signals=self.folder)["spec"]
        self.patch({"spec": {"template": {"spec": pod}}})

    def promote(self) -> None:
        """Go past the steps of CANARY."""
        self.patch({"status": {"pauseConditions": None, "currentStepIndex": 1}}, "status")

    def patch(self, patch: Object, part: str = "") -> None:
        self.kube.patch("Rollout", self.namespace, "serving", patch, part)

    def wait_until_serving(self, version: str) -> None:
        self.recorder.wait_until(
            lambda s: s.are_ready(2, version), SECONDS, f"two pods of {version} serve"
        )


@pytest.fixture
def serving(
    kube: Kube,
    namespace: str,
    recorder: Recorder,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    signals: TuningSignals,
) -> Serving:
    signals.finish_tuning("v1")
    create_cache()
    wait_for_condition(kind="StorageReady")
    return Serving(kube, namespace, recorder, signals.folder)


@pytest.mark.parametrize("strategy", [CANARY, BLUE_GREEN], ids=["canary", "blue-green"])
def test_new_pods_are_held_while_old_ones_serve_and_start_warm(
    serving: Serving, recorder: Recorder, signals: TuningSignals, strategy: Object
) -> None:
    serving.create(strategy)
    began = recorder.records[-1].at
    serving.roll_out("v2")
    wait_until_held(recorder, 1, "v2")
    signals.finish_tuning("v2")
    recorder.wait_until(
        lambda s: s.pods("v2") and all(not is_held(pod) for pod in s.pods("v2")),
        SECONDS,
        "v2 is released",
    )
    if strategy is CANARY:
        serving.promote()
    recorder.wait_until(
        lambda s: len(s.pods("v2")) == 2 and all(is_ready(pod) for pod in s.pods("v2")),
        SECONDS,
        "v2 serves",
    )
    assert recorder.least_ready(began) >= 2
    assert not recorder.describe_cold_pods("v2")


def test_an_aborted_rollout_is_warm_when_it_is_retried(
    serving: Serving, recorder: Recorder, signals: TuningSignals
) -> None:
    serving.create(CANARY)
    serving.roll_out("v2")
    wait_until_held(recorder, 1, "v2")
    serving.patch({"status": {"abort": True}}, "status")
    recorder.wait_until(lambda s: not s.pods("v2"), 60, "the new pods are gone")
    signals.finish_tuning("v2")
    recorder.wait_until(lambda s: s.has_sealed(2), SECONDS, "v2 is sealed all the same")
    serving.patch({"status": {"abort": False}}, "status")
    recorder.wait_until(
        lambda s: any(is_ready(pod) for pod in s.pods("v2")),
        SECONDS,
        "v2 serves",
    )
    assert not recorder.describe_cold_pods("v2")


def test_a_rollback_is_the_newest_revision_again(
    serving: Serving, recorder: Recorder, signals: TuningSignals
) -> None:
    """Its order is that of rollout.argoproj.io/revision: Ready speaks of the bundle that pods wait for.

    By age v3 would be the newest, whose bundle is sealed.
    """
    serving.create(CANARY)
    serving.roll_out("v2")
    wait_until_held(recorder, 1, "v2")
    signals.finish_tuning("v3")
    serving.roll_out("v3")
    recorder.wait_until(lambda s: s.has_sealed(2), SECONDS, "v3 sealed, v2 is not")
    serving.promote()
    serving.wait_until_serving("v3")
    recorder.wait_until(lambda s: _ready(s) == "True", 30, "Ready speaks of v3")
    serving.roll_out("v2")
    wait_until_held(recorder, 1, "v2")
    recorder.wait_until(lambda s: _ready(s) == "False", 30, "Ready speaks of v2")
    signals.finish_tuning("v2")
    recorder.wait_until(lambda s: _ready(s) == "True", SECONDS, "v2 sealed")


def _ready(recorder: Recorder) -> str:
    return str(condition(recorder.cache(), "Ready")["status"])


@pytest.fixture
def right_to_read_rollouts(kube: Kube, operator: str) -> Iterator[None]:
    """As the chart's value sources.extraRules gives it."""
    name = "pretune-test-rollouts"
    account = {"kind": "ServiceAccount", "namespace": operator, "name": "pretune"}
    rule = {
        "apiGroups": ["argoproj.io"],
        "resources": ["rollouts"],
        "verbs": ["get", "list", "watch"],
    }
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    for kind, more in (
        ("ClusterRole", {"rules": [rule]}),
        ("ClusterRoleBinding", {"roleRef": role, "subjects": [account]}),
    ):
        kube.create(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": kind,
                "metadata": {"name": name},
                **more,
            }
        )
    yield
    for kind in ("ClusterRoleBinding", "ClusterRole"):
        kube.delete(kind, "", name)


@pytest.mark.usefixtures("right_to_read_rollouts")
def test_a_progress_deadline_that_is_shorter_than_a_hold_is_advised(
    serving: Serving, kube: Kube, namespace: str, argo: ArgoRollouts
) -> None:
    serving.create(CANARY, progressDeadlineSeconds=300, progressDeadlineAbort=True)
    cache = kube.wait_until(
        "AutotuneCache",
        namespace,
        "demo",
        lambda c: any(
            warning["reason"] == "ProgressDeadlineShort"
            for warning in (c.get("status") or {}).get("warnings") or ()
        ),
        60,
        "the advice",
    )
    [message] = [
        warning["message"]
        for warning in cache["status"]["warnings"]
        if warning["reason"] == "ProgressDeadlineShort"
    ]
    assert message.startswith("Rollout serving: ") and "progressDeadlineAbort" in message
