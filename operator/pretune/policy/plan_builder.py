"""The plan as it grows: each policy reads what was seen and adds its part. Nothing here does I/O."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pretune.api import reasons
from pretune.api.names import (
    ATTEMPT,
    BUNDLE,
    FAILED,
    FINGERPRINT,
    PENDING,
    PROOF,
    PROVING,
    REFUSED,
    ROLE,
    SEALED,
    STORAGE,
    TUNING,
)
from pretune.api.reasons import REASONS, Reason, Refused
from pretune.api.spec import Spec, Target, claim_name, storage_place
from pretune.api.timestamps import format_timestamp, parse_timestamp
from pretune.api.types import Object
from pretune.kube.types import Event
from pretune.policy.bundles.attempt_state import LOST, is_finished, is_job_finished
from pretune.policy.model import Action, Delete, Observed, Outcome, Patch, Released
from pretune.protocol import Inputs

BACKOFF = 30.0  # seconds; the n-th retry waits 30 s × 4ⁿ⁻¹

# States of a bundle that is on the claim, whole and not on its way out.
ON_CLAIM = frozenset({SEALED, PROVING})
ATTEMPTS = frozenset({TUNING, PROOF})  # roles of what occupies a target's node

# Told by an attempt about the image or its release: final for the bundle, and the user's to mend.
TOLD_BY_CHECK = frozenset(
    {
        reasons.RELEASE_TOO_OLD,
        reasons.SHARED_LAYOUT,
        reasons.NO_PYTHON,
        reasons.UNSAFE_PATH,
        reasons.ID_COLLISION,
    }
)


@dataclass(frozen=True)
class DesiredBundle:
    """A bundle that should be there: of one fingerprint and target."""

    id: str
    inputs: Inputs
    target: Target
    template: Object
    refusal: Refused | None  # why this engine cannot be tuned as a copy
    current: bool = True  # of the newest source: Ready speaks of it
    made: str = ""  # when its source's revision was made (RFC 3339); "": spec.source, or not known
    origin: str = ""  # sources.origin_key of the consumers that need it; "": none does yet


class PlanBuilder:
    """Records are working copies of status.bundles, by id; actions and events gather in their order."""

    def __init__(self, observed: Observed, now: float, claim_made: bool = False) -> None:
        assert observed.cache is not None
        self.observed, self.now = observed, now
        self.cache, self.spec = observed.cache, Spec.from_cache(observed.cache)
        status = self.cache.get("status") or {}
        self.bundles: dict[str, Object] = {
            one["id"]: copy.deepcopy(one) for one in status.get("bundles") or ()
        }
        stored = status.get("storage") or {}
        self.known_place: str = place(stored.get("claimUID", ""), stored.get("subPath", ""))
        self.known = {
            one["id"]: (one.get("state"), one.get("reason")) for one in self.bundles.values()
        }
        self.actions: list[Action] = []
        self.after: list[Action] = []
        self.events: list[Event] = []
        self.released: list[Released] = []
        self.look: float | None = None
        self.claim_made = claim_made  # in this very run: nothing can be on it
        self.started: set[str] = set()  # bundles whose attempt this plan starts
        self.asking: set[str] = set()  # bundles that wait for the claim's answer
        uid = self.cache["metadata"]["uid"]
        self.jobs = tuple(job for job in observed.jobs if owner_uid(job) == uid)
        here = storage_place(observed.key.name, self.spec)
        self.elsewhere = tuple(job for job in self.jobs if _note(job, STORAGE) not in ("", here))

    @property
    def claim_name(self) -> str:
        return claim_name(self.observed.key.name, self.spec)

    @property
    def place(self) -> str:
        """Where the bundles are to be: the claim's uid and the folder in it; "" while there is no claim."""
        claim = self.observed.claim
        return place(claim["metadata"]["uid"], self.spec.claim.sub_path) if claim else ""

    # --- time

    def requeue_at(self, when: float | None) -> None:
        """Look again at this time (Unix seconds), or earlier."""
        if when is not None:
            self.look = when if self.look is None else min(self.look, when)

    # --- records

    def record(self, bundle: str, fingerprint: str = "", target: str = "") -> Object:
        record = self.bundles.get(bundle)
        if record is None:
            record = self.bundles[bundle] = {
                "id": bundle,
                "fingerprint": fingerprint,
                "target": target or bundle.partition("-")[2],
                "state": PENDING,
                "reason": reasons.WAITING_FOR_CLAIM,
                "message": "",
                "attempts": 0,
            }
        return record

    def say(self, record: Object, state: str, reason: str, message: str) -> None:
        """Put a record into a state."""
        assert reason in REASONS, reason
        record.update(state=state, reason=reason, message=message[:1024])

    def changes(self) -> list[Event]:
        """Of the records, since the last status, what is worth a person's eye."""
        events = []
        for bundle, record in self.bundles.items():
            state, reason = record["state"], record["reason"]
            before = self.known.get(bundle, ("", ""))
            if before == (state, reason):
                continue
            begins = state == PROVING != before[0]
            if (
                state in (SEALED, FAILED, REFUSED)
                or begins
                or reason in (reasons.TUNING, reasons.POD_REFUSED)
            ):
                bad = state in (FAILED, REFUSED) or reason == reasons.POD_REFUSED
                events.append(Event(reason, f"bundle {bundle}: {record['message']}", bad))
        return events

    def forget(self, record: Object, why: str) -> None:
        """A bundle that may not be on the claim any more is wanted anew: from the next run on, since a status that still calls it
        sealed would end the new attempt."""
        self.warn(
            reasons.RETRYING,
            f"bundle {record['id']}: {why}; it is tuned again if it is wanted and not there",
        )
        self.bundles[record["id"]] = {
            **{name: record[name] for name in ("id", "fingerprint", "target")},
            "state": PENDING,
            "reason": reasons.INSPECTING,
            "message": why,
            "attempts": 0,
        }
        self.drop_jobs(record["id"])
        self.asking.add(record["id"])
        self.requeue_at(self.now)

    def drop_jobs(self, bundle: str) -> None:
        """Before the status forgets a bundle its Jobs go: their pods' reports speak of what is not on the claim any more."""
        self.actions += [
            delete(job) for role in (TUNING, PROOF) for job in self.attempts(bundle, role).values()
        ]

    def warn(self, reason: Reason, message: str) -> None:
        assert reason in REASONS, reason
        self.events.append(Event(reason, message, warning=True))

    # --- Jobs and pods

    def attempts(self, bundle: str, role: str = TUNING) -> dict[int, Object]:
        """Our Jobs that try to make a bundle (or to prove it: PROOF) where it is to be, by the attempt's number."""
        return {
            int(job["metadata"]["labels"][ATTEMPT]): job
            for job in self.jobs
            if _label(job, ROLE) == role
            and _label(job, BUNDLE) == bundle
            and job not in self.elsewhere
        }

    def pods(self, bundle: str) -> list[Object]:
        """Every pod that tunes or proves a bundle, by its label, whoever made it."""
        return [
            pod
            for pod in self.observed.pods
            if _label(pod, ROLE) in ATTEMPTS and _label(pod, BUNDLE) == bundle
        ]

    def tried(self) -> set[str]:
        """Bundles that our Jobs try, or tried, to make or to prove."""
        return {
            _label(job, BUNDLE)
            for job in self.jobs
            if _label(job, ROLE) in ATTEMPTS and job not in self.elsewhere
        }

    def live(self, bundle: str, roles: Collection[str] = ATTEMPTS) -> bool:
        """An attempt or a proof is live while its Job, whoever's, may still make a pod, or any pod of it is not terminal."""
        jobs = [
            job
            for job in self.observed.jobs
            if _label(job, ROLE) in roles and _label(job, BUNDLE) == bundle
        ]
        pods = [pod for pod in self.pods(bundle) if _label(pod, ROLE) in roles]
        return any(not self.gone(pod) for pod in pods) or any(self._may_go_on(job) for job in jobs)

    def gone(self, pod: Object) -> bool:
        """Ended, or on a node that has not answered for ten minutes."""
        since = pod["metadata"].get("deletionTimestamp")
        return is_finished(pod) or bool(since and self.now - parse_timestamp(since) >= LOST)

    def _may_go_on(self, job: Object) -> bool:
        """A Job that we have ended is not over before its pod is, which on a lost node may be never; it makes no other one.
        One whose bundle goes elsewhere is in the way by its name alone."""
        if job in self.elsewhere:
            return True
        if is_job_finished(job):
            return False
        pods = [
            pod
            for pod in self.observed.pods
            if owner_uid(pod) == job["metadata"]["uid"] and not is_finished(pod)
        ]
        return not (ended_by_us(job) and pods and all(self.gone(pod) for pod in pods))

    def end(self, job: Object) -> None:
        """End an attempt, once the status remembers what its pod said: a deadline of 1 s, since deleting a Job and making it
        again under its name gave two live pods. A suspended Job never starts its clock and has to be deleted."""
        if is_job_finished(job) or job["metadata"].get("deletionTimestamp"):
            return
        name = job["metadata"]["name"]
        if (job.get("spec") or {}).get("suspend"):
            self.after.append(delete(job))
        elif not ended_by_us(job):
            self.after.append(
                Patch(f"end Job {name}", reference(job), {"spec": {"activeDeadlineSeconds": 1}})
            )

    def outcome(self, action: Action) -> Outcome | None:
        return self.observed.outcomes.get(action.name)


