"""The Job controller, and the garbage collector of what Jobs and caches leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pretune.api.timestamps import format_timestamp, parse_timestamp
from pretune.api.types import Object
from pretune.kube.types import ApiError

from tests.sim.cluster import copied
from tests.sim.ground import Ground, Move
from tests.sim.reading import finished_at, leaving, over, owner, ref, said, terminal

TRACKING = "batch.kubernetes.io/job-tracking"  # holds a pod until the Job controller has counted it


class Jobs:
    """Every Job, ours and a person's; of a refused pod the sentence is told once by an event, and it is tried again once that changes."""

    def __init__(self, ground: Ground) -> None:
        self.ground, self.server = ground, ground.server
        self._refused: dict[str, str] = {}  # Job uid -> the sentence that its events carry

    def moves(self) -> Iterator[Move]:
        jobs = {job["metadata"]["uid"]: job for job in self.ground.stored("batch/v1", "Job")}
        caches = {
            one["metadata"]["uid"]
            for one in self.ground.stored("pretune.dev/v1alpha1", "AutotuneCache")
        }
        pods: dict[str, list[Object]] = {}
        for pod in self.ground.stored("v1", "Pod"):
            if _of_a_job(pod):
                pods.setdefault(owner(pod), []).append(pod)
        for uid, job in jobs.items():
            name = job["metadata"]["name"]
            if owner(job) and owner(job) not in caches:
                yield f"Job {name} is collected", partial(self.server.delete, ref(job))
            elif move := self._move(job, pods.get(uid, [])):
                yield f"Job {name} {move[0]}", move[1]
        for uid, orphans in pods.items():
            for pod in orphans if uid not in jobs else ():
                name = pod["metadata"]["name"]
                if not leaving(pod):
                    yield f"pod {name} is collected", partial(self.server.delete, ref(pod))
                elif terminal(pod) and pod["metadata"].get("finalizers"):
                    yield f"pod {name} is let go", partial(self.server.finalize, pod)

    def timers(self) -> Iterator[float]:
        for job in self.ground.stored("batch/v1", "Job"):
            spec, begun = job["spec"], (job.get("status") or {}).get("startTime")
            if "activeDeadlineSeconds" in spec and begun and not over(job):
                yield parse_timestamp(begun) + spec["activeDeadlineSeconds"]
            if over(job) and "ttlSecondsAfterFinished" in spec:
                yield finished_at(job) + spec["ttlSecondsAfterFinished"]

    def _move(self, job: Object, pods: list[Object]) -> Move | None:
        """The one thing that the Job controller does next for a Job."""
        spec, status, now = job["spec"], job.get("status") or {}, self.ground.clock.now
        uncounted = [
            pod
            for pod in pods
            if terminal(pod) and TRACKING in pod["metadata"].get("finalizers", ())
        ]
        if uncounted:
            return "counts a pod", lambda: self._count(job, uncounted[0])
        if over(job):
            if (
                "ttlSecondsAfterFinished" in spec
                and now >= finished_at(job) + spec["ttlSecondsAfterFinished"]
            ):
                return "has outlived its ttl", lambda: self.server.delete(ref(job))
            return None
        alive = [pod for pod in pods if not terminal(pod)]
        active = [pod for pod in alive if not leaving(pod)]
        target = said(job, "FailureTarget")
        if target is not None:
            if active:
                return "ends its pod", lambda: self.server.delete(ref(active[0]))
            if alive:
                return None
            return "is Failed", lambda: self._say(
                job, "Failed", target["reason"], target["message"]
            )
        if status.get("succeeded"):
            return "is Complete", lambda: self._say(job, "Complete", "CompletionsReached", "")
        if status.get("failed", 0) > spec.get("backoffLimit", 6):
            return "gives up", partial(
                self._fail,
                job,
                "BackoffLimitExceeded",
                "Job has reached the specified backoff limit",
            )
        if spec.get("suspend"):
            if active:
                return "is suspended and ends its pod", lambda: self._stop(active[0])
            if not _is_suspended(job):
                return "is suspended", lambda: self._say_suspended(job, "True", "JobSuspended")
            return None
        if _is_suspended(job):
            return "is resumed", lambda: self._say_suspended(job, "False", "JobResumed")
        if "template" not in spec:
            return None
        if not status.get("startTime"):
            return "starts", lambda: self._status(job, {"startTime": format_timestamp(now)})
        deadline = spec.get("activeDeadlineSeconds")
        if deadline is not None and now >= parse_timestamp(status["startTime"]) + deadline:
            return "is past its deadline", partial(
                self._fail, job, "DeadlineExceeded", "Job was active longer than specified deadline"
            )
        awaited = alive if spec.get("podReplacementPolicy") == "Failed" else active
        if awaited:
            return None
        refusal = self.ground.refusal(job["spec"]["template"])
        if refusal and self._refused.get(job["metadata"]["uid"]) == refusal:
            return None
        return "makes a pod", lambda: self._make_pod(job)

    def _count(self, job: Object, pod: Object) -> None:
        status = dict(job.get("status") or {})
        if pod["status"]["phase"] == "Succeeded":
            status["succeeded"] = status.get("succeeded", 0) + 1
        elif not self._ignored(job, pod):
            status["failed"] = status.get("failed", 0) + 1
        self._status(job, status)
        self.server.finalize(pod)

    def _ignored(self, job: Object, pod: Object) -> bool:
        """By the Job's own podFailurePolicy."""
        told = {(one["type"], one["status"]) for one in pod["status"].get("conditions", ())}
        return any(
            rule["action"] == "Ignore"
            and any(
                (one["type"], one.get("status", "True")) in told
                for one in rule.get("onPodConditions", ())
            )
            for rule in (job["spec"].get("podFailurePolicy") or {}).get("rules", ())
        )

    def _make_pod(self, job: Object) -> None:
        template, meta = copied(job["spec"]["template"]), job["metadata"]
        owned = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": meta["name"],
            "uid": meta["uid"],
            "controller": True,
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": meta["namespace"],
                "name": f"{meta['name'][:57]}-{self.ground.name()}",
                "labels": {
                    **template["metadata"].get("labels", {}),
                    "batch.kubernetes.io/job-name": meta["name"],
                },
                "ownerReferences": [owned],
                **{
                    name: one for name, one in template["metadata"].items() if name == "annotations"
                },
                "finalizers": [TRACKING],
            },
            "spec": template["spec"],
        }
        try:
            self.server.create(pod)
            self._refused.pop(meta["uid"], None)
        except ApiError as error:
            self._refused[meta["uid"]] = self.ground.refusal(pod)
            self.ground.event(job, "FailedCreate", f"Error creating: {error.message}")

    def _stop(self, pod: Object) -> None:
        """The pod of a suspended Job: it is not counted, and no condition says why it was deleted."""
        self.server.finalize(pod)
        self.server.delete(ref(pod))

    def _say_suspended(self, job: Object, status: str, reason: str) -> None:
        now, old = format_timestamp(self.ground.clock.now), (job.get("status") or {})
        said = {"type": "Suspended", "status": status, "reason": reason, "lastTransitionTime": now}
        others = [one for one in old.get("conditions", ()) if one["type"] != "Suspended"]
        self._status(
            job, {"conditions": [*others, said], "startTime": None if status == "True" else now}
        )

    def _fail(self, job: Object, reason: str, message: str) -> None:
        """FailureTarget first: Failed only once its pods have ended (Kubernetes 1.31 and newer)."""
        self._say(job, "FailureTarget", reason, message)

    def _say(self, job: Object, kind: str, reason: str, message: str) -> None:
        now = format_timestamp(self.ground.clock.now)
        found = [*(job.get("status") or {}).get("conditions", ())]
        found.append(
            {
                "type": kind,
                "status": "True",
                "reason": reason,
                "message": message,
                "lastTransitionTime": now,
            }
        )
        self._status(job, {"conditions": found})

    def _status(self, job: Object, status: Object) -> None:
        self.server.patch(ref(job), {"status": status}, status=True)


def _is_suspended(job: Object) -> bool:
    """As its condition says."""
    found = said(job, "Suspended")
    return found is not None and bool(found["status"] == "True")


def _of_a_job(pod: Object) -> bool:
    return any(
        one.get("controller") and one.get("kind") == "Job"
        for one in pod["metadata"].get("ownerReferences", ())
    )
