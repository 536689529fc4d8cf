"""The annotation pretune.dev/import: when an import is begun, what becomes of it, and that it keeps nothing from being tuned."""

from __future__ import annotations

import copy
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretune.api import names, spec
from pretune.api.names import IMPORT, IMPORT_CONTAINER
from pretune.api.reasons import Refused
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.manifests.import_job import IMPORT_DEADLINE_SECONDS, build_import_job
from pretune.policy.bundles import imports
from pretune.policy.decide import decide
from pretune.policy.model import Create, Delete, Outcome, Plan
from pretune.protocol import SOURCE_MOUNT, Report, Task

from tests.builders.caches import bundle_json, cache, claim
from tests.builders.constants import AGENT, KEY, NOW, SETTINGS
from tests.builders.jobs import Job
from tests.builders.observed import bundle_of, observed, origin
from tests.builders.pods import AttemptPod, Consumer
from tests.builders.templates import serving_template
from tests.unit.policy.test_decide import KNOWN, action_names, ids, status_of

FROM = "home/vllm/.cache"


def asking(value: str = FROM, status: Any = None, **spec: Any) -> Object:
    made = cache(status if status is not None else dict(KNOWN), **spec)
    made["metadata"]["annotations"] = {IMPORT: value}
    return made


def of(plan: Plan, bundle: str = "") -> Object:
    assert plan.status is not None
    return next(one for one in plan.status["bundles"] if bundle in ("", one["id"]))


def made(plan: Plan) -> list[Object]:
    return [one.object for one in plan.actions if isinstance(one, Create)]


def import_of(the_cache: Object, value: str = FROM, age: float = 60, **status: Any) -> Job:
    """Return the Job as the API server has it."""
    source = (value.partition("/")[0], value.partition("/")[2])
    job = build_import_job(
        KEY, the_cache, serving_template(), spec.Target(), value, source, SETTINGS, AGENT
    )
    job["metadata"] |= {
        "uid": f"uid-of-import-{value}",
        "creationTimestamp": format_timestamp(NOW - age),
    }
    del job["spec"]["template"]
    job["status"] = {"conditions": [], **status}
    return Job(job)


class Importer(AttemptPod):
    """Its pod, as the kubelet tells it."""

    def __init__(self, job: Object) -> None:
        super().__init__(job["metadata"]["labels"][names.BUNDLE], of=job)
        self["metadata"]["labels"] = dict(job["metadata"]["labels"])
        self["spec"] |= {"initContainers": [], "containers": [{"name": IMPORT_CONTAINER}]}


def report(
    reason: str = "Sealed", message: str = "20 entries in a managed store", **more: Any
) -> Report:
    sealed = (
        {"layout": "Managed", "entries": 20, "digest": "sha256:1", "at": format_timestamp(NOW - 6)}
        if reason == "Sealed"
        else {}
    )
    return Report("import", reason, message, **{**sealed, **more})


def pending(the_cache: Object) -> Object:
    return bundle_json(ids(the_cache)[0], names.PENDING, attempts=0, reason="Importing")


def noted(reason: str, value: str = FROM) -> Any:
    return {"import": {"from": value, "reason": reason}}


def with_record(the_cache: Object, **more: Any) -> Object:
    return asking(
        status=status_of({**pending(the_cache), **more}),
        value=the_cache["metadata"]["annotations"][IMPORT],
    )


# --- its beginning


def test_an_import_goes_before_the_first_attempt_and_needs_no_gpu() -> None:
    plan = decide(observed(asking()), NOW)
    [job] = made(plan)
    assert (
        job["metadata"]["labels"][names.ROLE] == "import"
        and job["metadata"]["annotations"][IMPORT] == FROM
    )
    assert "nvidia.com/gpu" not in str(job)
    assert (of(plan)["state"], of(plan)["reason"], of(plan)["attempts"]) == (
        "Pending",
        "Importing",
        0,
    )
    assert FROM in of(plan)["message"]


def test_an_older_revisions_bundle_is_tuned_since_the_folder_is_of_one_engine() -> None:
    sealed = bundle_json(ids(asking())[0], sealedAt=format_timestamp(NOW - 9999))
    pods = {"consumers": (Consumer("a").ready(),), "origins": origin("a")}
    [job] = made(decide(observed(asking(status=status_of(sealed)), **pods), NOW))
    assert job["metadata"]["labels"][names.ROLE] == "tuning"
    assert job["metadata"]["labels"][names.BUNDLE] == bundle_of("a", asking())


