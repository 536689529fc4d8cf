"""JSON Patch as the API server applies it (RFC 6902)."""

from __future__ import annotations

from collections.abc import Sequence

import jsonpatch
from pretune.api.types import Object
from pretune.manifests.json_patch import Operation, copy_json


def patched(whole: Object, operations: Sequence[Operation]) -> Object:
    """Return a copy of the object with these operations applied to it."""
    patched_copy: Object = jsonpatch.apply_patch(
        copy_json(whole), copy_json(list(operations)), in_place=True
    )
    return patched_copy
