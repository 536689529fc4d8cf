"""Every reason that a person can meet, with what it means and what to do: docs/reasons.md is made of it, tests enumerate it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
            "The cache names no source, and no pod has its label.",
            "Label a pod template with pretune.dev/cache, or set spec.source.workloadRef or spec.source.template.",
        ),
        "Suspended": Reason(
            "spec.suspend is true: nothing new is started.", "Set spec.suspend to false."
        ),
        "WaitingForClaim": Reason(
            "The claim cannot be used yet; see the condition StorageReady.", wait
        ),
        "Inspecting": Reason("The claim is read for bundles that are there already.", wait),
        "Queued": Reason(
            "Another attempt of this cache runs, or the Job is suspended (Kueue).", wait
        ),
        "Retrying": Reason(
            "An attempt failed; the next one waits for its time. The message says why and when.",
            wait,
        ),
        "WaitingForPod": Reason("The Job is there, its pod is not yet.", wait),
        "PodRefused": Reason(
            "The API server refuses the attempt's pod; the message is its sentence (quota, Pod Security, LimitRange).",
            "Raise the quota, or change what the sentence names; the Job controller tries again by itself.",
        ),
        "WaitingForNode": Reason(
            "The attempt's pod is not scheduled; the message is the scheduler's.",
            "Free a GPU, or correct the target's nodeSelector and tolerations.",
        ),
        "Pulling": Reason(
            "The node pulls the image, mounts volumes or runs init containers.", wait
        ),
        "Checking": Reason(
            "The check container looks at the claim and at the image's versions.", wait
        ),
        "Tuning": Reason("The engine starts and tunes.", wait),
        "Sealing": Reason("The engine is ready; its files are checked and published.", wait),
        "Proving": Reason(
            "The bundle is on the claim; the engine starts from it once more, to prove that it is warm then (spec.verify: BeforeRelease).",
            wait,
        ),
        "Importing": Reason(
            "The folder that the annotation pretune.dev/import names is checked.", wait
        ),
        "NameTaken": Reason(
            "A Job of the attempt's name belongs to another object (a deleted cache of the same name, say).",
            "It is waited for; delete that Job if nothing else does.",
        ),
        # --- the source
        "SourceNotFound": Reason(
            "spec.source.workloadRef names an object that is not there.",
            "Create it, or correct the name.",
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
            "The pod uses a ResourceClaim by name, which the serving pods hold.",
            "Use a resourceClaimTemplateName.",
        ),
        "SingleUseClaim": Reason(
            "The pod mounts a claim that only one pod may use at a time.",
            "Give spec.source.template without that volume.",
        ),
        "ReleaseTooOld": Reason(
            "vLLM in the image does not persist tactics.", "Use vLLM 0.25 or newer."
        ),
        "SharedLayout": Reason(
            "vLLM 0.27 to 0.31 on several GPUs keeps one file for all ranks: a warm start can hang for 30 minutes.",
            "Use vLLM 0.32 or newer.",
        ),
        "NoPython": Reason(
            "The image has no python3 (3.8 or newer) on its PATH.", "Use an image with python3."
        ),
        # --- storage
        "Bound": Reason("The claim can be used.", "Nothing to do."),
        "WaitForFirstConsumer": Reason(
            "The claim binds when its first pod is scheduled; that is enough to go on.",
            "Nothing to do.",
        ),
        "ClaimPending": Reason(
            "The claim is not bound; the message is its newest event's.",
            "Look at the StorageClass and its provisioner; spec.storage.claim.storageClassName chooses another.",
        ),
        "ClaimNotFound": Reason(
            "spec.storage.existingClaim names a claim that is not there.",
            "Create it, or correct the name.",
        ),
        "ClaimTerminating": Reason(
            "The claim is being deleted; a new one is made when it is gone.",
            "End the pods that still use it.",
        ),
        "ClaimLost": Reason(
            "The claim's volume is gone.", "Delete the claim; a new one is made and tuned anew."
        ),
        "ClaimNotOurs": Reason(
            "A claim of the name pretune-<cache> is there without our label.",
            "Rename it, label it pretune.dev/cache=<cache>, or name it in spec.storage.existingClaim.",
        ),
        "ClaimRefused": Reason(
            "The API server refuses the claim; the message is its own.",
            "Correct spec.storage.claim.",
        ),
        "SingleNode": Reason(
            "A ReadWriteOnce claim would hold all serving pods to one node.",
            "Use ReadWriteMany, or accept it with spec.tuning.allow: [SingleNode].",
        ),
        "SinglePod": Reason(
            "A ReadWriteOncePod claim can be mounted by one pod only.", "Use a ReadWriteMany claim."
        ),
        "ReadOnlyClaim": Reason(
            "The attempt could not write to the claim.",
            "Make the claim and its export writable for the engine's uid.",
            True,
        ),
        "NoSpace": Reason(
            "The claim has no space for the bundle.",
            "Enlarge the claim, or lower spec.bundleHistoryLimit.",
            True,
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
            "An image cannot be pulled; the message is the kubelet's.",
            "Correct the image or the pull secret.",
            True,
        ),
        "ContainerConfigError": Reason(
            "A container cannot be made; the message is the kubelet's (a missing Secret or ConfigMap, a wrong command).",
            "Create what it names, or correct the template.",
            True,
        ),
        "InitContainerFailed": Reason(
            "An init container before the engine failed.", "See its message and log.", True
        ),
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
            "A file that the engine wrote is no JSON of the known form.",
            "See the engine's log.",
            True,
        ),
        "UnsafeFiles": Reason(
            "The engine left links, devices, odd names, more than 10,000 files or 256 MiB; nothing was followed or published.",
            "See what in the image writes to the override directory.",
        ),
        "UnreadableFiles": Reason(
            "Files that seal may not read, though it runs as the engine's uid.",
            "Run the engine as one uid.",
            True,
        ),
        "SealFailed": Reason(
            "Seal ended without a report, or by an error of its own.",
            "Report it with the message.",
            True,
        ),
        "ReportLost": Reason(
            "The pod was gone before its report was read, and the claim has no bundle.", wait, True
        ),
        "AgentMissing": Reason(
            "The agent's ConfigMap was not there when the pod started.", wait, True
        ),
        "Disrupted": Reason(
            "Six pods of the attempt were evicted or preempted.",
            "Look at what evicts them; it is tried again.",
            True,
        ),
        "NodeLost": Reason(
            "The pod's node did not answer for 10 minutes.",
            "Look at the node; it is tried again.",
            True,
        ),
        "JobFailed": Reason(
            "The Job ended without a pod to read; the message is its own.",
            "See the Job's events.",
            True,
        ),
        "NotReproducible": Reason(
            "Started from the sealed bundle, the engine tuned again or changed its files; the message says how many entries, and which"
            " operations. The bundle is given to no pod.",
            "See what differs between two starts of this engine. Change spec.revision to tune again, or set spec.verify to Never"
            " and change spec.revision to live with it.",
        ),
        "WarmHang": Reason(
            "Started from the sealed bundle, twice, the engine was not ready within its cold start's time and a minute; no pod gets it.",
            "See the engine's log; vLLM 0.27 to 0.31 can hang so on several GPUs: use 0.32 or newer. Change spec.revision to tune again.",
        ),
        "WarmCrash": Reason(
            "Started from the sealed bundle, the engine exited, twice; the message has exit code and last lines. No pod gets the bundle.",
            "See the message. Change spec.revision to tune again.",
        ),
        "ProofFailed": Reason(
            "The proof could not be made, for a reason that is not the bundle's (its folder could not be filled, no report came, …).",
            "See the message; it is tried again.",
            True,
        ),
        "ImportRefused": Reason(
            "The folder that the annotation pretune.dev/import names does not fit: the message says why. Nothing was taken from it.",
            "Correct the annotation, or remove it; the bundle is tuned as usual.",
        ),
        "AlreadyImported": Reason(
            "The folder that the annotation pretune.dev/import names went into the bundle of another engine of this target.",
            "Nothing to do: the bundle is tuned as usual. To import once more, give the annotation another value.",
        ),
        # --- consumers: events only
        "TunedAgain": Reason(
            "By their logs, pods that had their bundle tuned all the same, some or all entries; the message names pods and what differs.",
            "Make the serving engine the one that was tuned: the message names the argument, variable, GPU or version.",
        ),
        "Held": Reason("New pods wait for their bundle while older ones serve.", wait),
        "Released": Reason(
            "Pods that waited for their bundle were let go; the message says why, and how long they waited.",
            wait,
        ),
        "Rescued": Reason(
            "A pod that could not start because of its volume or seed container was deleted once; its replacement is left alone.",
            "See the message for what failed; mend it, then change spec.revision.",
        ),
        # --- consumers: why a bundle is undeliverable (status.bundles[].undeliverable.reason), beside the reasons of the storage
        "MountFailed": Reason(
            "For a minute, the claim could not be mounted into a serving pod, or pretune-seed hung on it for 90 s; see the message.",
            "Mend the storage; it is tried again after an hour, with another claim or spec.revision, or when sealed anew.",
        ),
        "VolumeUnreachable": Reason(
            "The claim's volume cannot be reached from the nodes that would take the pod; the message is the scheduler's.",
            "Use storage that every node of the target reaches; it is tried again with another claim or spec.revision.",
        ),
        "SeedCannotRun": Reason(
            "The container pretune-seed could not be started in a serving pod, or kept failing; the message is the runtime's.",
            "Use an image with /bin/sh; it is tried again after 6 hours, with another claim or spec.revision, or when sealed anew.",
        ),
        # --- a bundle's end
        "Superseded": Reason(
            "Nothing wants this bundle any more; its attempt was ended.", "Nothing to do."
        ),
        "Unwanted": Reason(
            "Nothing wants this bundle any more; its folder is deleted 10 minutes later.",
            "Nothing to do.",
        ),
    }


REASONS: Mapping[str, Reason] = _reasons()

# Why a consumer was given what it was given: annotation pretune.dev/reason of the pod, as "<reason>: <message>".
DELIVERIES: Mapping[str, Reason] = {
    # --- given
    "Given": Reason("The bundle is sealed; the pod starts with it.", "Nothing to do."),
    "Held": Reason(
        "The pod waits (scheduling gate pretune.dev/hold) until its bundle is sealed, while older pods serve.",
        "Nothing to do: it is released when the bundle is sealed, when its attempt fails, or after spec.hold.timeoutSeconds."
        " To start it at once: set spec.hold.when to Never, or spec.suspend to true.",
    ),
    "NotSealedYet": Reason(
        "The bundle is not there yet and the pod is not held; it starts warm if the bundle is sealed before the pod's engine starts,"
        " else cold.",
        "Nothing to do. spec.hold.when: Always holds such pods too.",
    ),
    # --- left alone
    "NoCache": Reason(
        "The label pretune.dev/cache names a cache that is not in the pod's namespace.",
        "Create it, or correct the label.",
    ),
    "DeliveryOff": Reason("spec.delivery.mode is None.", "Set it to Auto."),
    "Suspended": Reason(
        "spec.suspend is true, and the bundle is not sealed.", "Set spec.suspend to false."
    ),
    "StorageNotReady": Reason(
        "The claim cannot be used; a pod that mounts it might not start.",
        "See the cache's condition StorageReady.",
    ),
    "OverrideSet": Reason(
        "The engine sets VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR itself.",
        "Remove the variable, or the label pretune.dev/cache.",
    ),
    "EngineUnknown": Reason(
        "Which container is the engine cannot be told.", "Set spec.engineContainer of the cache."
    ),
    "TargetUnknown": Reason(
        "The cache has several targets, and which one the pod's node belongs to cannot be told.",
        "Annotate the pod template with pretune.dev/target, or give it the nodeSelector of one target.",
    ),
    "OwnerUnreadable": Reason(
        "The pod's owner could not be read, so that its fingerprint is not known.",
        "Nothing to do if it passes; else see the webhook's log.",
    ),
    "NotTunable": Reason(
        "The bundle is Refused; the message says why.",
        "See the bundle's reason in the cache's status.",
    ),
    "TuningFailed": Reason(
        "The bundle's attempts failed.", "See the bundle's reason in the cache's status."
    ),
    "NothingToTune": Reason("The engine tunes nothing: the bundle is empty.", "Nothing to do."),
    "Undeliverable": Reason(
        "A pod could not start with this bundle (its volume or the seed container), and was replaced without it.",
        "Mend what the bundle's message names. A volume is tried again after an hour; a changed spec.revision"
        " tries at once.",
    ),
    "NamesCollide": Reason(
        "The pod has a volume, container or mount path that ours would collide with.",
        "Rename what the message names: pretune-claim, pretune-agent, pretune-tactics, pretune-seed, and paths below /pretune are ours.",
    ),
}

# What a person should change though everything works: status.warnings, and a Warning event when it appears.
ADVICE: Mapping[str, Reason] = {
    "ProgressDeadlineShort": Reason(
        "A hold may be longer than the Deployment's progressDeadlineSeconds: kubectl rollout status, Helm and Argo CD would report"
        " a failure until the pods are released.",
        "Set spec.progressDeadlineSeconds of the Deployment above spec.hold.timeoutSeconds of the cache.",
    ),
    "StartupProbeShort": Reason(
        "The engine's startup probe allows less time than a cold start took: a pod that starts cold is killed before it is ready.",
        "Raise failureThreshold or periodSeconds of the startup probe.",
    ),
    "MovingTag": Reason(
        "The engine's image has a tag that moves: other content under the same name gets the old bundle.",
        "Name the image by a version or a digest; change spec.revision after the tag moved.",
    ),
    "LabelInSelector": Reason(
        "The workload's selector contains the label pretune.dev/cache, which can never be changed there.",
        "Put the label in the pod template only.",
    ),
    "StaleImage": Reason(
        "Serving pods run another image under the same name than the bundle was tuned with.",
        "Change spec.revision, so that it is tuned again.",
    ),
}


class Refused(Exception):
    """The user must act: becomes a condition, is never retried by itself. The message names the object and the field."""

    def __init__(self, reason: str, message: str) -> None:
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {message}")
        self.reason, self.message = reason, message
