"""The package with the tests' part and engine added: for an agent's zip and an operator's image."""

from __future__ import annotations

import shutil
from pathlib import Path

import pretune

PACKAGE = Path(pretune.__file__).parent

# What a person would change in the registry, and in vLLM's parts; but that only a vLLM which names the
# variable has the part: on a cluster the bundles of other tests' engines stay what they are.
_REGISTERED = b"""
from pretune.engines.added import KERNELS, TOY


class _WithKernels(type(VLLM)):
    name = "vllm-kernels"
    parts = (*VLLM.parts, KERNELS)

    def recognises(self, image, words):
        return any(KERNELS.variable in word for word in words)


ENGINES = (_WithKernels(), *ENGINES, TOY)
"""


def overlay() -> dict[str, bytes]:
    """Return the files that differ, by their path in the package."""
    return {
        "engines/added.py": (Path(__file__).parent / "added.py").read_bytes(),
        "engines/registry.py": (PACKAGE / "engines/registry.py").read_bytes() + _REGISTERED,
    }


def copy_package(target: Path) -> Path:
    """Copy the package with the overlay into a folder; return the copy's path."""
    package = target / "pretune"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    for path, content in overlay().items():
        (package / path).write_bytes(content)
    return package
