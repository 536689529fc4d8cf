"""The cache's own claim. Pure."""

from __future__ import annotations

from pretune.api.names import CACHE, ROLE, SIZE, WHEN_DELETED
from pretune.api.spec import Spec, claim_name
from pretune.api.types import Key, Object


def build_claim(key: Key, spec: Spec) -> Object:
    """The PersistentVolumeClaim `pretune-<cache>`, for a spec without existingClaim.

    No owner: a claim that is being deleted blocks pods that were not yet scheduled, so the controller removes it, and only when no
    pod names it. An annotation says whether, since the cache is gone by then.
    """
    made: Object = {
        "accessModes": [spec.claim.access_mode],
        "resources": {"requests": {"storage": str(spec.claim.size)}},
    }
    if spec.claim.storage_class is not None:  # "" is a choice too: no class
        made["storageClassName"] = spec.claim.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": claim_name(key.name, spec),
            "namespace": key.namespace,
            "labels": {CACHE: key.name, ROLE: "claim"},
            "annotations": {WHEN_DELETED: spec.claim.when_deleted, SIZE: str(spec.claim.size)},
        },
        "spec": made,
    }
