"""The chart through a real Helm, without a cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/pretune"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
BUILT = Path(os.environ.get("PRETUNE_BUILD") or CACHE / "pretune") / "bin/helm"
NAMESPACE = "pretune-system"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, ten times as fast
IMAGE = {"image": {"repository": "registry.test/pretune/operator"}}

Object = dict[str, Any]
Helm = Callable[..., subprocess.CompletedProcess[str]]
Render = Callable[..., list[Object]]


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Run Helm with these arguments; `values` are added to the least that the chart needs."""
    program = str(BUILT) if BUILT.exists() else shutil.which("helm")
    if program is None:
        pytest.skip("helm is missing: `make clients` downloads it")

    def run(*words: str, values: Object | None = None) -> subprocess.CompletedProcess[str]:
        given = json.dumps({**IMAGE, **(values or {})})
        return subprocess.run(
            [program, *words, "--values", "-"], input=given, capture_output=True, text=True
        )

    return run


@pytest.fixture(scope="session")
def render(helm: Helm) -> Render:
    """Return the documents that the chart renders, in Helm's order. Each rendering is done once."""
    known: dict[str, list[Object]] = {}

    def do(values: Object | None = None, release: str = "pretune") -> list[Object]:
        key = json.dumps([values, release], sort_keys=True)
        if key not in known:
            done = helm("template", release, str(CHART), "--namespace", NAMESPACE, values=values)
            assert done.returncode == 0, done.stderr
            known[key] = [document for document in yaml.load_all(done.stdout, LOADER) if document]
        return known[key]

    return do


def only(documents: list[Object], kind: str, name: str = "") -> Object:
    """Return the only document of that kind (and name)."""
    (found,) = [
        document
        for document in documents
        if document["kind"] == kind and name in ("", document["metadata"]["name"])
    ]
    return found
