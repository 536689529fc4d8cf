"""Which releases of vLLM persist tactics."""

from __future__ import annotations

import pytest
from pretune.api.reasons import REASONS
from pretune.engines.vllm import releases


@pytest.mark.parametrize(
    ("version", "gpus", "reason"),
    [
        ("0.21.0", 1, "ReleaseTooOld"),
        ("0.22.0", 1, "ReleaseTooOld"),
        ("0.24.0", 8, "ReleaseTooOld"),
        ("0.25.1", 1, ""),
        ("0.26.0", 1, ""),
        ("0.26.0", 2, "ReleaseTooOld"),
        ("0.27.0", 1, ""),
        ("0.27.0", 2, "SharedLayout"),
        ("0.31.0rc1.dev3+g1a2b", 8, "SharedLayout"),
        ("0.31.0", 0, ""),
        ("0.32.0", 8, ""),
        ("0.33.0+cu130", 8, ""),
        ("1.0.0", 8, ""),
        ("", 8, ""),
        ("0.1.dev1+g5f3a", 8, ""),
        ("dev", 8, ""),
    ],
)
def test_a_release_is_refused_by_version_and_number_of_gpus(
    version: str, gpus: int, reason: str
) -> None:
    found, message = releases.check_release(version, gpus)
    assert found == reason
    if reason:
        assert version in message and reason in REASONS
    elif not version.startswith(("0.2", "0.3", "1.")):
        assert "version" in message
