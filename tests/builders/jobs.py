"""Jobs of ours: `job("b-default", 2).failed("BackoffLimitExceeded")`."""

from __future__ import annotations

import copy
from typing import Any

from pretune.api import names
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.manifests.job import attempt_name

from tests.builders.caches import cache
from tests.builders.constants import FINGERPRINT, KEY, NOW


class Job(dict[str, Any]):
    """A Job. Each method returns a changed copy."""

    def owned_by(self, cache: Object) -> Job:
        job = copy.deepcopy(self)
        reference = {
            "kind": "AutotuneCache",
            "name": KEY.name,
            "uid": cache["metadata"]["uid"],
            "controller": True,
        }
        job["metadata"]["ownerReferences"] = [reference]
        return job

    def but_owned_by_nothing(self) -> Job:
        job = copy.deepcopy(self)
        job["metadata"]["ownerReferences"] = []
        return job

    def complete(self) -> Job:
        return self._ended("Complete", {})

    def failed(self, reason: str = "", message: str = "") -> Job:
        fields = {"reason": reason, "message": message}
        return self._ended("Failed", {name: value for name, value in fields.items() if value})

    def suspended(self, status: str = "True", since: float = NOW - 5) -> Job:
        """As the Job controller says it; "False": it was, and is resumed since then."""
        fields = {"lastTransitionTime": format_timestamp(since)}
        job = self._ended("Suspended", fields)
        job["status"]["conditions"][0]["status"] = status
        return job

    def _ended(self, kind: str, fields: Object) -> Job:
        job = copy.deepcopy(self)
        job["status"]["conditions"] = [{"type": kind, "status": "True", **fields}]
        return job


def job(
    bundle_id: str, number: int = 1, *, role: str = names.TUNING, uid: str = "", **spec: Any
) -> Job:
    """Return the Job of an attempt, or of what the role says, that has not ended."""
    name = f"{KEY.name}-{role}-{bundle_id}-{number}"
    if role in (names.TUNING, names.PROOF):
        prefix = "p" if role == names.PROOF else ""
        name = attempt_name(KEY.name, bundle_id, f"{prefix}{number}")
    plain = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "namespace": KEY.namespace,
            "name": name,
            "uid": uid or f"uid-{name}",
            "creationTimestamp": format_timestamp(NOW - 60),
            "labels": {
                names.CACHE: KEY.name,
                names.ROLE: role,
                names.BUNDLE: bundle_id,
                names.ATTEMPT: str(number),
            },
            "annotations": {names.FINGERPRINT: FINGERPRINT},
        },
        "spec": spec,
        "status": {"conditions": []},
    }
    return Job(plain).owned_by(cache())
