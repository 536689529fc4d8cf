"""AutotuneCaches, their claims, and the bundles in their status."""

from __future__ import annotations

from typing import Any

from pretune.api import names
from pretune.api.spec import Spec
from pretune.api.types import Object

from tests.builders.constants import FINGERPRINT, KEY
from tests.builders.templates import serving_template


def cache(status: Object | None = None, *, name: str = KEY.name, **spec: Any) -> Object:
    """Return an AutotuneCache, by default with our own claim and a template as its source."""
    return {
        "apiVersion": "pretune.dev/v1alpha1",
        "kind": "AutotuneCache",
        "metadata": {
            "namespace": KEY.namespace,
            "name": name,
            "uid": "cache-uid",
            "generation": 1,
            "resourceVersion": "1",
        },
        "spec": {"source": {"template": serving_template()}, "storage": {"claim": {}}, **spec},
        **({"status": status} if status else {}),
    }


def spec(**fields: Any) -> Spec:
    return Spec.from_cache(cache(**fields))


def claim(phase: str = "Bound", modes: tuple[str, ...] = ("ReadWriteMany",), **meta: Any) -> Object:
    """Return the cache's own claim. meta: of its metadata."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "namespace": KEY.namespace,
            "name": f"pretune-{KEY.name}",
            "uid": "claim-uid",
            "labels": {names.CACHE: KEY.name, names.ROLE: "claim"},
            "annotations": {names.WHEN_DELETED: "Delete", names.SIZE: "1Gi"},
            **meta,
        },
        "spec": {"accessModes": list(modes), "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": phase},
    }


def bundle_json(bundle_id: str, state: str = names.SEALED, **fields: Any) -> Object:
    """Return an entry of status.bundles[], with the reason that goes with its state."""
    return {
        "id": bundle_id,
        "fingerprint": FINGERPRINT,
        "target": bundle_id.partition("-")[2],
        "state": state,
        "attempts": 1,
        "reason": {"Sealed": "Sealed", "Retired": "Unwanted"}.get(state, "Tuning"),
        "message": "",
        **fields,
    }
