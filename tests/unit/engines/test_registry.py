"""What holds for every engine and every part that is registered, those of the tests included."""

from __future__ import annotations

import re

import pytest
from pretune import protocol
from pretune.engines import registry
from pretune.engines.vllm.engine import VLLM
from pretune.protocol import LAYOUTS, Versions

from tests.seams.added import KERNELS, TOY
from tests.seams.fixtures import added

__all__ = ["added"]

MOUNTS = (protocol.CLAIM_MOUNT, protocol.AGENT_MOUNT, protocol.SOURCE_MOUNT)


def check_laws() -> None:
    engines, parts = registry.ENGINES, registry.all_parts()
    assert len({engine.name for engine in engines}) == len(engines)
    for engine in engines:
        assert registry.find_engine(engine.name) is engine and engine.title and engine.parts
        assert {field for field, _, _ in engine.distributions} <= set(vars(Versions()))
    for what in ("name", "variable", "mount", "volume"):
        assert len({getattr(part, what) for part in parts}) == len(parts), what
    for part in parts:
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?", part.name), "a DNS label"
        assert part.mount not in MOUNTS and part.volume not in ("pretune-claim", "pretune-agent")
        assert {*part.read_only} <= {*part.read_only_if_asked} <= {*LAYOUTS}


def test_names_variables_and_folders_are_each_parts_own() -> None:
    check_laws()


@pytest.mark.usefixtures("added")
def test_those_of_the_tests_fit_in() -> None:
    assert registry.all_parts() == (*VLLM.parts, *TOY.parts) and KERNELS in VLLM.parts
    check_laws()


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["vllm", "serve", "m"], "vllm"),
        (["/opt/venv/bin/vllm", "serve", "m"], "vllm"),
        (["sh", "-c", "sleep 1; exec vllm serve m"], "vllm"),
        (["toy-server"], "toy"),
        (["bash", "-lc", "cd /; (exec toy-server\n)"], "toy"),
        (["sh", "-c", "echo toy-server-old; cat /etc/toy-server.conf"], "vllm"),
        (["sh", "-x", "toy-server.sh"], "vllm"),
        (["vllm", "serve", "--chat-template", "of toy-server"], "vllm"),
        (["sh", "-c", "exec /opt/toy-server --model m"], "toy"),
        (["python3", "-m", "my.own.server"], "vllm"),
        ([], "vllm"),
    ],
)
def test_an_engine_is_recognised_by_its_command_and_vllm_is_what_none_recognises(
    words: list[str], name: str
) -> None:
    assert registry.recognise("registry/image:1", words).name == name


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="no engine 'tgi': this release knows \\['vllm'\\]"):
        registry.find_engine("tgi")
