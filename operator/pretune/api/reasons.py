"""Reasons on conditions, bundles and events: each a constant with its catalogue entry beside it.

docs/reasons.md is generated from this catalogue. The agent has it too: standard library only, Python 3.8.
"""

from __future__ import annotations

from typing import Dict, NamedTuple, NewType, Optional

Reason = NewType("Reason", str)


class Entry(NamedTuple):
    """What the catalogue says of a reason: what it means, and what to do."""

    means: str
    remedy: str
    is_retried: bool = False  # a failed attempt is tried again, until spec.tuning.maxAttempts


REASONS: Dict[str, Entry] = {}


def _reason(name: str, means: str, remedy: str, is_retried: bool = False) -> Reason:
    """Return the constant, after its entry was put into the catalogue."""
    REASONS[name] = Entry(means, remedy, is_retried)
    return Reason(name)


_GOES_ON = "Nothing to do: it goes on by itself."


# --- all is well, or on its way
SEALED = _reason("Sealed", "The bundle is on the claim: checked and immutable.", "Nothing to do.")
NOTHING_TO_TUNE = _reason(
    "NothingToTune",
    "The engine started and tuned nothing; the bundle is sealed, and empty.",
    "Nothing to do where no kernel is tunable: dense FP8 on Hopper, compute capability below 9.0, -O0, a FlashInfer"
    " without cubins or nvcc, --no-enable-flashinfer-autotune. Otherwise see the engine's log for why.",
)
NO_SOURCE = _reason(
    "NoSource",
    "The cache names no source, and no pod has its label.",
    "Label a pod template with pretune.dev/cache, or set spec.source.workloadRef or spec.source.template.",
)
SUSPENDED = _reason(
    "Suspended", "spec.suspend is true: nothing new is started.", "Set spec.suspend to false."
)
WAITING_FOR_CLAIM = _reason(
    "WaitingForClaim", "The claim cannot be used yet; see the condition StorageReady.", _GOES_ON
)
INSPECTING = _reason(
    "Inspecting", "The claim is read for bundles that are there already.", _GOES_ON
)
QUEUED = _reason(
    "Queued", "Another attempt of this cache runs, or the Job is suspended (Kueue).", _GOES_ON
)
RETRYING = _reason(
    "Retrying",
    "An attempt failed; the next one waits for its time. The message says why and when.",
    _GOES_ON,
)
WAITING_FOR_POD = _reason("WaitingForPod", "The Job is there, its pod is not yet.", _GOES_ON)
POD_REFUSED = _reason(
    "PodRefused",
    "The API server refuses the attempt's pod; the message is its sentence (quota, Pod Security, LimitRange).",
    "Raise the quota, or change what the sentence names; the Job controller tries again by itself.",
)
WAITING_FOR_NODE = _reason(
    "WaitingForNode",
    "The attempt's pod is not scheduled; the message is the scheduler's.",
    "Free a GPU, or correct the target's nodeSelector and tolerations.",
)
PULLING = _reason(
    "Pulling", "The node pulls the image, mounts volumes or runs init containers.", _GOES_ON
)
CHECKING = _reason(
    "Checking", "The check container looks at the claim and at the image's versions.", _GOES_ON
)
TUNING = _reason("Tuning", "The engine starts and tunes.", _GOES_ON)
SEALING = _reason("Sealing", "The engine is ready; its files are checked and published.", _GOES_ON)
PROVING = _reason(
    "Proving",
    "The bundle is on the claim; the engine starts from it once more, to prove that it is warm then (spec.verify: BeforeRelease).",
    _GOES_ON,
)
IMPORTING = _reason(
    "Importing", "The folder that the annotation pretune.dev/import names is checked.", _GOES_ON
)
NAME_TAKEN = _reason(
    "NameTaken",
    "A Job of the attempt's name belongs to another object (a deleted cache of the same name, say).",
    "It is waited for; delete that Job if nothing else does.",
)

