"""The agent's file: the same files make the same bytes, and a plain python3 runs it."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pretune
from pretune.manifests import agent_archive
from pretune.protocol import Inputs

ROOT = Path(pretune.__file__).parent


def test_the_name_is_that_of_the_content() -> None:
    digest = hashlib.sha256(agent_archive.build_agent_archive()).hexdigest()
    assert agent_archive.agent_name() == f"pretune-agent-{digest[:12]}"


def test_the_same_files_make_the_same_bytes_whatever_their_dates_and_modes(
    tmp_path: Path, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    copied = tmp_path / "pretune"
    for file in ROOT.rglob("*.py"):
        target = copied / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
        target.chmod(0o600)
    monkeypatch.setattr(pretune, "__file__", str(copied / "__init__.py"))
    build = agent_archive.build_agent_archive.__wrapped__
    assert build() == agent_archive.build_agent_archive()
    (copied / "protocol.py").write_bytes((ROOT / "protocol.py").read_bytes() + b"\n# changed\n")
    assert build() != agent_archive.build_agent_archive()


def test_it_holds_the_agent_and_what_it_imports_and_nothing_of_the_controller() -> None:
    ours = {
        f"pretune/{file.relative_to(ROOT).as_posix()}"
        for part in ("agent", "engines")
        for file in (ROOT / part).rglob("*.py")
        if file.name
        not in (
            "log.py",
            "logs.py",
            "failure_log.py",
        )  # the controller reads logs: a change there is no other agent
    }
    assert (
        dict(agent_archive.read_files()).keys()
        == {
            "pretune/__init__.py",
            "pretune/api/__init__.py",
            "pretune/api/reasons.py",
            "pretune/protocol.py",
        }
        | ours
    )


def test_it_fits_a_config_map_with_room() -> None:
    assert (
        len(agent_archive.build_agent_config_map("inference")["binaryData"]["agent.py"])
        < 512 * 1024
    )  # of 1 MiB


def test_a_plain_python_runs_it_from_memory_with_the_lines_of_its_files_in_tracebacks(
    tmp_path: Path,
) -> None:
    content = agent_archive.build_agent_archive()
    code = f"""
import sys, traceback
exec(compile(sys.stdin.buffer.read({len(content)}), "agent.py", "exec"), {{"__name__": "agent"}})
"""
    check = """
import pretune.protocol as protocol
print(protocol.Inputs("f", "", "t", {}).bundle_id())
try:
    protocol.Task.load("[]")
except ValueError:
    traceback.print_exc()
"""
    # Its end runs the agent's main, with another program's arguments: usage, and exit code 2.
    text = code.replace("exec(", "try:\n    exec(").rstrip() + "\nexcept SystemExit:\n    pass\n"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", text + check],
        input=content,
        capture_output=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.decode().strip() == Inputs("f", "", "t", {}).bundle_id()
    errors = done.stderr.decode()
    assert "usage: agent.py" in errors
    assert 'File "pretune/protocol.py", line' in errors and "raise " in errors


def test_the_config_map_is_immutable_without_owner_and_holds_the_agent() -> None:
    made = agent_archive.build_agent_config_map("inference")
    kubernetes_validate.validate(made, "1.34", strict=True)
    assert made["immutable"] is True
    assert made["metadata"] == {
        "name": agent_archive.agent_name(),
        "namespace": "inference",
        "labels": {"pretune.dev/role": "agent"},
    }
    assert base64.b64decode(made["binaryData"]["agent.py"]) == agent_archive.build_agent_archive()


def test_another_content_is_not_the_agent() -> None:
    config_map = agent_archive.build_agent_config_map("inference")
    assert agent_archive.is_agent(config_map)
    other = base64.b64encode(agent_archive.build_agent_archive() + b"#").decode()
    for data in ({"agent.py": other}, {"agent.py": ""}, {}, None):
        assert not agent_archive.is_agent({**config_map, "binaryData": data})
