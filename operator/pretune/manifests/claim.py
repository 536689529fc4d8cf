"""The cache's own claim. Pure."""

from __future__ import annotations

from pretune.api.names import CACHE, ROLE, SIZE, WHEN_DELETED
from pretune.api.spec import Spec, claim_name
from pretune.api.types import Key, Object


def build_claim(key: Key, spec: Spec) -> Object:
    """Return the PersistentVolumeClaim `pretune-<cache>`, for a spec without existingClaim.

    It has no owner: while a claim is being deleted, pods that are not scheduled yet cannot start.
    So the controller deletes it, and only when no pod names it. An annotation says whether to
    delete it, since the cache is gone by then.
    """
    claim: Object = {
        "accessModes": [spec.claim.access_mode],
        "resources": {"requests": {"storage": str(spec.claim.size)}},
    }
    if spec.claim.storage_class is not None:  # "" is a choice too: no class
        claim["storageClassName"] = spec.claim.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": claim_name(key.name, spec),
            "namespace": key.namespace,
            "labels": {CACHE: key.name, ROLE: "claim"},
            "annotations": {WHEN_DELETED: spec.claim.when_deleted, SIZE: str(spec.claim.size)},
        },
        "spec": claim,
    }
