"""The tests' part and engine, registered in this process."""

from __future__ import annotations

import pytest
from pretune.engines import registry
from pretune.engines.vllm.engine import VLLM

from tests.seams.added import KERNELS, TOY


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM has a second part, and there is a second engine."""
    monkeypatch.setattr(VLLM, "parts", (*VLLM.parts, KERNELS))
    monkeypatch.setattr(registry, "ENGINES", (VLLM, TOY))
