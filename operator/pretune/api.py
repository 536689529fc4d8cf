"""The AutotuneCache API in Python: names, spec, reasons, and the shape of the status. The CRD in the chart is its twin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]  # a Kubernetes object, as plain as the API server sends it

GROUP = "pretune.dev"
VERSION = "v1alpha1"
KIND = "AutotuneCache"
PLURAL = "autotunecaches"

# Labels and annotations. CACHE and ROLE stand on all that is ours; a pod with CACHE and without ROLE is a consumer.
CACHE = "pretune.dev/cache"
ROLE = "pretune.dev/role"  # tuning | inspect | prune; on a claim and a ConfigMap: claim | agent
BUNDLE = "pretune.dev/bundle"  # label of an attempt, annotation of a consumer
ATTEMPT = "pretune.dev/attempt"  # the attempt's number, from 1
FINGERPRINT = "pretune.dev/fingerprint"  # annotation: whole
WHEN_DELETED = "pretune.dev/when-deleted"  # annotation of our claim: Delete | Retain
SIZE = "pretune.dev/size"  # annotation of our claim: what spec.storage.claim.size asked for, so that a change is seen
STORAGE = (
    "pretune.dev/storage"  # annotation of an attempt: the place that its bundle goes to, as storage_place() says it
)
QUESTION = "pretune.dev/question"  # annotation of an inspect or prune Job: the ids it was given, as JSON

TUNING, INSPECT, PRUNE = "tuning", "inspect", "prune"
CHECK_CONTAINER, SEAL_CONTAINER = "pretune-check", "pretune-seal"
AGENT_CONTAINER = "pretune-agent"  # of inspect and prune

PENDING, TUNING_STATE, SEALED, FAILED, REFUSED, RETIRED = "Pending", "Tuning", "Sealed", "Failed", "Refused", "Retired"
STATES = (PENDING, TUNING_STATE, SEALED, FAILED, REFUSED, RETIRED)


class Refused(Exception):
    """The user must act: becomes a condition, is never retried by itself. The message names the object and the field."""

    def __init__(self, reason: str, message: str) -> None:
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {message}")
        self.reason, self.message = reason, message


@dataclass(frozen=True)
class Reason:
    """One reason that a person can meet on a condition or a bundle."""

    means: str
    remedy: str
    retried: bool = False  # a failed attempt with it is tried again, until spec.tuning.maxAttempts


def _reasons() -> dict[str, Reason]:
    wait = "Nothing to do: it goes on by itself."
    return {
        # --- all is well, or on its way
        "Sealed": Reason("The bundle is on the claim: checked and immutable.", "Nothing to do."),
        "NothingToTune": Reason(
            "The engine started and tuned nothing; the bundle is sealed, and empty.",
            "Nothing to do where no kernel is tunable: dense FP8 on Hopper, compute capability below 9.0, -O0, a FlashInfer"
            " without cubins or nvcc, --no-enable-flashinfer-autotune. Otherwise see the engine's log for why.",
        ),
        "NoSource": Reason(
            "The cache names no source.",
            "Set spec.source.workloadRef or spec.source.template.",
        ),
        "Suspended": Reason("spec.suspend is true: nothing new is started.", "Set spec.suspend to false."),
        "WaitingForClaim": Reason("The claim cannot be used yet; see the condition StorageReady.", wait),
        "Inspecting": Reason("The claim is read for bundles that are there already.", wait),
        "Queued": Reason("Another attempt of this cache runs, or the Job is suspended (Kueue).", wait),
        "Retrying": Reason("An attempt failed; the next one waits for its time. The message says why and when.", wait),
        "WaitingForPod": Reason("The Job is there, its pod is not yet.", wait),
        "PodRefused": Reason(
            "The API server refuses the attempt's pod; the message is its sentence (quota, Pod Security, LimitRange).",
            "Raise the quota, or change what the sentence names; the Job controller tries again by itself.",
        ),
        "WaitingForNode": Reason(
            "The attempt's pod is not scheduled; the message is the scheduler's.",
            "Free a GPU, or correct the target's nodeSelector and tolerations.",
        ),
        "Pulling": Reason("The node pulls the image, mounts volumes or runs init containers.", wait),
        "Checking": Reason("The check container looks at the claim and at the image's versions.", wait),
        "Tuning": Reason("The engine starts and tunes.", wait),
        "Sealing": Reason("The engine is ready; its files are checked and published.", wait),
        "NameTaken": Reason(
            "A Job of the attempt's name belongs to another object (a deleted cache of the same name, say).",
            "It is waited for; delete that Job if nothing else does.",
        ),
        # --- the source
        "SourceNotFound": Reason(
            "spec.source.workloadRef names an object that is not there.", "Create it, or correct the name."
        ),
        "SourceNotSupported": Reason(
            "spec.source.workloadRef names a kind that the cluster does not have, or one without a pod template at spec.template.",
            "Name the object that holds the pod template, or use spec.source.template.",
        ),
        "SourceForbidden": Reason(
            "The operator may not read the object that spec.source.workloadRef names.",
            "Add its resource to the chart's value sources.extraRules, or use spec.source.template.",
        ),
        "SourceInvalid": Reason(
            "The API server refuses the pod that the template describes; the message is its own.",
            "Correct the template.",
        ),
        "EngineAmbiguous": Reason(
            "Several containers ask for a GPU.", "Set spec.engineContainer to one of those named."
        ),
        "EngineNotFound": Reason(
            "No container asks for a GPU, or spec.engineContainer names none of the pod's.",
            "Set spec.engineContainer to one of those named.",
        ),
        "TooManyFingerprints": Reason(
            "More than four different engines want tactics of one target; the message names what keeps changing.",
            "Take what changes in each pod out of the engine's env and args, or give each engine its own cache.",
        ),
        # --- what cannot be tuned as a copy
        "MultiPodEngine": Reason(
            "The engine is one of several pods (LWS, Ray, JobSet, Grove, --headless, --nnodes): a copy would dial production.",
            "Not supported; run such an engine without pretune.",
        ),
        "SelfRegistering": Reason(
            "The engine registers itself from inside (Dynamo, LMCache controller, Mooncake): a copy could be sent traffic.",
            "Give spec.source.template without registration, or take the risk with spec.tuning.allow: [SelfRegistering].",
        ),
        "SharedGPU": Reason(
            "The GPU is time-sliced or a MIG slice: tactics measured there mean little.",
            "Tune on a whole GPU, or take the risk with spec.tuning.allow: [SharedGPU].",
        ),
        "SharedResourceClaim": Reason(
            "The pod uses a ResourceClaim by name, which the serving pods hold.", "Use a resourceClaimTemplateName."
        ),
        "SingleUseClaim": Reason(
            "The pod mounts a claim that only one pod may use at a time.",
            "Give spec.source.template without that volume.",
        ),
        "ReleaseTooOld": Reason("vLLM in the image does not persist tactics.", "Use vLLM 0.25 or newer."),
        "SharedLayout": Reason(
            "vLLM 0.27 to 0.31 on several GPUs keeps one file for all ranks: a warm start can hang for 30 minutes.",
            "Use vLLM 0.32 or newer.",
        ),
        "NoPython": Reason("The image has no python3 (3.8 or newer) on its PATH.", "Use an image with python3."),
        # --- storage
        "Bound": Reason("The claim can be used.", "Nothing to do."),
        "WaitForFirstConsumer": Reason(
            "The claim binds when its first pod is scheduled; that is enough to go on.", "Nothing to do."
        ),
        "ClaimPending": Reason(
            "The claim is not bound; the message is its newest event's.",
            "Look at the StorageClass and its provisioner; spec.storage.claim.storageClassName chooses another.",
        ),
        "ClaimNotFound": Reason(
            "spec.storage.existingClaim names a claim that is not there.", "Create it, or correct the name."
        ),
        "ClaimTerminating": Reason(
            "The claim is being deleted; a new one is made when it is gone.", "End the pods that still use it."
        ),
        "ClaimLost": Reason("The claim's volume is gone.", "Delete the claim; a new one is made and tuned anew."),
        "ClaimNotOurs": Reason(
            "A claim of the name pretune-<cache> is there without our label.",
            "Rename it, label it pretune.dev/cache=<cache>, or name it in spec.storage.existingClaim.",
        ),
        "ClaimRefused": Reason(
            "The API server refuses the claim; the message is its own.", "Correct spec.storage.claim."
        ),
        "SingleNode": Reason(
            "A ReadWriteOnce claim would hold all serving pods to one node.",
            "Use ReadWriteMany, or accept it with spec.tuning.allow: [SingleNode].",
        ),
        "SinglePod": Reason("A ReadWriteOncePod claim can be mounted by one pod only.", "Use a ReadWriteMany claim."),
        "ReadOnlyClaim": Reason(
            "The attempt could not write to the claim.",
            "Make the claim and its export writable for the engine's uid.",
            True,
        ),
        "NoSpace": Reason(
            "The claim has no space for the bundle.", "Enlarge the claim, or lower spec.bundleHistoryLimit.", True
        ),
        "UnsafePath": Reason(
            "A folder of ours on the claim is a link or no folder; it was not followed.",
            "Remove it; spec.storage.existingClaim.subPath must lead through real folders.",
        ),
        "IdCollision": Reason(
            "The claim holds a bundle of this id that was made of other inputs.",
            "Change spec.revision: it gives the bundle another id.",
        ),
        # --- attempts that failed
        "ImagePullFailed": Reason(
            "An image cannot be pulled; the message is the kubelet's.", "Correct the image or the pull secret.", True
        ),
        "ContainerConfigError": Reason(
            "A container cannot be made; the message is the kubelet's (a missing Secret or ConfigMap, a wrong command).",
            "Create what it names, or correct the template.",
            True,
        ),
        "InitContainerFailed": Reason("An init container before the engine failed.", "See its message and log.", True),
        "EngineFailed": Reason(
            "The engine exited or restarted; the message has its exit code and last lines.",
            "See the engine's log.",
            True,
        ),
        "EngineNotReady": Reason(
            "The engine did not become ready within spec.tuning.deadlineSeconds.",
            "Raise the deadline, or see the engine's log for where it waits.",
            True,
        ),
        "IncompleteRanks": Reason(
            "The rank files have gaps or disagree. Not tried again when it repeats.",
            "See the engine's log of each rank.",
            True,
        ),
        "CorruptFiles": Reason(
            "A file that the engine wrote is no JSON of the known form.", "See the engine's log.", True
        ),
        "UnsafeFiles": Reason(
            "The engine left links, devices, odd names, more than 10,000 files or 256 MiB; nothing was followed or published.",
            "See what in the image writes to the override directory.",
        ),
        "UnreadableFiles": Reason(
            "Files that seal may not read, though it runs as the engine's uid.", "Run the engine as one uid.", True
        ),
        "SealFailed": Reason(
            "Seal ended without a report, or by an error of its own.", "Report it with the message.", True
        ),
        "ReportLost": Reason("The pod was gone before its report was read, and the claim has no bundle.", wait, True),
        "AgentMissing": Reason("The agent's ConfigMap was not there when the pod started.", wait, True),
        "Disrupted": Reason(
            "Six pods of the attempt were evicted or preempted.", "Look at what evicts them; it is tried again.", True
        ),
        "NodeLost": Reason(
            "The pod's node did not answer for 10 minutes.", "Look at the node; it is tried again.", True
        ),
        "JobFailed": Reason(
            "The Job ended without a pod to read; the message is its own.", "See the Job's events.", True
        ),
        # --- a bundle's end
        "Superseded": Reason("Nothing wants this bundle any more; its attempt was ended.", "Nothing to do."),
        "Unwanted": Reason(
            "Nothing wants this bundle any more; its folder is deleted 10 minutes later.", "Nothing to do."
        ),
    }


REASONS: Mapping[str, Reason] = _reasons()


@dataclass(frozen=True)
class Target:
    name: str = "default"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Object, ...] = ()


@dataclass(frozen=True)
class Claim:
    """spec.storage: either ours (`existing` empty) or the user's, with the folder in it."""

    existing: str = ""
    sub_path: str = ""
    storage_class: str | None = None
    access_mode: str = "ReadWriteMany"
    size: str | int = "1Gi"
    when_deleted: str = "Delete"