def test_without_the_annotation_it_is_tuned() -> None:
    assert [
        one["metadata"]["labels"][names.ROLE]
        for one in made(decide(observed(cache(dict(KNOWN))), NOW))
    ] == ["tuning"]


@pytest.mark.parametrize(
    ("why", "spec", "more", "reason"),
    [
        ("it is suspended", {"suspend": True}, {}, "Suspended"),
        ("its claim cannot be used", {}, {"claim": claim("Lost")}, "WaitingForClaim"),
        ("the agent is not there yet", {}, {"agents": ()}, "Importing"),
    ],
)
def test_it_is_not_begun_while(why: str, spec: Object, more: Any, reason: str) -> None:
    plan = decide(observed(asking(**spec), **more), NOW)
    assert made(plan) == [] and of(plan)["reason"] == reason, why


@pytest.mark.parametrize(
    "state", [names.SEALED, names.FAILED, names.REFUSED, names.RETIRED, names.TUNING_STATE]
)
def test_only_a_bundle_that_is_to_be_tuned_is_imported(state: str) -> None:
    known = {"retiredAt": format_timestamp(NOW - 5)} if state == names.RETIRED else {}
    the_cache = asking(
        status=status_of(
            bundle_json(ids(asking())[0], state, sealedAt=format_timestamp(NOW - 60), **known)
        )
    )
    jobs = [
        one
        for one in made(decide(observed(the_cache), NOW))
        if one["metadata"]["labels"][names.ROLE] == "import"
    ]
    assert jobs == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("Home/x", "'Home' is not the name of a claim; write <claim>[/<path in it>]"),
        ("/x", "'' is not the name of a claim"),
        ("home/../../etc", "'../../etc' leads out of the claim"),
        ("home/a\nb", "is no path of a folder"),
        ("home/" + "x" * 2000, "is no path of a folder"),
    ],
)
def test_a_value_that_cannot_be_meant_is_said_and_the_bundle_tuned(value: str, words: str) -> None:
    plan = decide(observed(asking(value)), NOW)
    assert [one["metadata"]["labels"][names.ROLE] for one in made(plan)] == ["tuning"]
    said = of(plan)["import"]
    assert (
        said["reason"] == "ImportRefused" and words in said["message"] and len(said["from"]) <= 1024
    )
    [event] = [one for one in plan.events if one.reason == "ImportRefused"]
    assert event.warning and words in event.message
    after = decide(observed(asking(value, status=plan.status)), NOW)
    assert not [one for one in after.events if one.reason == "ImportRefused"], "once"


@pytest.mark.parametrize("code", [400, 403, 422])
def test_a_job_that_the_api_server_does_not_take_is_no_reason_to_wait(code: int) -> None:
    the_cache = asking()
    first = decide(observed(the_cache), NOW)
    [action] = [one for one in first.actions if isinstance(one, Create)]
    plan = decide(
        observed(
            the_cache, outcomes={action.name: Outcome(code, "forbidden: no claims of others")}
        ),
        NOW,
    )
    assert (
        of(plan)["import"]["reason"] == "ImportRefused"
        and "no claims of others" in of(plan)["import"]["message"]
    )
    assert "tuning" in str(made(decide(observed(asking(status=plan.status)), NOW)))


def test_an_api_server_that_fails_is_asked_again() -> None:
    the_cache = asking()
    [action] = [one for one in decide(observed(the_cache), NOW).actions if isinstance(one, Create)]
    plan = decide(observed(the_cache, outcomes={action.name: Outcome(500, "etcd is away")}), NOW)
    assert "import" not in of(plan) and plan.requeue_after is not None and plan.requeue_after <= 30


def test_each_target_imports_and_an_import_holds_up_no_other_targets_tuning() -> None:
    two = [{"name": "a", "nodeSelector": {"g": "a"}}, {"name": "b", "nodeSelector": {"g": "b"}}]
    plan = decide(observed(asking(targets=two)), NOW)
    assert [one["metadata"]["labels"][names.ROLE] for one in made(plan)] == ["import", "import"]


def test_an_import_of_one_target_does_not_keep_another_from_being_tuned() -> None:
    two = [{"name": "a", "nodeSelector": {"g": "a"}}, {"name": "b", "nodeSelector": {"g": "b"}}]
    second = ids(asking(targets=two))[1]
    known = bundle_json(second, names.PENDING, attempts=0, **noted("ImportRefused"))
    plan = decide(observed(asking(status=status_of(known), targets=two)), NOW)
    assert sorted(one["metadata"]["labels"][names.ROLE] for one in made(plan)) == [
        "import",
        "tuning",
    ]


