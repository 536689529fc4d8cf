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
    """Runs Helm with these words; `values` is laid over what the chart needs at least."""
    program = str(BUILT) if BUILT.exists() else shutil.which("helm")
    if program is None:
        pytest.skip("no Helm here: `make cluster` builds one")

    def run(*words: str, values: Object | None = None) -> subprocess.CompletedProcess[str]:
        given = json.dumps({**IMAGE, **(values or {})})
        return subprocess.run(
            [program, *words, "--values", "-"], input=given, capture_output=True, text=True
        )

    return run


@pytest.fixture(scope="session")
def render(helm: Helm) -> Render:
    """The documents that the chart makes of `values`, each kind in Helm's order. Each rendering is made once."""
    known: dict[str, list[Object]] = {}

    def do(values: Object | None = None, release: str = "pretune") -> list[Object]:
        key = json.dumps([values, release], sort_keys=True)
        if key not in known:
            done = helm("template", release, str(CHART), "--namespace", NAMESPACE, values=values)
            assert done.returncode == 0, done.stderr
            known[key] = [one for one in yaml.load_all(done.stdout, LOADER) if one]
        return known[key]

    return do


def only(documents: list[Object], kind: str, name: str = "") -> Object:
    """The one document of that kind (and name)."""
    (found,) = [
        one for one in documents if one["kind"] == kind and name in ("", one["metadata"]["name"])
    ]
    return found
