"""The agent's file in a process of its own, as any uid."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

from pretune.manifests.agent_archive import build_agent_archive
from pretune.protocol import POD_UID_VARIABLE, TASK_VARIABLE, Report

from tests.builders.agent_pod import AgentPod, serve_engine


def start_process(
    pod: AgentPod,
    verb: str,
    *before: str,
    python: str = sys.executable,
    uid: str = "pod-1",
    **task: object,
) -> subprocess.Popen[str]:
    """Start the agent's file; `before` are words before the interpreter, as of setpriv."""
    root = pod.claim.parent
    file = root / "agent.py"
    if not file.exists():
        file.write_bytes(build_agent_archive())
    file.chmod(0o444)
    log = root / "log"
    log.touch()
    log.chmod(0o666)
    task_text = replace(pod.context().task, **task).dump()  # type: ignore[arg-type]
    options = {
        "--claim": pod.claim,
        "--parts": root,
        "--source": root,
        "--proc": pod.proc,
        "--termination-log": log,
    }
    words = [str(word) for option in options.items() for word in option]
    return subprocess.Popen(
        [*before, python, "-I", "-S", str(file), verb, *words],
        env={TASK_VARIABLE: task_text, POD_UID_VARIABLE: uid, "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_process(
    pod: AgentPod, verb: str, *before: str, python: str = sys.executable, **task: object
) -> tuple[int, Report, str]:
    """Return exit code, report and output of the agent beside an engine that is ready."""
    with serve_engine(200) as (url, _):
        process = start_process(pod, verb, *before, python=python, **{"ready": url, **task})
        output, _ = process.communicate(timeout=60)
    report = Report.load((pod.claim.parent / "log").read_text())
    assert report is not None, output
    return process.returncode, report, output


def as_uid(uid: int, *groups: int) -> list[str]:
    """Return the words that run a command as this uid, with these groups."""
    kept = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    return ["setpriv", "--reuid", str(uid), "--regid", str(uid), *kept, "--no-new-privs"]


def run_as_uid(uid: int, act: Callable[[], Report]) -> Report:
    """Return the report of `act`, called in a child process with this uid and gid."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.write(write, act().dump().encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        report = Report.load(pipe.read())
    assert report is not None
    return report