# --- what became of it


def settled(
    pod: AttemptPod | None, the_job: Object | None = None, now: float = NOW, **more: Any
) -> Plan:
    the_cache = asking()
    job = the_job or import_of(the_cache)
    pods = () if pod is None else (pod,)
    return decide(observed(with_record(the_cache), jobs=(job,), pods=pods, **more), now)


JOB = import_of(asking())
IMPORTER = Importer(JOB)


def test_a_success_is_a_sealed_bundle_like_any_other() -> None:
    plan = settled(
        IMPORTER.ended(IMPORT_CONTAINER, report=report(), imageID="docker-pullable://vllm@sha256:9")
    )
    one = of(plan)
    assert (one["state"], one["layout"], one["entries"], one["digest"]) == (
        "Sealed",
        "Managed",
        20,
        "sha256:1",
    )
    assert (one["tunedSeconds"], one["engineImage"], one["attempts"]) == (0, "vllm@sha256:9", 0)
    assert one["import"] == {
        "from": FROM,
        "reason": "Sealed",
        "message": "20 entries in a managed store",
    }
    assert [each.name for each in plan.after if isinstance(each, Delete)] == [
        f"delete Job {JOB['metadata']['name']}"
    ]
    assert made(plan) == [] and "coldSeconds" not in one


def test_a_job_whose_outcome_is_in_the_status_is_removed_and_not_read_again() -> None:
    first = settled(IMPORTER.ended(IMPORT_CONTAINER, report=report()))
    other = IMPORTER.ended(IMPORT_CONTAINER, report=report(message="other words"))
    again = decide(observed(asking(status=first.status), jobs=(JOB,), pods=(other,)), NOW)
    assert action_names(again.after, Delete) == [f"delete Job {JOB['metadata']['name']}"]
    assert of(again)["message"] == "20 entries in a managed store"


def test_a_deleted_caches_job_of_the_same_name_is_not_in_the_way() -> None:
    one, other = cache(), cache()
    other["metadata"]["uid"] = "another"
    assert (
        len({job_for(each, serving_template())["metadata"]["name"] for each in (one, other)}) == 2
    )


def test_with_verify_it_is_proven_like_any_other() -> None:
    the_cache = asking(verify="BeforeRelease")
    job = import_of(the_cache)
    the_cache["status"] = status_of(pending(the_cache))
    pod = Importer(job).ended(IMPORT_CONTAINER, report=report())
    assert of(decide(observed(the_cache, jobs=(job,), pods=(pod,)), NOW))["state"] == names.PROVING


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        (
            IMPORTER.ended(IMPORT_CONTAINER, 1, report("ImportRefused", "of GPU NVIDIA H200, and the target's is NVIDIA-B200")),
            "ImportRefused",
            "of GPU NVIDIA H200",
        ),
        (IMPORTER.ended(IMPORT_CONTAINER, 1, report("NoSpace", "enlarge the claim")), "NoSpace", "enlarge the claim"),
        (IMPORTER.ended(IMPORT_CONTAINER, 1, message="Killed"), "ImportRefused", "left no report: exit code 1: Killed"),
        (IMPORTER.waiting(IMPORT_CONTAINER, "ImagePullBackOff", "no such tag"), "ImportRefused", "ImagePullFailed: container"),
        (
            IMPORTER.but(status={"phase": "Failed", "reason": "DeadlineExceeded", "message": "too long"}),
            "ImportRefused",
            "DeadlineExceeded: too long",
        ),
        (None, "ImportRefused", "ReportLost: "),
    ],
)  # fmt: skip
def test_a_refusal_is_noted_and_told_once_and_the_bundle_tuned_at_once(
    pod: AttemptPod | None, reason: str, words: str
) -> None:
    plan = settled(pod, import_of(asking()).failed())
    said = of(plan)["import"]
    assert (said["from"], said["reason"]) == (FROM, reason) and words in said["message"]
    assert [one["metadata"]["labels"][names.ROLE] for one in made(plan)] == ["tuning"]
    [event] = [one for one in plan.events if one.reason == "ImportRefused"]
    assert event.warning and words in event.message and "tuned as usual" in event.message
    again = decide(observed(asking(status=plan.status), jobs=(import_of(asking()).failed(),)), NOW)
    assert [one["metadata"]["labels"][names.ROLE] for one in made(again)] == ["tuning"]
    assert not [one for one in again.events if one.reason == "ImportRefused"]