def _label(obj: Object, name: str) -> str:
    return str((obj["metadata"].get("labels") or {}).get(name, ""))


def _note(obj: Object, name: str) -> str:
    return str((obj["metadata"].get("annotations") or {}).get(name, ""))


def place(uid: str, sub_path: str) -> str:
    return f"{uid}/{sub_path}" if uid and sub_path else uid


def ended_by_us(job: Object) -> bool:
    return bool((job.get("spec") or {}).get("activeDeadlineSeconds") == 1)


def owner_uid(obj: Object) -> str:
    """The uid of an object's controlling owner, or ""."""
    owners = obj["metadata"].get("ownerReferences") or ()
    return next((str(one["uid"]) for one in owners if one.get("controller")), "")


def reference(obj: Object) -> Object:
    """Just enough of an object to patch or delete it, and only it."""
    meta = obj["metadata"]
    return {
        "apiVersion": obj["apiVersion"],
        "kind": obj["kind"],
        "metadata": {"namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]},
    }


def delete(obj: Object) -> Action:
    return Delete(f"delete {obj['kind']} {obj['metadata']['name']}", reference(obj))


def request_key(data: Any) -> str:
    """What an inspect or prune Job was asked, as the annotation that tells a stale answer from ours."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def fingerprint_of(job: Object) -> str:
    return str((job["metadata"].get("annotations") or {}).get(FINGERPRINT, ""))


def failure(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record's last failed attempt: {attempt, at, reason, message}, or nothing."""
    return record.get("lastFailure") or {}


def fail(plan: PlanBuilder, record: Object, reason: str, message: str) -> None:
    """Take note of a failed attempt: another one, or the end."""
    number, limit, before = (
        record["attempts"],
        plan.spec.max_attempts,
        failure(record).get("reason"),
    )
    note_failure(plan, record, number, reason, message)
    text = f"attempt {number} of {limit}: {reason}: {message}"
    if reason in TOLD_BY_CHECK:
        plan.say(record, REFUSED, reason, message)
    elif (
        not REASONS[reason].is_retried
        or number >= limit
        or (reason == reasons.INCOMPLETE_RANKS == before)
    ):
        plan.say(record, FAILED, reason, f"attempt {number} of {limit}: {message}")
    else:
        plan.warn(Reason(reason), f"bundle {record['id']}: {text}")
        plan.say(
            record,
            PENDING,
            reasons.RETRYING,
            f"{text}; the next one starts at {format_timestamp(next_try(record))}",
        )


def note_failure(plan: PlanBuilder, record: Object, number: int, reason: str, message: str) -> None:
    """`number`: of the attempt, or of the proof of a bundle that is on the claim already."""
    record["lastFailure"] = {
        "attempt": number,
        "at": format_timestamp(plan.now),
        "reason": reason,
        "message": message[:1024],
    }
    for forgotten in ("pod", "disruptions"):
        record.pop(forgotten, None)


def next_try(record: Object) -> float:
    """When a bundle may be tried (Unix seconds)."""
    last = failure(record)
    return parse_timestamp(last["at"]) + BACKOFF * 4.0 ** (last["attempt"] - 1) if last else 0.0
