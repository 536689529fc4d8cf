"""The seed container's script in real shells: on any error it exits 0 and the folder is empty."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pretune.agent import seed
from pretune.manifests.agent_archive import agent_digest, build_agent_archive
from pretune.manifests.agent_container import build_script
from pretune.protocol import TASK_VARIABLE, Report

from tests.builders.agent_pod import (
    INPUTS,
    KEY,
    AgentPod,
    managed_store,
    rank_file,
    rank_files,
    read_tree,
)
from tests.unit.agent.conftest import needs_root
from tests.unit.agent.image import build_image
from tests.unit.agent.processes import as_uid, run_process

SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]
PYTHONS = str(
    Path(os.path.realpath(sys.executable)).parent
)  # its folder: on PATH python3 is this one
TOOLS = "/usr/bin:/bin"


def start_script(
    pod: AgentPod,
    *before: str,
    shell: str = "dash",
    path: str | None = None,
    limit: float = 45,
    with_agent: bool = True,
    expected: str | None = None,
    **task: object,
) -> subprocess.Popen[str]:
    root = pod.claim.parent
    file, log = root / "agent.py", root / "log"
    if with_agent and not file.exists():
        file.write_bytes(build_agent_archive())
        file.chmod(0o444)
    log.touch()
    log.chmod(0o666)
    options = (
        f"--claim {pod.claim} --parts {pod.claim.parent} --termination-log {log} --limit {limit}"
    )
    text = build_script("seed", ("/pretune/tactics",)).replace(" seed &", f" seed {options} &")
    if expected is not None:
        text = text.replace(agent_digest(), hashlib.sha256(expected.encode()).hexdigest())
    for place, here in (
        ("/pretune/agent/agent.py", file),
        ("/pretune/tactics/", f"{pod.tactics}/"),
        ("/dev/termination-log", log),
    ):
        assert place in text
        text = text.replace(place, str(here))
    command = [shutil.which(shell) or shell, *(["sh"] if shell == "busybox" else []), "-c", text]
    whole = pod.context(**task).task  # type: ignore[arg-type]
    return subprocess.Popen(
        [*before, *command],
        env={TASK_VARIABLE: whole.dump(), "PATH": f"{PYTHONS}:{TOOLS}" if path is None else path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_script(pod: AgentPod, *before: str, **how: object) -> tuple[int, Report, str]:
    process = start_script(pod, *before, **how)  # type: ignore[arg-type]
    output, _ = process.communicate(timeout=60)
    report = Report.load((pod.claim.parent / "log").read_text())
    assert report is not None, output
    return process.returncode, report, output


def fake_agent(pod: AgentPod, text: str) -> str:
    """Write an agent that does half of its work and then runs this code; return its text."""
    half = pod.tactics / "half"
    paths = [
        str(half / ".hidden"),
        *(f"{pod.tactics}/{name}" for name in (".a", "..b", "c d", "-rf")),
    ]
    lines = [
        "import os, signal, sys, time",
        f"os.makedirs({str(half)!r})",
        f"[open(path, 'w').close() for path in {paths!r}]",
        text,
    ]
    agent = "\n".join(lines) + "\n"
    (pod.claim.parent / "agent.py").write_text(agent)
    return agent


@pytest.mark.parametrize("shell", SHELLS)
def test_a_bundle_is_seeded_through_any_shell(pod: AgentPod, shell: str) -> None:
    pod.seal(managed_store(30))
    pod.write_tactics({"left/over": b"x"})
    code, report, output = run_script(pod, shell=shell)
    assert (code, report.reason, report.id) == (0, "Seeded", INPUTS.bundle_id()), output
    assert read_tree(pod.tactics) == read_tree(pod.bundle() / "tactics")


BROKEN = [
    ("raise SystemExit(1)", "the agent ended with status 1 and no report"),
    ("import no_such_module", "the agent ended with status 1 and no report"),
    ("os.kill(os.getpid(), signal.SIGKILL)", "the agent ended with status 137 and no report"),
    ("os.abort()", "the agent ended with status 134 and no report"),
    ("this is no Python", "the agent ended with status 1 and no report"),
]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(("text", "message"), BROKEN, ids=[text for text, _ in BROKEN])
def test_an_agent_that_fails_in_the_middle_leaves_an_empty_folder_and_exit_code_0(
    pod: AgentPod, shell: str, text: str, message: str
) -> None:
    agent = fake_agent(pod, text)
    code, report, output = run_script(pod, shell=shell, expected=agent)
    assert (code, report.reason) == (0, "SeedFailed"), output
    assert report.message.startswith(message)
    assert read_tree(pod.tactics) == {}


@pytest.mark.parametrize("shell", SHELLS)
def test_an_image_without_python_starts_cold(pod: AgentPod, tmp_path: Path, shell: str) -> None:
    pod.seal(rank_files(1))
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "rm").symlink_to(shutil.which("rm") or "rm")
    code, report, output = run_script(pod, shell=shell, path=str(bare))
    assert (code, report.reason) == (0, "NoPython"), output
    assert report.message == "the image has no python3 on its PATH"
    assert read_tree(pod.tactics) == {}


def test_an_image_with_an_old_python_starts_cold(pod: AgentPod, tmp_path: Path) -> None:
    old = tmp_path / "bin"
    old.mkdir()
    (old / "python3").write_text("#!/bin/sh\nexit 1\n")
    (old / "python3").chmod(0o755)
    code, report, _ = run_script(pod, path=f"{old}:{TOOLS}")
    assert (code, report.reason, report.message) == (
        0,
        "NoPython",
        "python3 in the image is older than 3.8",
    )


def test_a_config_map_that_was_missing_is_reported(pod: AgentPod) -> None:
    pod.seal(rank_files(1))
    code, report, _ = run_script(pod, with_agent=False)
    assert (code, report.reason) == (0, "AgentMissing")
    assert "ConfigMap" in report.message
    assert read_tree(pod.tactics) == {}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("by_hand", [True, False], ids=["another program", "a byte more"])
def test_an_agent_that_something_else_wrote_does_not_run(
    pod: AgentPod, shell: str, by_hand: bool
) -> None:
    pod.seal(rank_files(1))
    pod.write_tactics({"left/over": b"x"})
    if by_hand:
        fake_agent(pod, "")
    else:
        (pod.claim.parent / "agent.py").write_bytes(build_agent_archive() + b"\n")
    code, report, output = run_script(pod, shell=shell)
    assert (code, report.by, report.reason) == (0, "seed", "AgentChanged"), output
    assert "ConfigMap" in report.message
    assert read_tree(pod.tactics) == {}


@needs_root
def test_term_ends_it_at_once_as_the_first_process_of_its_container(pod: AgentPod) -> None:
    """A pod deleted while it is seeded must not wait for its whole grace period.

    Process 1 ignores signals that it does not handle.
    """
    agent = fake_agent(pod, "time.sleep(60)")
    unshare = ("unshare", "--pid", "--fork", "--kill-child")
    process = start_script(pod, *unshare, expected=agent)
    while not list(pod.tactics.iterdir()):
        time.sleep(0.01)
    inner = Path(
        f"/proc/{process.pid}/task/{process.pid}/children"
    ).read_text()  # of unshare: the shell
    os.kill(int(inner), signal.SIGTERM)
    began = time.monotonic()
    process.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert process.returncode == 0


@needs_root
@pytest.mark.parametrize("uid", [0, 1000])
def test_a_read_only_claim_is_enough_for_any_uid(
    open_pod: AgentPod, mount: Callable[..., None], uid: int
) -> None:
    pod = open_pod.write_tactics(managed_store(30))
    assert run_process(pod, "seal")[1].reason == "Sealed"
    pod.write_tactics({})
    pod.tactics.chmod(0o777)
    mount("--bind", str(pod.claim), str(pod.claim))
    mount("-o", "remount,ro,bind", str(pod.claim))
    code, report, output = run_script(pod, *(as_uid(uid) if uid else ()))
    assert (code, report.reason) == (0, "Seeded"), output
    assert read_tree(pod.tactics) == read_tree(pod.bundle() / "tactics")
    assert {path.stat().st_uid for path in pod.tactics.rglob("*")} == {uid}


@needs_root
def test_a_full_folder_is_emptied_and_reported(
    open_pod: AgentPod, mount: Callable[..., None]
) -> None:
    pod = open_pod.write_tactics(
        {f"{KEY}/autotune_configs_dp0_rank{rank}.json": rank_file(500) for rank in range(4)}
    )
    assert run_process(pod, "seal", gpus=4)[1].reason == "Sealed"
    mount("-t", "tmpfs", "-o", "size=64k,mode=0777", "none", str(pod.tactics))
    code, report, output = run_script(pod, *as_uid(1000), gpus=4)
    assert (code, report.reason) == (0, "NoSpace"), output
    assert read_tree(pod.tactics) == {}


def test_other_versions_in_the_image_start_cold(pod: AgentPod, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    pod.seal(rank_files(1), command=build_image(tmp_path / "a", "0.33.0", "0.7.2"))
    pod.write_tactics({})
    code, report, _ = run_script(pod, command=build_image(tmp_path / "b", "0.33.1", "0.7.2"))
    assert (code, report.reason) == (0, "VersionsDiffer") and "0.33.1" in report.message
    assert read_tree(pod.tactics) == {}


@pytest.fixture
def dead(open_pod: AgentPod) -> Iterator[AgentPod]:
    """A claim whose server does not answer: a FUSE file system whose other end reads nothing."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no /dev/fuse")
    libc = ctypes.CDLL(None, use_errno=True)
    server = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0,allow_other"
    at = str(open_pod.claim).encode()
    assert libc.mount(b"dead", at, b"fuse", 0, options.encode()) == 0, os.strerror(
        ctypes.get_errno()
    )
    yield open_pod
    os.close(server)  # calls that wait get ENOTCONN
    libc.umount2(at, 2)