UNPLACED = IMPORTER.but(nodeName="").condition(
    "PodScheduled",
    "False",
    reason="Unschedulable",
    message='persistentvolumeclaim "home" not found',
)


@pytest.mark.parametrize(
    ("pod", "age", "over", "words"),
    [
        (UNPLACED, 60, False, 'persistentvolumeclaim "home" not found'),
        (UNPLACED, 119, False, 'persistentvolumeclaim "home" not found'),
        (
            UNPLACED,
            120,
            True,
            'its pod has no node after 120 s: persistentvolumeclaim "home" not found',
        ),
        (None, 60, False, "the Job is created"),
        (None, 120, True, "its pod has no node after 120 s"),
        (IMPORTER.condition("PodScheduled"), 300, False, "node0 pulls images, mounts volumes"),
        (
            IMPORTER.condition("PodScheduled"),
            720,
            True,
            "has not started after 720 s; the events of pod pod say why",
        ),
        (IMPORTER.running(IMPORT_CONTAINER), 800, False, "the folder is checked since"),
        (
            IMPORTER.running(IMPORT_CONTAINER),
            120 + 600 + IMPORT_DEADLINE_SECONDS,
            True,
            "it did not end within 1620 s",
        ),
        (
            IMPORTER.condition("DisruptionTarget", message="evicted"),
            300,
            False,
            "was disrupted (evicted)",
        ),
    ],
)
def test_it_is_waited_for_and_not_for_ever(
    pod: AttemptPod | None, age: float, over: bool, words: str
) -> None:
    plan = settled(pod, import_of(asking(), age=age))
    if over:
        assert words in of(plan)["import"]["message"]
        assert [one["metadata"]["labels"][names.ROLE] for one in made(plan)] == ["tuning"]
        assert action_names(plan.after, Delete)
    else:
        assert (
            of(plan)["reason"] == "Importing"
            and words in of(plan)["message"]
            and "import" not in of(plan)
        )
        assert FROM in of(plan)["message"] and made(plan) == [] and not plan.after
        assert plan.requeue_after is not None and plan.requeue_after <= 1620 - age


def test_what_keeps_its_pod_from_being_made_is_said_and_ends_it() -> None:
    events = {JOB["metadata"]["uid"]: ({"reason": "FailedCreate", "message": "exceeded quota"},)}
    assert "exceeded quota" in of(settled(None, job_events=events))["message"]
    assert (
        "exceeded quota"
        in of(settled(None, import_of(asking(), age=200), job_events=events))["import"]["message"]
    )


def test_a_report_counts_whatever_became_of_the_pod_after_it() -> None:
    pod = IMPORTER.ended(IMPORT_CONTAINER, report=report()).but(
        deletionTimestamp=format_timestamp(NOW - 5)
    )
    assert of(settled(pod, import_of(asking(), age=5000)))["state"] == "Sealed"


@pytest.mark.parametrize("value", ["", "other/folder"])
def test_an_import_that_nobody_asks_for_any_more_ends(value: str) -> None:
    old = import_of(asking())
    the_cache = with_record(asking())
    the_cache["metadata"]["annotations"] = {IMPORT: value} if value else {}
    plan = decide(observed(the_cache, jobs=(old,), pods=(IMPORTER.running(IMPORT_CONTAINER),)), NOW)
    assert action_names(plan.after, Delete) == [f"delete Job {old['metadata']['name']}"]
    assert [one["metadata"]["labels"][names.ROLE] for one in made(plan)] == [
        "import" if value else "tuning"
    ]


def test_another_value_is_another_try() -> None:
    the_cache = asking(
        "other/folder",
        status=status_of(
            {**pending(asking()), "import": {"from": FROM, "reason": "ImportRefused"}}
        ),
    )
    assert [
        one["metadata"]["labels"][names.ROLE] for one in made(decide(observed(the_cache), NOW))
    ] == ["import"]