# --- the source
SOURCE_NOT_FOUND = _reason(
    "SourceNotFound",
    "spec.source.workloadRef names an object that is not there.",
    "Create it, or correct the name.",
)
SOURCE_NOT_SUPPORTED = _reason(
    "SourceNotSupported",
    "spec.source.workloadRef names a kind that the cluster does not have, or one without a pod template at spec.template.",
    "Name the object that holds the pod template, or use spec.source.template.",
)
SOURCE_FORBIDDEN = _reason(
    "SourceForbidden",
    "The operator may not read the object that spec.source.workloadRef names.",
    "Add its resource to the chart's value sources.extraRules, or use spec.source.template.",
)
SOURCE_INVALID = _reason(
    "SourceInvalid",
    "The API server refuses the pod that the template describes; the message is its own.",
    "Correct the template.",
)
ENGINE_AMBIGUOUS = _reason(
    "EngineAmbiguous",
    "Several containers ask for a GPU.",
    "Set spec.engineContainer to one of those named.",
)
ENGINE_NOT_FOUND = _reason(
    "EngineNotFound",
    "No container asks for a GPU, or spec.engineContainer names none of the pod's.",
    "Set spec.engineContainer to one of those named.",
)
TOO_MANY_FINGERPRINTS = _reason(
    "TooManyFingerprints",
    "More than four different engines want tactics of one target; the message names what keeps changing.",
    "Take what changes in each pod out of the engine's env and args, or give each engine its own cache.",
)

# --- what cannot be tuned as a copy
MULTI_POD_ENGINE = _reason(
    "MultiPodEngine",
    "The engine is one of several pods (LWS, Ray, JobSet, Grove, --headless, --nnodes): a copy would dial production.",
    "Not supported; run such an engine without pretune.",
)
SELF_REGISTERING = _reason(
    "SelfRegistering",
    "The engine registers itself from inside (Dynamo, LMCache controller, Mooncake): a copy could be sent traffic.",
    "Give spec.source.template without registration, or take the risk with spec.tuning.allow: [SelfRegistering].",
)
SHARED_GPU = _reason(
    "SharedGPU",
    "The GPU is time-sliced or a MIG slice: tactics measured there mean little.",
    "Tune on a whole GPU, or take the risk with spec.tuning.allow: [SharedGPU].",
)
SHARED_RESOURCE_CLAIM = _reason(
    "SharedResourceClaim",
    "The pod uses a ResourceClaim by name, which the serving pods hold.",
    "Use a resourceClaimTemplateName.",
)
SINGLE_USE_CLAIM = _reason(
    "SingleUseClaim",
    "The pod mounts a claim that only one pod may use at a time.",
    "Give spec.source.template without that volume.",
)
RELEASE_TOO_OLD = _reason(
    "ReleaseTooOld", "vLLM in the image does not persist tactics.", "Use vLLM 0.25 or newer."
)
SHARED_LAYOUT = _reason(
    "SharedLayout",
    "vLLM 0.27 to 0.31 on several GPUs keeps one file for all ranks: a warm start can hang for 30 minutes.",
    "Use vLLM 0.32 or newer.",
)
NO_PYTHON = _reason(
    "NoPython", "The image has no python3 (3.8 or newer) on its PATH.", "Use an image with python3."
)

