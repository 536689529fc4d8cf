"""Reasons on conditions, bundles and events: each a constant with its catalogue entry beside it.

docs/reasons.md is generated from this catalogue. The agent has it too: standard library only,
Python 3.8.
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


_GOES_ON = "Nothing to do: pretune continues."


# --- all is well, or on its way
SEALED = _reason(
    "Sealed",
    "The bundle is on the claim: checked and immutable.",
    "Nothing to do.",
)
NOTHING_TO_TUNE = _reason(
    "NothingToTune",
    "The engine started and tuned nothing. The bundle is sealed and empty.",
    "Nothing to do where no kernel is tunable: dense FP8 on Hopper, compute capability below 9.0,"
    " -O0, a FlashInfer without cubins or nvcc, --no-enable-flashinfer-autotune. Otherwise read"
    " the engine's log.",
)
NO_SOURCE = _reason(
    "NoSource",
    "The cache names no source, and no pod has its label.",
    "Label a pod template with pretune.dev/cache, or set spec.source.workloadRef or"
    " spec.source.template.",
)
SUSPENDED = _reason(
    "Suspended",
    "spec.suspend is true: nothing new is started.",
    "Set spec.suspend to false.",
)
WAITING_FOR_CLAIM = _reason(
    "WaitingForClaim",
    "The claim cannot be used yet. The condition StorageReady says why.",
    _GOES_ON,
)
INSPECTING = _reason(
    "Inspecting",
    "A Job looks for bundles that are on the claim already.",
    _GOES_ON,
)
QUEUED = _reason(
    "Queued",
    "Another attempt of this cache runs or ends, or the Job is suspended (Kueue). If Kueue"
    " preempted the Job, the message has Kueue's message.",
    "Nothing to do: pretune continues; or raise the quota of its Kueue queue.",
)
WAITING_FOR_TURN = _reason(
    "WaitingForTurn",
    "As many attempts of all caches run as the chart's controller.maxConcurrentAttempts allows, or"
    " half of that number in this namespace, or ten times that half is open in it, suspended or"
    " without a node. The message says which, and which place this cache has.",
    "Nothing to do: its attempt starts when its turn comes. An administrator may raise"
    " controller.maxConcurrentAttempts.",
)
RETRYING = _reason(
    "Retrying",
    "An attempt failed, and the next one has not started yet. The message says why and when.",
    _GOES_ON,
)
WAITING_FOR_POD = _reason(
    "WaitingForPod",
    "The Job exists, its pod does not yet.",
    _GOES_ON,
)
POD_REFUSED = _reason(
    "PodRefused",
    "The API server refuses the attempt's pod. The message is the API server's (quota, Pod"
    " Security, LimitRange).",
    "Raise the quota, or change what the message names. Kubernetes then creates the pod.",
)
WAITING_FOR_NODE = _reason(
    "WaitingForNode",
    "The attempt's pod is not scheduled. The message is the scheduler's.",
    "Free a GPU, or correct the target's nodeSelector and tolerations.",
)
PULLING = _reason(
    "Pulling",
    "The node pulls the image, mounts volumes or runs init containers.",
    _GOES_ON,
)
CHECKING = _reason(
    "Checking",
    "The check container reads the claim and the versions in the image.",
    _GOES_ON,
)
TUNING = _reason(
    "Tuning",
    "The engine starts and tunes.",
    _GOES_ON,
)
SEALING = _reason(
    "Sealing",
    "The engine is ready. Its files are checked and published.",
    _GOES_ON,
)
PROVING = _reason(
    "Proving",
    "The bundle is on the claim. The engine is started from it once more, to prove that it then"
    " starts warm (spec.verify: BeforeRelease).",
    _GOES_ON,
)
IMPORTING = _reason(
    "Importing",
    "The folder that the annotation pretune.dev/import names is checked.",
    _GOES_ON,
)
NAME_TAKEN = _reason(
    "NameTaken",
    "A Job that is not this cache's has the attempt's name, or an attempt of a deleted cache with"
    " the same name has not ended.",
    "pretune waits until it is gone. Delete it if nothing else does.",
)

MALFORMED = _reason(
    "Malformed",
    "A part of the cache's status, or a label or annotation of an object with the cache's label,"
    " does not have the form in which pretune writes it. The message names it; pretune ignores it.",
    "Nothing to do for the status: the claim is read again. Delete an object that the message"
    " names, or remove the label pretune.dev/cache from it.",
)

# --- the source
SOURCE_NOT_FOUND = _reason(
    "SourceNotFound",
    "spec.source.workloadRef names an object that does not exist.",
    "Create the object, or correct the name.",
)
SOURCE_NOT_SUPPORTED = _reason(
    "SourceNotSupported",
    "spec.source.workloadRef names a kind that the cluster does not have, or a kind without a pod"
    " template in spec.template.",
    "Name the object that holds the pod template, or use spec.source.template.",
)
SOURCE_FORBIDDEN = _reason(
    "SourceForbidden",
    "The controller may not read the object that spec.source.workloadRef names.",
    "Add its resource to the chart's value sources.extraRules, or use spec.source.template.",
)
SOURCE_INVALID = _reason(
    "SourceInvalid",
    "The API server refuses the pod that the template describes (the message is the API server's), or"
    " the pods may run on no target's nodes.",
    "Correct the template, or spec.targets.",
)
TOO_LARGE = _reason(
    "TooLarge",
    "The cache, or the object with the template, is larger, or nested deeper, than pretune reads. Of"
    " a bundle: a variable of the engine is, once the variables in it are replaced.",
    "Reduce what the message names. Bounds: docs/limits.md, under Input.",
)
ENGINE_AMBIGUOUS = _reason(
    "EngineAmbiguous",
    "Several containers ask for a GPU; or none does, and several have a device claim.",
    "Set spec.engineContainer to one of the containers in the message.",
)
ENGINE_NOT_FOUND = _reason(
    "EngineNotFound",
    "No container asks for a GPU (nvidia.com/gpu, or a device claim), or the pod has no container of"
    " the name in spec.engineContainer. A copy of an engine without a GPU of its own could run on"
    " one that serves.",
    "Add nvidia.com/gpu to the resources of the engine's container, or correct"
    " spec.engineContainer.",
)
TOO_MANY_FINGERPRINTS = _reason(
    "TooManyFingerprints",
    "More than four different engines want tactics for one target. The message names what differs"
    " between their pods.",
    "Remove what differs in each pod from the engine's env and args, or give each engine its own"
    " cache.",
)

# --- what cannot be tuned as a copy
MULTI_POD_ENGINE = _reason(
    "MultiPodEngine",
    "The engine is one of several pods (LWS, Ray, JobSet, Grove, --headless, --nnodes): a copy"
    " would connect to production.",
    "Not supported. Run such an engine without pretune.",
)
HOST_NETWORK = _reason(
    "HostNetwork",
    "The engine runs on its node's network, and names an interface or an address of the node. A copy"
    " has a network of its own, so that no serving pod can answer for it.",
    "Remove what the message names from the engine, or hostNetwork from the pod template.",
)
SELF_REGISTERING = _reason(
    "SelfRegistering",
    "The engine registers itself from inside (Dynamo, ModelExpress, the LMCache controller, LMCache"
    " senders, Mooncake), or a controller pairs its pods (FMA): a copy could get traffic.",
    "Set spec.source.template without the registration, or accept the risk with spec.tuning.allow:"
    " [SelfRegistering].",
)
NODE_GPUS = _reason(
    "NodeGPUs",
    "The engine sees GPUs of its node that other pods have (NVIDIA_VISIBLE_DEVICES): a copy would"
    " run on one that serves.",
    "Remove NVIDIA_VISIBLE_DEVICES from the engine's env. The device plugin sets it.",
)
SHARED_GPU = _reason(
    "SharedGPU",
    "The GPU is time-sliced or a MIG slice: timings that are measured there are not reliable, and an"
    " engine that serves may be disturbed.",
    "Tune on a whole GPU, or accept the risk with spec.tuning.allow: [SharedGPU].",
)
SHARED_RESOURCE_CLAIM = _reason(
    "SharedResourceClaim",
    "The pod uses a ResourceClaim by name, which the serving pods hold.",
    "Use a resourceClaimTemplateName.",
)
SINGLE_USE_CLAIM = _reason(
    "SingleUseClaim",
    "The pod mounts a claim that only one pod may use at a time.",
    "Set spec.source.template without that volume.",
)
VOLUME_UNAVAILABLE = _reason(
    "VolumeUnavailable",
    "A volume of the engine is not available to an attempt. A ReadWriteOnce claim is used by no pod"
    " that has a node, or by a pod on another node, which comes first; or the kubelet cannot attach"
    " or mount a volume. The message names the claim or is the kubelet's.",
    "Attempts run on the node where the claim is in use: let a serving pod run there, with a GPU free"
    " beside it. Use a ReadWriteMany or ReadOnlyMany claim for models, or repair what the kubelet"
    " names.",
    is_retried=True,
)
RELEASE_TOO_OLD = _reason(
    "ReleaseTooOld",
    "vLLM in the image does not persist tactics.",
    "Use vLLM 0.25 or newer.",
)
SHARED_LAYOUT = _reason(
    "SharedLayout",
    "vLLM 0.27 to 0.31 on several GPUs keeps one file for all ranks: a warm start can hang for 30"
    " minutes.",
    "Use vLLM 0.32 or newer.",
)
NO_PYTHON = _reason(
    "NoPython",
    "The image has no python3 (3.8 or newer) on its PATH.",
    "Use an image with python3.",
)

# --- storage
BOUND = _reason(
    "Bound",
    "The claim can be used.",
    "Nothing to do.",
)
WAIT_FOR_FIRST_CONSUMER = _reason(
    "WaitForFirstConsumer",
    "The claim binds when its first pod is scheduled. That is enough to go on.",
    "Nothing to do.",
)
CLAIM_PENDING = _reason(
    "ClaimPending",
    "The claim is not bound. The message is that of its newest event.",
    "Look at the StorageClass and its provisioner, or choose another class in"
    " spec.storage.claim.storageClassName.",
)
CLAIM_NOT_FOUND = _reason(
    "ClaimNotFound",
    "spec.storage.existingClaim names a claim that does not exist.",
    "Create the claim, or correct the name.",
)
CLAIM_TERMINATING = _reason(
    "ClaimTerminating",
    "The claim is being deleted. A new one is created when it is gone.",
    "End the pods that still use the claim.",
)
CLAIM_LOST = _reason(
    "ClaimLost",
    "The claim's volume is gone.",
    "Delete the claim. A new one is created, and its bundles are tuned again.",
)
CLAIM_NOT_OURS = _reason(
    "ClaimNotOurs",
    "A claim named pretune-<cache> exists, and does not have our label.",
    "Rename the claim, label it pretune.dev/cache=<cache>, or name it in"
    " spec.storage.existingClaim.",
)
CLAIM_REFUSED = _reason(
    "ClaimRefused",
    "The API server refuses the claim. The message is the API server's.",
    "Correct spec.storage.claim.",
)
SINGLE_NODE = _reason(
    "SingleNode",
    "A ReadWriteOnce claim would bind all serving pods to one node.",
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
    "One of our folders on the claim is a link, or not a folder. It was not followed.",
    "Remove it. spec.storage.existingClaim.subPath must lead through real folders.",
)
ID_COLLISION = _reason(
    "IdCollision",
    "The claim holds a bundle with this id that was made from other inputs.",
    "Change spec.revision: it gives the bundle another id.",
)

# --- attempts that failed
IMAGE_PULL_FAILED = _reason(
    "ImagePullFailed",
    "An image cannot be pulled. The message is the kubelet's.",
    "Correct the image or the pull secret.",
    is_retried=True,
)
CONTAINER_CONFIG_ERROR = _reason(
    "ContainerConfigError",
    "A container cannot be created. The message is the kubelet's (a missing Secret or ConfigMap, a"
    " wrong command).",
    "Create what the message names, or correct the template.",
    is_retried=True,
)
INIT_CONTAINER_FAILED = _reason(
    "InitContainerFailed",
    "An init container before the engine failed.",
    "Read its message and its log.",
    is_retried=True,
)
ENGINE_FAILED = _reason(
    "EngineFailed",
    "The engine exited or restarted. The message has its exit code, the cause as far as it is known,"
    " and the command that shows its log.",
    "Read the engine's log: its pod stays for an hour.",
    is_retried=True,
)
ENGINE_NOT_READY = _reason(
    "EngineNotReady",
    "The engine was not ready within spec.tuning.deadlineSeconds.",
    "Raise the deadline, or read in the engine's log where it waits.",
    is_retried=True,
)
READINESS_UNKNOWN = _reason(
    "ReadinessUnknown",
    "The engine wrote nothing, and whether it is ready is unknown: its readiness probe is not an"
    " httpGet, and it does not answer as ready at the URLs in the message.",
    "Give the engine an httpGet readiness probe, and the cache's annotation pretune.dev/retry"
    " another value: a probe does not change the fingerprint.",
)
INCOMPLETE_RANKS = _reason(
    "IncompleteRanks",
    "The rank files have gaps or disagree. When this repeats, no further attempt is made.",
    "Read the engine's log of each rank.",
    is_retried=True,
)
CORRUPT_FILES = _reason(
    "CorruptFiles",
    "A file that the engine wrote is not JSON of a known form.",
    "Read the engine's log.",
    is_retried=True,
)
UNSAFE_FILES = _reason(
    "UnsafeFiles",
    "The engine left links, devices, invalid names, more than 10,000 files or more than 256 MiB."
    " Nothing was followed or published.",
    "Find out what in the image writes to the override directory.",
)
UNREADABLE_FILES = _reason(
    "UnreadableFiles",
    "Seal cannot read some files, though it runs with the engine's uid.",
    "Run all processes of the engine with one uid.",
    is_retried=True,
)
SEAL_FAILED = _reason(
    "SealFailed",
    "Seal ended without a report, or because of an error in seal.",
    "Report the message to the maintainers of pretune.",
    is_retried=True,
)
REPORT_LOST = _reason(
    "ReportLost",
    "The pod was gone before its report was read, and the bundle is not on the claim.",
    _GOES_ON,
    is_retried=True,
)
AGENT_MISSING = _reason(
    "AgentMissing",
    "The agent's ConfigMap was missing when the pod started.",
    _GOES_ON,
    is_retried=True,
)
AGENT_CHANGED = _reason(
    "AgentChanged",
    "The agent's ConfigMap does not hold the agent of this release: something other than pretune"
    " wrote it. Each container compares it before it runs it, so nothing of it ran.",
    "pretune writes it again. Find out who may write ConfigMaps in this namespace.",
    is_retried=True,
)
DISRUPTED = _reason(
    "Disrupted",
    "Six pods of the attempt were evicted, preempted or deleted. Suspensions (Kueue) do not count.",
    "Find out what evicts them. The attempt is tried again.",
    is_retried=True,
)
NODE_LOST = _reason(
    "NodeLost",
    "The pod's node did not answer for 10 minutes.",
    "Look at the node. The attempt is tried again.",
    is_retried=True,
)
JOB_FAILED = _reason(
    "JobFailed",
    "The Job ended, and its pod could not be read. The message is the Job's.",
    "Read the Job's events.",
    is_retried=True,
)
NOT_REPRODUCIBLE = _reason(
    "NotReproducible",
    "Started from the sealed bundle, the engine tuned again or changed its files. The message has"
    " the number of entries and their operations. No pod is given the bundle.",
    "Find out what differs between two starts of this engine. Change spec.revision to tune again."
    " To accept the bundle, set spec.verify to Never and change spec.revision.",
)
WARM_HANG = _reason(
    "WarmHang",
    "Started from the sealed bundle, the engine was not ready within its cold start's time plus"
    " one minute, twice. No pod is given the bundle.",
    "Read the engine's log. vLLM 0.27 to 0.31 can hang like this on several GPUs: use 0.32 or"
    " newer. Change spec.revision to tune again.",
)
WARM_CRASH = _reason(
    "WarmCrash",
    "Started from the sealed bundle, the engine exited, twice. The message has its exit code and"
    " last lines. No pod is given the bundle.",
    "Read the message. Change spec.revision to tune again.",
)
PROOF_FAILED = _reason(
    "ProofFailed",
    "The proof could not be finished, and the bundle is not the cause (its folder could not be"
    " filled, no report came, …).",
    "Read the message. The proof is tried again.",
    is_retried=True,
)
IMPORT_REFUSED = _reason(
    "ImportRefused",
    "The folder that the annotation pretune.dev/import names does not fit. The message says why."
    " Nothing was imported.",
    "Correct the annotation, or remove it. The bundle is tuned as usual.",
)
ALREADY_IMPORTED = _reason(
    "AlreadyImported",
    "The folder that the annotation pretune.dev/import names was imported into the bundle of"
    " another engine of this target.",
    "Nothing to do: the bundle is tuned as usual. To import again, give the annotation another"
    " value.",
)

# --- consumers: events only
TUNED_AGAIN = _reason(
    "TunedAgain",
    "Pods that had their bundle tuned some or all entries again, according to their logs. The"
    " message names the pods and what differs.",
    "Make the serving engine equal to the one that was tuned. The message names the argument,"
    " variable, GPU or version.",
)
HELD = _reason(
    "Held",
    "New pods wait for their bundle while older pods serve.",
    _GOES_ON,
)
RELEASED = _reason(
    "Released",
    "Held pods were released. The message says why, and how long they waited.",
    _GOES_ON,
)
RESCUED = _reason(
    "Rescued",
    "A pod that could not start because of pretune's volume or seed container was deleted once."
    " Its replacement starts without the bundle. A Job's pod, and one without a controller, is only"
    " named.",
    "The message says what failed. Repair it, then change spec.revision. Delete the pod yourself"
    " where the message says so.",
)

# --- consumers: why a bundle is undeliverable (status.bundles[].undeliverable.reason); the reasons
# of the storage count there too
MOUNT_FAILED = _reason(
    "MountFailed",
    "The claim could not be mounted into a serving pod for one minute, or pretune-seed hung on it"
    " for 90 s. See the message.",
    "Repair the storage. The bundle is delivered again after one hour (after 5 minutes if pods of"
    " one node only could not start), with another claim or spec.revision, or when it is sealed"
    " again.",
)
VOLUME_UNREACHABLE = _reason(
    "VolumeUnreachable",
    "The claim's volume cannot be reached from the nodes that fit the pod. The message is the"
    " scheduler's.",
    "Use storage that every node of the target can reach. The bundle is delivered again with"
    " another claim or spec.revision.",
)
SEED_CANNOT_RUN = _reason(
    "SeedCannotRun",
    "The container pretune-seed could not be started in a serving pod, or failed again and again."
    " The message is the container runtime's.",
    "Use an image with /bin/sh. The bundle is delivered again after 6 hours (after 5 minutes if pods"
    " of one node only could not start), with another claim or spec.revision, or when it is sealed"
    " again.",
)

# --- a bundle's end
SUPERSEDED = _reason(
    "Superseded",
    "Nothing wants this bundle any more, or a pod that serves needs a claim that its attempt uses."
    " The attempt was ended, and does not count.",
    "Nothing to do.",
)
UNWANTED = _reason(
    "Unwanted",
    "Nothing wants this bundle any more. Its folder is deleted 10 minutes later.",
    "Nothing to do.",
)


def find_reason(name: object) -> Optional[Reason]:
    """Return the reason of this name; None for anything else."""
    return Reason(name) if isinstance(name, str) and name in REASONS else None


class Refused(Exception):
    """The user must act: it becomes a condition, and is not retried.

    The message names the object and the field. It may quote what a tenant wrote, and is cut.
    """

    MAX_MESSAGE = 4096  # characters

    def __init__(self, reason: Reason, message: str) -> None:
        message = message[: self.MAX_MESSAGE]
        super().__init__(f"{reason}: {message}")
        self.reason, self.message = reason, message