def test_a_bundle_that_is_not_on_the_claim_any_more_is_imported_anew() -> None:
    the_cache = asking(status={"storage": {"claimUID": "another"}, "bundles": [
        bundle_json(ids(asking())[0], sealedAt=format_timestamp(NOW - 60), **noted("Sealed"))
    ]})  # fmt: skip
    plan = decide(observed(the_cache, claim=None), NOW)
    assert "import" not in of(plan)
    asked = decide(observed(asking(status={**KNOWN, "bundles": [of(plan)]})), NOW)
    assert [one["metadata"]["labels"][names.ROLE] for one in made(asked)] == ["import"]


def test_the_job_of_a_bundle_that_nobody_remembers_is_removed() -> None:
    the_cache = asking()
    stray = copy.deepcopy(JOB)
    stray["metadata"]["labels"][names.BUNDLE] = "0123456789ab-gone"
    assert f"delete Job {stray['metadata']['name']}" in action_names(
        decide(observed(the_cache, jobs=(stray,)), NOW).after, Delete
    )


def test_a_storage_that_was_changed_takes_its_import_along() -> None:
    the_cache = with_record(asking())
    the_cache["spec"]["storage"] = {"existingClaim": {"name": "shared"}}
    plan = decide(observed(the_cache, jobs=(JOB,), claim=claim(name="shared", uid="other")), NOW)
    assert f"delete Job {JOB['metadata']['name']}" in action_names(plan.after, Delete)


@pytest.mark.parametrize("reason", ["Sealed", "AlreadyImported"])
def test_one_folder_goes_into_one_engines_bundle_and_its_successors_are_tuned(reason: str) -> None:
    """The annotation outlives the engine that the folder is of."""
    older = bundle_json(
        "0123456789ab-default", sealedAt=format_timestamp(NOW - 999), **noted(reason)
    )
    plan = decide(observed(asking(status=status_of(older))), NOW)
    assert [one["metadata"]["labels"][names.ROLE] for one in made(plan)] == ["tuning"]
    new = of(plan, ids(asking())[0])
    assert new["import"]["reason"] == "AlreadyImported" and not [
        one for one in plan.events if one.warning
    ]
    other = bundle_json("0123456789ab-h200", sealedAt=format_timestamp(NOW - 999), **noted(reason))
    assert "import" in str(made(decide(observed(asking(status=status_of(other))), NOW))), (
        "another target's says nothing"
    )
    refused = {**older, "import": {"from": FROM, "reason": "ImportRefused"}}
    assert "import" in str(made(decide(observed(asking(status=status_of(refused))), NOW))), (
        "nor one that did not fit"
    )


# --- the Job


def test_the_devices_of_a_resource_claim_are_counted_as_for_an_attempt() -> None:
    """One GPU: counted as several, vLLM 0.27 to 0.31 would be refused (SharedLayout)."""
    the_template = serving_template()
    the_template["spec"]["containers"][0]["resources"] = {"claims": [{"name": "gpu"}]}
    the_template["spec"]["resourceClaims"] = [{"name": "gpu", "resourceClaimTemplateName": "one"}]
    one = {"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com", "count": 1}}
    claims = {"one": {"spec": {"spec": {"devices": {"requests": [one]}}}}}
    the_cache = asking(source={"template": the_template})
    [job] = made(decide(observed(the_cache, device_claims=claims), NOW))
    assert task_of(job).gpus == 1


def job_for(
    the_cache: Object,
    the_template: Object,
    source: str = FROM,
    target: spec.Target | None = None,
    **more: Any,
) -> Object:
    parts = source.partition("/")
    return build_import_job(
        KEY,
        the_cache,
        the_template,
        target or spec.Target(),
        source,
        (parts[0], parts[2]),
        SETTINGS,
        AGENT,
        **more,
    )


def task_of(job: Object) -> Task:
    [container] = job["spec"]["template"]["spec"]["containers"]
    value = next(one["value"] for one in container["env"] if one["name"] == "PRETUNE_TASK")
    return Task.load(value.replace("$$", "$"))