@needs_root
@pytest.mark.parametrize("uid", [0, 1000])
def test_a_claim_that_does_not_answer_is_not_waited_for(dead: AgentPod, uid: int) -> None:
    pod = dead
    (pod.tactics / "left").mkdir()
    (pod.tactics / "left").chmod(0o777)
    began = time.monotonic()
    code, report, output = run_script(pod, *(as_uid(uid) if uid else ()), limit=0.5)
    assert (code, report.reason, report.message) == (
        0,
        "TooSlow",
        "the claim did not answer within 0 s",
    ), output
    assert time.monotonic() - began < 0.5 + seed.STOP_SECONDS + 2
    assert read_tree(pod.tactics) == {}


MEASURED = """import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print("KiB:", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def test_memory_does_not_grow_with_the_bundle(pod: AgentPod) -> None:
    """Seed shares the engine's limits. Of 128 MiB in files it holds some blocks at a time."""
    big = b'{"key": "k", "runner": "r", "tactic": 1}'.ljust(8 << 20)
    pod.seal({path: big if "entries" in path else raw for path, raw in managed_store(16).items()})
    pod.write_tactics({})
    _, report, output = run_script(
        pod, sys.executable, "-I", "-S", "-c", MEASURED
    )  # a process of its own: ours is large
    assert report.reason == "Seeded"
    assert int(output.split("KiB:")[1]) < 32 * 1024, output
