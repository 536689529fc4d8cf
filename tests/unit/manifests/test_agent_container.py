"""The agent's containers in the pod of an attempt: check and seal."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pretune.api.reasons import REASONS
from pretune.api.types import Object
from pretune.manifests.agent_archive import agent_digest
from pretune.manifests.agent_container import build_script
from pretune.podspec import identity
from pretune.podspec.template import count_gpus
from pretune.protocol import Report

from tests.builders.caches import spec
from tests.builders.constants import AGENT, DEFAULT
from tests.builders.strategies import law, templates
from tests.builders.templates import engine
from tests.builders.tuning_jobs import check_in, engine_in, env_of, seal_in, task_of, tuned, volume


@law(templates())
def test_only_the_engine_keeps_its_gpus(pod: Object) -> None:
    job = tuned(pod)
    for container in (check_in(job), seal_in(job)):
        assert count_gpus(container) == 0
        assert env_of(container)["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert (
        count_gpus(engine_in(job))
        == count_gpus(pod["spec"]["containers"][0])
        == task_of(seal_in(job)).gpus
    )


@law(templates())
def test_check_copies_the_engines_resources_so_that_no_quota_counts_it(pod: Object) -> None:
    own, copied = engine_in(tuned(pod)).get("resources", {}), check_in(tuned(pod))["resources"]
    named = ("cpu", "memory", "ephemeral-storage")
    for kind in ("limits", "requests"):
        wanted = {name: own[kind][name] for name in named if name in own.get(kind, {})}
        assert copied.get(kind, {}) == wanted


@pytest.mark.parametrize(
    ("limits", "requests", "cpu"),
    [
        ({}, {}, "100m"),
        ({"cpu": "8", "memory": "64Gi"}, {"cpu": "4", "memory": "64Gi"}, "100m"),
        ({"memory": "64Gi"}, {"cpu": "8", "memory": "64Gi"}, "100m"),
        ({"cpu": "8", "memory": "64Gi"}, {"cpu": "8", "memory": "64Gi"}, "500m"),
        ({"cpu": "8", "memory": "64Gi"}, {}, "500m"),
        ({"cpu": "4", "memory": "64Gi"}, {"cpu": 4, "memory": "65536Mi"}, "500m"),
        ({"cpu": "4", "memory": "64Gi"}, {"cpu": "4000m", "memory": "64Gi"}, "500m"),
        ({"cpu": "four", "memory": "64Gi"}, {"cpu": "four", "memory": "64Gi"}, "100m"),
    ],
)
def test_seal_requests_little_but_its_whole_limit_where_the_engine_is_guaranteed(
    limits: Object, requests: Object, cpu: str
) -> None:
    resources = seal_in(tuned(engine(resources={"limits": limits, "requests": requests})))
    assert resources["resources"] == {
        "limits": {"cpu": "500m", "memory": "256Mi"},
        "requests": {"cpu": cpu, "memory": "256Mi"},
    }


def test_in_a_pod_with_resources_our_containers_have_none_since_they_could_exceed_them() -> None:
    job = tuned(
        engine(resources={"limits": {"cpu": 1}}).pod(
            resources={"limits": {"cpu": 1, "memory": "1Gi"}}
        )
    )
    assert check_in(job)["resources"] == seal_in(job)["resources"] == {}


def test_the_mounts_of_each_container() -> None:
    pod = engine(volumeMounts=[{"name": "models", "mountPath": "/models"}]).pod(
        volumes=[{"name": "models", "emptyDir": {}}]
    )
    job = tuned(pod)
    agent, claim = (
        {"name": "pretune-agent", "mountPath": "/pretune/agent", "readOnly": True},
        {"name": "pretune-claim", "mountPath": "/pretune/claim"},
    )
    assert check_in(job)["volumeMounts"] == [agent, claim]
    assert seal_in(job)["volumeMounts"] == [
        agent,
        claim,
        {"name": "pretune-tactics", "mountPath": "/pretune/tactics", "readOnly": True},
    ]
    assert [mount["name"] for mount in engine_in(job)["volumeMounts"]] == [
        "models",
        "pretune-tactics",
    ]
    assert volume(job, "pretune-agent")["configMap"] == {"name": AGENT, "optional": True}
    assert volume(job, "pretune-claim")["persistentVolumeClaim"] == {"claimName": "pretune-qwen3"}
    assert volume(job, "pretune-tactics")["emptyDir"] == {}


def test_check_and_seal_run_in_the_engines_image_with_its_path() -> None:
    pod = engine(image="vllm@sha256:1", imagePullPolicy="Always")
    pod.env(
        UNUSED="1",
        VENV={"configMapKeyRef": {"name": "c", "key": "venv"}},
        BIN="$(VENV)/bin",
        PATH="$(BIN):/bin",
        HOME="/h",
    )
    for container in (check_in(tuned(pod)), seal_in(tuned(pod))):
        assert (container["image"], container["imagePullPolicy"]) == ("vllm@sha256:1", "Always")
        assert [variable["name"] for variable in container["env"]] == [
            "VENV", "BIN", "PATH", "PRETUNE_POD_UID", "PRETUNE_TASK", "NVIDIA_VISIBLE_DEVICES",
        ]  # fmt: skip


@law(templates())
def test_the_task_arrives_as_it_was_meant_whatever_dollars_the_engines_words_hold(
    pod: Object,
) -> None:
    served = pod["spec"]["containers"][0]
    for container in (check_in(tuned(pod)), seal_in(tuned(pod))):
        task = task_of(container)
        assert task.command == [*served.get("command", []), *served.get("args", [])]
        assert task.inputs == identity.inputs(pod, spec(engineContainer="vllm"), DEFAULT)
        assert task.cache == "inference.qwen3"


@pytest.mark.parametrize(
    ("own", "ours"),
    [
        (None, {"allowPrivilegeEscalation": False}),
        ({"privileged": True, "runAsUser": 0}, {"runAsUser": 0, "allowPrivilegeEscalation": False}),
        (
            {
                "runAsUser": 1000,
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
                "capabilities": {"drop": ["ALL"]},
                "allowPrivilegeEscalation": False,
            },
            {
                "runAsUser": 1000,
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
                "capabilities": {"drop": ["ALL"]},
                "allowPrivilegeEscalation": False,
            },
        ),
        (
            {
                "capabilities": {"add": ["IPC_LOCK", "SYS_ADMIN", "DAC_OVERRIDE"], "drop": ["ALL"]},
                "allowPrivilegeEscalation": True,
            },
            {
                "capabilities": {"add": ["DAC_OVERRIDE"], "drop": ["ALL"]},
                "allowPrivilegeEscalation": False,
            },
        ),
    ],
    ids=["none", "privileged", "restricted", "capabilities"],
)
def test_check_and_seal_read_and_write_as_the_engine_does_with_no_more_rights_than_that(
    own: Object | None, ours: Object
) -> None:
    job = tuned(engine(securityContext=own) if own else engine())
    assert check_in(job)["securityContext"] == seal_in(job)["securityContext"] == ours


# Asked for its version, or given the program that compares the agent.
FAKE = """#!/bin/sh
[ $# = 4 ] && exit {old}
shift 4
echo "$@" > {output}
"""


def run_script(tmp_path: Any, python: str | None, agent: bool = True) -> tuple[int, str, str]:
    """Run the shell script of check in tmp_path.

    Return its exit code, its termination message, and the arguments of python3.
    """
    text = build_script("check").replace("/dev/termination-log", str(tmp_path / "log"))
    text = text.replace("/pretune/agent/agent.py", str(tmp_path / "agent.py"))
    (tmp_path / "bin").mkdir()
    if python is not None:
        (tmp_path / "bin" / "python3").write_text(python)
        (tmp_path / "bin" / "python3").chmod(0o755)
    if agent:
        (tmp_path / "agent.py").touch()
    done = subprocess.run(
        ["/bin/sh", "-c", text],
        env={"PATH": str(tmp_path / "bin")},
        capture_output=True,
        check=False,
    )
    read = [
        (tmp_path / name).read_text() if (tmp_path / name).exists() else ""
        for name in ("log", "output")
    ]
    return done.returncode, read[0], read[1].strip()


@pytest.mark.parametrize(
    ("python", "agent", "reason"),
    [(None, True, "NoPython"), ("old", True, "NoPython"), ("new", False, "AgentMissing")],
)
def test_what_keeps_the_agent_from_running_is_reported_by_the_shell(
    tmp_path: Any, python: str | None, agent: bool, reason: str
) -> None:
    fake = FAKE.format(old=int(python == "old"), output=tmp_path / "output") if python else None
    code, log, output = run_script(tmp_path, fake, agent)
    report = Report.load(log)
    assert report is not None
    assert (code, report.by, report.reason, output) == (1, "check", reason, "")
    assert report.message
    assert reason in REASONS


def test_otherwise_the_shell_hands_over_to_the_agent(tmp_path: Any) -> None:
    code, log, output = run_script(tmp_path, FAKE.format(old=0, output=tmp_path / "output"))
    agent, digest, rest = output.split(" ", 2)
    _, log_file, verb = rest.rsplit(" ", 2)
    assert (code, log) == (0, "")
    assert (agent, digest) == (f"{tmp_path}/agent.py", agent_digest())
    assert (log_file, verb) == (f"{tmp_path}/log", "check")


def test_an_agent_that_something_else_wrote_does_not_run(tmp_path: Any) -> None:
    python = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
    code, log, _ = run_script(tmp_path, python)  # the file is empty
    report = Report.load(log)
    assert report is not None
    assert code != 0
    assert (report.by, report.reason) == ("check", "AgentChanged")


@pytest.mark.parametrize("verb", ["check", "seal"])
def test_the_kubelet_finds_nothing_to_replace_in_the_script(verb: str) -> None:
    assert "$(" not in build_script(verb)
    assert "$$" not in build_script(verb)