RICH = serving_template(
    command=["vllm"], securityContext={"runAsUser": 1000}, env=[{"name": "PATH", "value": "/opt"}]
)
RICH["spec"] |= {
    "securityContext": {"fsGroup": 1000},
    "imagePullSecrets": [{"name": "pull"}],
    "serviceAccountName": "serving",
    "nodeSelector": {"zone": "a"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "runtimeClassName": "nvidia",
    "initContainers": [{"name": "download", "image": "fetch:1"}],
}
H200 = spec.Target(
    "h200", {"nvidia.com/gpu.product": "NVIDIA-H200"}, ({"key": "h200", "operator": "Exists"},)
)


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("source", [FROM, "home", f"pretune-{KEY.name}/elsewhere"])
def test_the_api_knows_every_field_of_an_import_job(near: bool, source: str) -> None:
    kubernetes_validate.validate(
        job_for(cache(), RICH, source, H200, near=near), "1.34", strict=True
    )


def test_its_pod_is_the_engines_image_and_uid_with_both_claims_and_nothing_of_the_engine() -> None:
    job = job_for(cache(), RICH, target=H200)
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert (container["name"], container["image"]) == (
        IMPORT_CONTAINER,
        "vllm:1",
    ) and "initContainers" not in pod
    assert container["securityContext"]["runAsUser"] == 1000 and pod["securityContext"] == {
        "fsGroup": 1000
    }
    assert {one["name"]: one.get("persistentVolumeClaim") for one in pod["volumes"]} == {
        "pretune-claim": {"claimName": f"pretune-{KEY.name}"},
        "pretune-agent": None,
        "pretune-source": {"claimName": "home", "readOnly": True},
    }
    mounts = {one["mountPath"]: one for one in container["volumeMounts"]}
    assert mounts[SOURCE_MOUNT] == {
        "name": "pretune-source",
        "mountPath": SOURCE_MOUNT,
        "readOnly": True,
    }
    assert not mounts["/pretune/claim"].get("readOnly")
    assert not any(
        name.startswith("nvidia") for one in container["resources"].values() for name in one
    )
    assert (
        pod["restartPolicy"] == "Never" and pod["activeDeadlineSeconds"] == IMPORT_DEADLINE_SECONDS
    )
    assert "runtimeClassName" not in pod and pod["automountServiceAccountToken"] is False
    task = task_of(job)
    assert (task.source, task.gpus, task.command) == ("vllm/.cache", 1, ["vllm", "serve", "qwen3"])
    assert (
        task.inputs is not None
        and task.inputs.bundle_id() == job["metadata"]["labels"][names.BUNDLE]
    )


def test_a_folder_of_our_own_claim_is_one_volume_since_a_pod_with_two_of_a_claim_never_starts() -> (
    None
):
    pod = job_for(cache(), RICH, f"pretune-{KEY.name}/elsewhere")["spec"]["template"]["spec"]
    assert [one["name"] for one in pod["volumes"]] == ["pretune-claim", "pretune-agent"]
    assert {
        one["mountPath"]: bool(one.get("readOnly")) for one in pod["containers"][0]["volumeMounts"]
    } == {
        "/pretune/agent": True,
        "/pretune/claim": False,
        SOURCE_MOUNT: True,
    }


def test_it_may_run_anywhere_and_prefers_the_targets_nodes_unless_it_binds_our_claim() -> None:
    anywhere = job_for(cache(), RICH, target=H200)["spec"]["template"]["spec"]
    assert "nodeSelector" not in anywhere and len(anywhere["tolerations"]) == 2
    [term] = anywhere["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert [one["key"] for one in term["preference"]["matchExpressions"]] == [
        "nvidia.com/gpu.product",
        "zone",
    ]
    near = job_for(cache(), RICH, target=H200, near=True)["spec"]["template"]["spec"]
    assert near["nodeSelector"] == {"zone": "a", "nvidia.com/gpu.product": "NVIDIA-H200"}
    waits = observed(
        asking(),
        claim=claim("Pending"),
        storage_class={"volumeBindingMode": "WaitForFirstConsumer"},
    )
    assert "affinity" not in made(decide(waits, NOW))[0]["spec"]["template"]["spec"]


@given(st.text(max_size=40))
def test_a_value_names_a_claim_and_a_folder_in_it_or_is_refused(value: str) -> None:
    try:
        name, path = imports.source_of(value)
    except Refused as refused:
        assert refused.reason == "ImportRefused" and IMPORT in refused.message
    else:
        assert value in (name, f"{name}/{path}") and name and ".." not in path.split("/")
        kubernetes_validate.validate(
            job_for(cache(), serving_template(), value), "1.34", strict=True
        )


@given(
    st.sampled_from(["home", "models-0", "a.b"]),
    st.lists(st.sampled_from([".cache", "vllm", "x y", "ü", "a..b"]), max_size=4),
)
def test_any_folder_of_any_claim_can_be_named(name: str, path: list[str]) -> None:
    assert imports.source_of("/".join([name, *path])) == (name, "/".join(path))
