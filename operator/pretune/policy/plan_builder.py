"""The plan as it grows: each policy reads what was observed and adds its part. No I/O here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from pretune.api import reasons
from pretune.api.names import (
    ATTEMPT,
    BUNDLE,
    FAILED,
    KIND,
    PENDING,
    PROOF,
    PROVING,
    REFUSED,
    ROLE,
    SEALED,
    STORAGE,
    TUNING,
)
from pretune.api.reasons import Reason, Refused
from pretune.api.spec import Spec, claim_name, storage_place
from pretune.api.status import BundleStatus, CacheStatus, GpuSeconds, ReleaseRefused
from pretune.api.types import Object
from pretune.kube.types import Event
from pretune.manifests.job import attempt_name
from pretune.podspec.workloads import controller_of
from pretune.policy.model import FOUND, Action, EndedAttempt, Observed, Outcome, Patch, Released
from pretune.policy.objects import (
    annotation,
    attempt_number,
    delete,
    describe_malformed,
    is_ended_by_us,
    label,
    owner_uid,
    reference,
)
from pretune.policy.pod_status import (
    gpu_seconds,
    is_disrupted,
    is_finished,
    is_job_finished,
    is_suspended,
    node_lost_at,
)

MAX_MESSAGE = 1024  # characters of a bundle's message
MAX_NAMED = 5  # malformed parts that an event names
ATTEMPT_ROLES = frozenset({TUNING, PROOF})  # of what occupies a target's node


# Fields of GpuSeconds by why an attempt ended; all other reasons are failures.
_RESULTS = {
    reasons.SEALED: "sealed",
    reasons.NOTHING_TO_TUNE: "sealed",
    FOUND: "sealed",
    reasons.SUPERSEDED: "superseded",
}


class PlanBuilder:
    """The plan of one reconcile: what is to be done, and the bundles as the status will have them.

    Bundles are frozen: read `plan.bundles[bundle_id]` again after any function that was given the
    plan. They change through `put`, `set_state`, `forget` and `remove` only.
    """

    def __init__(self, observed: Observed, now: float, claim_made: bool = False) -> None:
        """now: Unix seconds. claim_made: by this very reconcile, so that nothing can be on it."""
        assert observed.cache is not None
        self.observed, self.now = observed, now
        self.cache, self.spec = observed.cache, Spec.from_cache(observed.cache)
        self.status = CacheStatus.from_cache(self.cache)  # as it was read
        self.before: Mapping[str, BundleStatus] = {each.id: each for each in self.status.bundles}
        self._bundles = dict(self.before)
        storage = self.status.storage
        self.known_place = place(storage.claim_uid, storage.sub_path or "") if storage else ""
        self.actions: list[Action] = []
        self.after: list[Action] = []
        self.events: list[Event] = []
        self.released: list[Released] = []
        self.release_refused: ReleaseRefused | None = None
        self.ended: list[EndedAttempt] = []
        self.lost_gpu_seconds = 0.0  # of pods that this plan records as lost
        self.requeue_time: float | None = None
        self.waits_for_turn = False  # an attempt would start if other caches had fewer
        self.claim_made = claim_made
        self.awaiting_claim: set[str] = set()  # bundles that only the claim can show
        uid = self.cache["metadata"]["uid"]
        jobs = [job for job in observed.jobs if owner_uid(job) == uid]
        malformed = {job["metadata"]["name"]: describe_malformed(job) for job in jobs}
        self.jobs = tuple(job for job in jobs if not malformed[job["metadata"]["name"]])
        self._jobs_by_uid = {job["metadata"]["uid"]: job for job in observed.jobs}
        skipped = [f"Job {name}: {why}" for name, why in malformed.items() if why]
        skipped += self.status.skipped
        if skipped:
            self.warn(reasons.MALFORMED, f"ignored: {'; '.join(skipped[:MAX_NAMED])}")
        here = storage_place(observed.key.name, self.spec)
        self.misplaced_jobs = tuple(
            job for job in self.jobs if annotation(job, STORAGE) not in ("", here)
        )

    @property
    def claim_name(self) -> str:
        return claim_name(self.observed.key.name, self.spec)

    @property
    def place(self) -> str:
        """Where the bundles are to be: the claim's uid and the folder in it; "": no claim yet."""
        claim = self.observed.claim
        return place(claim["metadata"]["uid"], self.spec.claim.sub_path) if claim else ""

    @property
    def templates(self) -> tuple[Object, ...]:
        """The pod templates that could be read: the source's, and those of consumers."""
        origins = (origin.template for _, origin in sorted(self.observed.origins.items()))
        read = (self.observed.source, *origins)
        return tuple(each for each in read if each and not isinstance(each, Refused))

    # --- time

    @property
    def timestamp(self) -> float:
        """Now as the status records it: Unix seconds, whole."""
        return float(int(self.now))

    def requeue_at(self, when: float | None) -> None:
        """Reconcile this key again at this time (Unix seconds), or earlier."""
        if when is not None:
            self.requeue_time = when if self.requeue_time is None else min(self.requeue_time, when)

    # --- bundles

    @property
    def bundles(self) -> Mapping[str, BundleStatus]:
        return self._bundles

    def put(self, bundle: BundleStatus) -> BundleStatus:
        """Set what the status will say of a bundle, and return it."""
        self._bundles[bundle.id] = bundle
        return bundle

    def ensure(self, bundle_id: str, fingerprint: str = "", target: str = "") -> BundleStatus:
        """Return a bundle, which begins as Pending where the status has none of this id."""
        bundle = self._bundles.get(bundle_id)
        if bundle is not None:
            return bundle
        target = target or bundle_id.partition("-")[2]
        return self.put(BundleStatus(bundle_id, fingerprint, target))

    def remove(self, bundle_id: str) -> None:
        del self._bundles[bundle_id]

    def set_state(self, bundle_id: str, state: str, reason: Reason, message: str) -> BundleStatus:
        """Put a bundle into a state. The message is cut to MAX_MESSAGE."""
        bundle = self._bundles[bundle_id]
        return self.put(replace(bundle, state=state, reason=reason, message=message[:MAX_MESSAGE]))

    def state_before(self, bundle_id: str) -> str:
        """Return the state that the status had when this reconcile began; "": it had none."""
        bundle = self.before.get(bundle_id)
        return bundle.state if bundle is not None else ""

    def forget(self, bundle_id: str, why: str) -> None:
        """Begin anew with a bundle that may not be on the claim any more.

        It is tuned from the next reconcile on, since a status that still calls it sealed would end
        the new attempt.
        """
        self.record_superseded(bundle_id)
        self.warn(
            reasons.RETRYING,
            f"bundle {bundle_id}: {why}; it is tuned again if it is wanted and not there",
        )
        old = self._bundles[bundle_id]
        self.put(BundleStatus(bundle_id, old.fingerprint, old.target, gpu_seconds=old.gpu_seconds))
        self.set_state(bundle_id, PENDING, reasons.INSPECTING, why)
        self.delete_jobs(bundle_id)
        self.awaiting_claim.add(bundle_id)
        self.requeue_at(self.now)

    def delete_jobs(self, bundle_id: str, above: int = 0) -> None:
        """Delete a bundle's Jobs of larger numbers than `above`, before the status forgets them.

        Their pods' reports are about what is not on the claim any more.
        """
        self.actions += [
            delete(job)
            for role in (TUNING, PROOF)
            for number, job in self.find_jobs(bundle_id, role).items()
            if number > above
        ]

    def change_events(self) -> list[Event]:
        """Return events for those bundles whose state or reason changed in a way worth reading."""
        events = []
        for bundle in self._bundles.values():
            before = self.before.get(bundle.id)
            if before is not None and (before.state, before.reason) == (
                bundle.state,
                bundle.reason,
            ):
                continue
            is_bad = bundle.state in (FAILED, REFUSED) or bundle.reason == reasons.POD_REFUSED
            begins = bundle.state == PROVING != (before.state if before is not None else "")
            if is_bad or begins or bundle.state == SEALED or bundle.reason == reasons.TUNING:
                message = f"bundle {bundle.id}: {bundle.message}"
                events.append(Event(bundle.reason, message, is_bad))
        return events

    # --- ends of attempts and proofs, for the metrics

    def record_end(
        self,
        bundle_id: str,
        reason: str,
        gpu_seconds: float,
        tuning_seconds: float | None = None,
        role: str = TUNING,
    ) -> None:
        """Record that the open attempt, or proof, of a bundle ends with this plan.

        To be called where the status records that end: from the next reconcile on the attempt is
        not open any more, so that it counts once. One that was superseded has counted already,
        with this plan or with an earlier one.
        """
        if any(
            end.bundle_id == bundle_id and end.reason == reasons.SUPERSEDED for end in self.ended
        ):
            return
        before = self.before.get(bundle_id)
        has_counted = before is not None and before.reason == reasons.SUPERSEDED
        if (
            before is not None
            and has_counted
            and (before.has_open_attempt or before.has_open_proof)
        ):
            return
        result = "proof" if role == PROOF else _RESULTS.get(reason, "failed")
        self.ended.append(EndedAttempt(bundle_id, reason, gpu_seconds, tuning_seconds, result))
        self._spend(bundle_id, result, gpu_seconds)

    def record_lost(self, bundle_id: str, gpu_seconds: float) -> None:
        """Record what a pod has cost that an attempt or a proof has lost; it goes on with another.

        To be called once for each pod, when the status records that it is lost.
        """
        self.lost_gpu_seconds += gpu_seconds
        self._spend(bundle_id, "lost", gpu_seconds)

    def _spend(self, bundle_id: str, result: str, seconds: float) -> None:
        bundle = self._bundles[bundle_id]
        spent = (bundle.gpu_seconds or GpuSeconds()).plus(result, seconds)
        self.put(replace(bundle, gpu_seconds=spent if spent.to_dict() else None))

    def record_superseded(self, bundle_id: str) -> None:
        """Record the end of a bundle's open attempt, or proof: nothing wants it any more."""
        bundle = self._bundles[bundle_id]
        if bundle.has_open_attempt:
            spent = self.gpu_seconds_of(bundle_id, TUNING, bundle.attempts)
        elif bundle.has_open_proof:
            spent = self.gpu_seconds_of(bundle_id, PROOF, bundle.proofs or 0)
        else:
            return
        self.record_end(bundle_id, reasons.SUPERSEDED, spent)

    def gpu_seconds_of(self, bundle_id: str, role: str, number: int) -> float:
        """Return the GPU-seconds of an attempt (TUNING) or a proof (PROOF), of pods still there."""
        pods = [
            pod
            for pod in self.find_pods(bundle_id)
            if (label(pod, ROLE), label(pod, ATTEMPT)) == (role, str(number))
            and not is_disrupted(pod)  # record_lost has counted it
        ]
        return sum(gpu_seconds(pod, self.now) for pod in pods)

    def warn(self, reason: Reason, message: str) -> None:
        """Add an event of type Warning."""
        self.events.append(Event(reason, message, warning=True))

    # --- Jobs and pods

    def find_jobs(self, bundle_id: str, role: str = TUNING) -> dict[int, Object]:
        """Return our Jobs that tune a bundle, or prove it (PROOF), where it is to be, by number."""
        return {
            attempt_number(job): job
            for job in self.jobs
            if label(job, ROLE) == role
            and label(job, BUNDLE) == bundle_id
            and job not in self.misplaced_jobs
        }

    def find_pods(self, bundle_id: str) -> list[Object]:
        """Return the pods of attempts and proofs of a bundle, those of a deleted cache included."""
        return [
            pod
            for pod in self.observed.pods
            if label(pod, ROLE) in ATTEMPT_ROLES
            and label(pod, BUNDLE) == bundle_id
            and self._is_of_attempt(pod)
        ]

    def _is_of_attempt(self, pod: Object) -> bool:
        """Whether the Job that controls a pod is an attempt of a cache of this name.

        Anyone who may create pods can give one our labels: such a pod blocks nothing. Where that
        Job is gone its name tells: Kubernetes soon deletes a pod without its owner, and only we
        need the name for another Job.
        """
        owner = controller_of(pod) or {}
        job = self._jobs_by_uid.get(owner.get("uid"))
        if job is not None:
            return self._is_of_cache(job)
        number = ("p" if label(pod, ROLE) == PROOF else "") + label(pod, ATTEMPT)
        name = attempt_name(self.observed.key.name, label(pod, BUNDLE), number)
        return owner.get("kind") == "Job" and owner.get("name") == name

    def _is_of_cache(self, job: Object) -> bool:
        """Whether a Job is of this cache, or of a deleted one with its name."""
        owner = controller_of(job) or {}
        return owner.get("kind") == KIND and owner.get("name") == self.observed.key.name

    def find_tried_ids(self) -> set[str]:
        """Return the bundles that our Jobs tune or prove, or did."""
        return {
            label(job, BUNDLE)
            for job in self.jobs
            if label(job, ROLE) in ATTEMPT_ROLES and job not in self.misplaced_jobs
        }

    def is_live(self, bundle_id: str, roles: Collection[str] = ATTEMPT_ROLES) -> bool:
        """Return whether an attempt or a proof of a bundle may still use its node.

        It may while its Job can make a pod, or any pod of it is not terminal. Also those of a
        deleted cache with this name.
        """
        jobs = [
            job
            for job in self.observed.jobs
            if label(job, ROLE) in roles
            and label(job, BUNDLE) == bundle_id
            and self._is_of_cache(job)
        ]
        pods = [pod for pod in self.find_pods(bundle_id) if label(pod, ROLE) in roles]
        return any(not self._is_gone(pod) for pod in pods) or any(map(self.may_go_on, jobs))

    def _is_gone(self, pod: Object) -> bool:
        """Ended, or on a node that has not answered for ten minutes."""
        lost_at = node_lost_at(pod)
        return is_finished(pod) or (lost_at is not None and self.now >= lost_at)

    def may_go_on(self, job: Object) -> bool:
        """Return whether a Job may still create a pod, or its name is in the way.

        A Job that we have ended creates no other pod, but is finished only when its pod is, which
        on a lost node may be never. One that writes to another place is in the way by its name.
        """
        if job in self.misplaced_jobs:
            return True
        if is_job_finished(job):
            return False
        pods = [
            pod
            for pod in self.observed.pods
            if owner_uid(pod) == job["metadata"]["uid"] and not is_finished(pod)
        ]
        return not (is_ended_by_us(job) and pods and all(map(self._is_gone, pods)))

    def end_job(self, job: Object) -> None:
        """End an attempt, once the status records what its pod reported.

        By a deadline of 1 s: a Job that was deleted, and created again under its name, gave two
        live pods. A suspended Job never starts its clock and has to be deleted.
        """
        if is_job_finished(job) or job["metadata"].get("deletionTimestamp"):
            return
        name = job["metadata"]["name"]
        if is_suspended(job):
            self.after.append(delete(job))
        elif not is_ended_by_us(job):
            patch = {"spec": {"activeDeadlineSeconds": 1}}
            self.after.append(Patch(f"end Job {name}", reference(job), patch))

    def outcome(self, action: Action) -> Outcome | None:
        """Return what the API server answered to an action of this reconcile."""
        return self.observed.outcomes.get(action.name)


def place(uid: str, sub_path: str) -> str:
    """Return a claim's uid and the folder in it as one text."""
    return f"{uid}/{sub_path}" if uid and sub_path else uid
