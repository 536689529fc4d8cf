"""What policies read of Kubernetes objects, and the references by which they act on them."""

from __future__ import annotations

import re

from pretune.api.names import (
    ATTEMPT,
    BUNDLE,
    FINGERPRINT,
    IMPORTING,
    PROOF,
    PRUNE,
    REQUEST_KEY,
    ROLE,
    TUNING,
)
from pretune.api.types import Object
from pretune.intake import ANNOTATION, parse_json
from pretune.podspec.workloads import controller_of
from pretune.policy.model import Action, Delete

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_BUNDLE = re.compile(r"[^-]+-.{1,20}")
MAX_BUNDLE_ID = 63  # characters
MAX_FINGERPRINT = 64


def label(obj: Object, name: str) -> str:
    """Return the value of a label; "": it has none."""
    return str((obj["metadata"].get("labels") or {}).get(name, ""))


def annotation(obj: Object, name: str) -> str:
    """Return the value of an annotation; "": it has none."""
    return str((obj["metadata"].get("annotations") or {}).get(name, ""))


def owner_uid(obj: Object) -> str:
    """Return the uid of an object's controlling owner; "": it has none."""
    return str((controller_of(obj) or {}).get("uid", ""))


def is_ended_by_us(job: Object) -> bool:
    """Return whether PlanBuilder.end has given this Job its deadline."""
    return bool((job.get("spec") or {}).get("activeDeadlineSeconds") == 1)


def reference(obj: Object) -> Object:
    """Return just enough of an object to patch or delete it, and only it."""
    meta = obj["metadata"]
    return {
        "apiVersion": obj["apiVersion"],
        "kind": obj["kind"],
        "metadata": {"namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]},
    }


def delete(obj: Object) -> Action:
    """Return the action that deletes an object."""
    return Delete(f"delete {obj['kind']} {obj['metadata']['name']}", reference(obj))


# --- what our Jobs say of themselves: anybody who may write Jobs may have changed it


def describe_malformed(job: Object) -> str:
    """Return which label or annotation of a Job of ours is not as we write it; "": none.

    The functions below are for Jobs of which it is "".
    """
    role = label(job, ROLE)
    if role in (TUNING, PROOF, IMPORTING):
        if not is_bundle_id(label(job, BUNDLE)):
            return f"label {BUNDLE} is not <12 hex>-<target>"
        if role != IMPORTING and not _NUMBER.fullmatch(label(job, ATTEMPT)):
            return f"label {ATTEMPT} is not a number from 1"
        if len(fingerprint_of(job)) > MAX_FINGERPRINT:
            return f"annotation {FINGERPRINT} has more than {MAX_FINGERPRINT} characters"
    if role == PRUNE and _read_ids(annotation(job, REQUEST_KEY)) is None:
        return f"annotation {REQUEST_KEY} is not a list of bundle ids"
    return ""


def is_bundle_id(text: str) -> bool:
    """Return whether a text may be a bundle's id, `<12 hex>-<target>`, in the status."""
    return len(text) <= MAX_BUNDLE_ID and bool(_BUNDLE.fullmatch(text))


def attempt_number(job: Object) -> int:
    """Return the number of the attempt, or proof, that a Job is."""
    return int(label(job, ATTEMPT))


def fingerprint_of(job: Object) -> str:
    """Return the fingerprint that a Job of ours is for; "": it names none."""
    return annotation(job, FINGERPRINT)


def pruned_ids(job: Object) -> list[str]:
    """Return the bundles whose folders a prune Job deletes."""
    return _read_ids(annotation(job, REQUEST_KEY)) or []


def _read_ids(text: str) -> list[str] | None:
    try:
        ids = parse_json((text or "[]").encode(), ANNOTATION)
    except ValueError:
        return None
    is_list = isinstance(ids, list) and all(isinstance(each, str) for each in ids)
    return ids if is_list else None