@dataclass(frozen=True)
class Spec:
    """spec of an AutotuneCache with every default in place, those of the CRD included."""

    workload_ref: Mapping[str, str] | None
    template: Object | None
    engine_container: str
    targets: tuple[Target, ...]
    claim: Claim
    deadline_seconds: int
    max_attempts: int
    job_labels: Mapping[str, str]
    job_annotations: Mapping[str, str]
    priority_class: str
    tolerations: tuple[Object, ...]
    keep_containers: tuple[str, ...]
    allow: frozenset[str]
    history_limit: int
    revision: str
    suspend: bool

    @classmethod
    def of(cls, cache: Object) -> Spec:
        """From an AutotuneCache that the API server accepted."""
        spec = cache.get("spec") or {}
        source, tuning, storage = spec.get("source") or {}, spec.get("tuning") or {}, spec.get("storage") or {}
        overlay = tuning.get("podTemplate") or {}
        meta, pod = overlay.get("metadata") or {}, overlay.get("spec") or {}
        made, existing = storage.get("claim") or {}, storage.get("existingClaim") or {}
        return cls(
            workload_ref=source.get("workloadRef"),
            template=source.get("template"),
            engine_container=spec.get("engineContainer") or "",
            targets=tuple(
                Target(one["name"], one.get("nodeSelector") or {}, tuple(one.get("tolerations") or ()))
                for one in spec.get("targets") or [{"name": "default"}]
            ),
            claim=Claim(
                existing=existing.get("name", ""),
                sub_path=existing.get("subPath", ""),
                storage_class=made.get("storageClassName"),
                access_mode=(made.get("accessModes") or ["ReadWriteMany"])[0],
                size=made.get("size", "1Gi"),
                when_deleted=made.get("whenDeleted", "Delete"),
            ),
            deadline_seconds=tuning.get("deadlineSeconds", 5400),
            max_attempts=tuning.get("maxAttempts", 3),
            job_labels=meta.get("labels") or {},
            job_annotations=meta.get("annotations") or {},
            priority_class=pod.get("priorityClassName") or "",
            tolerations=tuple(pod.get("tolerations") or ()),
            keep_containers=tuple(tuning.get("keepContainers") or ()),
            allow=frozenset(tuning.get("allow") or ()),
            history_limit=spec.get("bundleHistoryLimit", 3),
            revision=spec.get("revision") or "",
            suspend=bool(spec.get("suspend")),
        )


def storage_place(cache: str, spec: Spec) -> str:
    """`<claim>/<subPath>`: where a spec keeps its bundles."""
    return f"{claim_name(cache, spec)}/{spec.claim.sub_path}"


def claim_name(cache: str, spec: Spec) -> str:
    """The claim that holds the bundles; our own is `pretune-<cache>`."""
    return spec.claim.existing or f"pretune-{cache}"