# --- storage
BOUND = _reason("Bound", "The claim can be used.", "Nothing to do.")
WAIT_FOR_FIRST_CONSUMER = _reason(
    "WaitForFirstConsumer",
    "The claim binds when its first pod is scheduled; that is enough to go on.",
    "Nothing to do.",
)
CLAIM_PENDING = _reason(
    "ClaimPending",
    "The claim is not bound; the message is its newest event's.",
    "Look at the StorageClass and its provisioner; spec.storage.claim.storageClassName chooses another.",
)
CLAIM_NOT_FOUND = _reason(
    "ClaimNotFound",
    "spec.storage.existingClaim names a claim that is not there.",
    "Create it, or correct the name.",
)
CLAIM_TERMINATING = _reason(
    "ClaimTerminating",
    "The claim is being deleted; a new one is made when it is gone.",
    "End the pods that still use it.",
)
CLAIM_LOST = _reason(
    "ClaimLost",
    "The claim's volume is gone.",
    "Delete the claim; a new one is made and tuned anew.",
)
CLAIM_NOT_OURS = _reason(
    "ClaimNotOurs",
    "A claim of the name pretune-<cache> is there without our label.",
    "Rename it, label it pretune.dev/cache=<cache>, or name it in spec.storage.existingClaim.",
)
CLAIM_REFUSED = _reason(
    "ClaimRefused",
    "The API server refuses the claim; the message is its own.",
    "Correct spec.storage.claim.",
)
SINGLE_NODE = _reason(
    "SingleNode",
    "A ReadWriteOnce claim would hold all serving pods to one node.",
    "Use ReadWriteMany, or accept it with spec.tuning.allow: [SingleNode].",
)
SINGLE_POD = _reason(
    "SinglePod",
    "A ReadWriteOncePod claim can be mounted by one pod only.",
    "Use a ReadWriteMany claim.",
)
READ_ONLY_CLAIM = _reason(
    "ReadOnlyClaim",
    "The attempt could not write to the claim.",
    "Make the claim and its export writable for the engine's uid.",
    is_retried=True,
)
NO_SPACE = _reason(
    "NoSpace",
    "The claim has no space for the bundle.",
    "Enlarge the claim, or lower spec.bundleHistoryLimit.",
    is_retried=True,
)
UNSAFE_PATH = _reason(
    "UnsafePath",
    "A folder of ours on the claim is a link or no folder; it was not followed.",
    "Remove it; spec.storage.existingClaim.subPath must lead through real folders.",
)
ID_COLLISION = _reason(
    "IdCollision",
    "The claim holds a bundle of this id that was made of other inputs.",
    "Change spec.revision: it gives the bundle another id.",
)

# --- attempts that failed
IMAGE_PULL_FAILED = _reason(
    "ImagePullFailed",
    "An image cannot be pulled; the message is the kubelet's.",
    "Correct the image or the pull secret.",
    is_retried=True,
)
CONTAINER_CONFIG_ERROR = _reason(
    "ContainerConfigError",
    "A container cannot be made; the message is the kubelet's (a missing Secret or ConfigMap, a wrong command).",
    "Create what it names, or correct the template.",
    is_retried=True,
)
INIT_CONTAINER_FAILED = _reason(
    "InitContainerFailed",
    "An init container before the engine failed.",
    "See its message and log.",
    is_retried=True,
)
ENGINE_FAILED = _reason(
    "EngineFailed",
    "The engine exited or restarted; the message has its exit code and last lines.",
    "See the engine's log.",
    is_retried=True,
)
ENGINE_NOT_READY = _reason(
    "EngineNotReady",
    "The engine did not become ready within spec.tuning.deadlineSeconds.",
    "Raise the deadline, or see the engine's log for where it waits.",
    is_retried=True,
)
INCOMPLETE_RANKS = _reason(
    "IncompleteRanks",
    "The rank files have gaps or disagree. Not tried again when it repeats.",
    "See the engine's log of each rank.",
    is_retried=True,
)
CORRUPT_FILES = _reason(
    "CorruptFiles",
    "A file that the engine wrote is no JSON of the known form.",
    "See the engine's log.",
    is_retried=True,
)
UNSAFE_FILES = _reason(
    "UnsafeFiles",
    "The engine left links, devices, odd names, more than 10,000 files or 256 MiB; nothing was followed or published.",
    "See what in the image writes to the override directory.",
)
UNREADABLE_FILES = _reason(
    "UnreadableFiles",
    "Files that seal may not read, though it runs as the engine's uid.",
    "Run the engine as one uid.",
    is_retried=True,
)
SEAL_FAILED = _reason(
    "SealFailed",
    "Seal ended without a report, or by an error of its own.",
    "Report it with the message.",
    is_retried=True,
)
REPORT_LOST = _reason(
    "ReportLost",
    "The pod was gone before its report was read, and the claim has no bundle.",
    _GOES_ON,
    is_retried=True,
)
AGENT_MISSING = _reason(
    "AgentMissing",
    "The agent's ConfigMap was not there when the pod started.",
    _GOES_ON,
    is_retried=True,
)
DISRUPTED = _reason(
    "Disrupted",
    "Six pods of the attempt were evicted or preempted.",
    "Look at what evicts them; it is tried again.",
    is_retried=True,
)
NODE_LOST = _reason(
    "NodeLost",
    "The pod's node did not answer for 10 minutes.",
    "Look at the node; it is tried again.",
    is_retried=True,
)
JOB_FAILED = _reason(
    "JobFailed",
    "The Job ended without a pod to read; the message is its own.",
    "See the Job's events.",
    is_retried=True,
)
NOT_REPRODUCIBLE = _reason(
    "NotReproducible",
    "Started from the sealed bundle, the engine tuned again or changed its files; the message says how many entries, and which"
    " operations. The bundle is given to no pod.",
    "See what differs between two starts of this engine. Change spec.revision to tune again, or set spec.verify to Never"
    " and change spec.revision to live with it.",
)
WARM_HANG = _reason(
    "WarmHang",
    "Started from the sealed bundle, twice, the engine was not ready within its cold start's time and a minute; no pod gets it.",
    "See the engine's log; vLLM 0.27 to 0.31 can hang so on several GPUs: use 0.32 or newer. Change spec.revision to tune again.",
)
WARM_CRASH = _reason(
    "WarmCrash",
    "Started from the sealed bundle, the engine exited, twice; the message has exit code and last lines. No pod gets the bundle.",
    "See the message. Change spec.revision to tune again.",
)
PROOF_FAILED = _reason(
    "ProofFailed",
    "The proof could not be made, for a reason that is not the bundle's (its folder could not be filled, no report came, …).",
    "See the message; it is tried again.",
    is_retried=True,
)
IMPORT_REFUSED = _reason(
    "ImportRefused",
    "The folder that the annotation pretune.dev/import names does not fit: the message says why. Nothing was taken from it.",
    "Correct the annotation, or remove it; the bundle is tuned as usual.",
)
ALREADY_IMPORTED = _reason(
    "AlreadyImported",
    "The folder that the annotation pretune.dev/import names went into the bundle of another engine of this target.",
    "Nothing to do: the bundle is tuned as usual. To import once more, give the annotation another value.",
)

# --- consumers: events only
TUNED_AGAIN = _reason(
    "TunedAgain",
    "By their logs, pods that had their bundle tuned all the same, some or all entries; the message names pods and what differs.",
    "Make the serving engine the one that was tuned: the message names the argument, variable, GPU or version.",
)
HELD = _reason("Held", "New pods wait for their bundle while older ones serve.", _GOES_ON)
RELEASED = _reason(
    "Released",
    "Pods that waited for their bundle were let go; the message says why, and how long they waited.",
    _GOES_ON,
)
RESCUED = _reason(
    "Rescued",
    "A pod that could not start because of its volume or seed container was deleted once; its replacement is left alone.",
    "See the message for what failed; mend it, then change spec.revision.",
)

# --- consumers: why a bundle is undeliverable (status.bundles[].undeliverable.reason), beside the reasons of the storage
MOUNT_FAILED = _reason(
    "MountFailed",
    "For a minute, the claim could not be mounted into a serving pod, or pretune-seed hung on it for 90 s; see the message.",
    "Mend the storage; it is tried again after an hour, with another claim or spec.revision, or when sealed anew.",
)
VOLUME_UNREACHABLE = _reason(
    "VolumeUnreachable",
    "The claim's volume cannot be reached from the nodes that would take the pod; the message is the scheduler's.",
    "Use storage that every node of the target reaches; it is tried again with another claim or spec.revision.",
)
SEED_CANNOT_RUN = _reason(
    "SeedCannotRun",
    "The container pretune-seed could not be started in a serving pod, or kept failing; the message is the runtime's.",
    "Use an image with /bin/sh; it is tried again after 6 hours, with another claim or spec.revision, or when sealed anew.",
)

# --- a bundle's end
SUPERSEDED = _reason(
    "Superseded", "Nothing wants this bundle any more; its attempt was ended.", "Nothing to do."
)
UNWANTED = _reason(
    "Unwanted",
    "Nothing wants this bundle any more; its folder is deleted 10 minutes later.",
    "Nothing to do.",
)


def find_reason(name: object) -> Optional[Reason]:
    """Return the reason of this name; None for anything else."""
    return Reason(name) if isinstance(name, str) and name in REASONS else None


class Refused(Exception):
    """The user must act: becomes a condition, is never retried by itself. The message names the object and the field."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason, self.message = reason, message
