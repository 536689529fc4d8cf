"""Why a pod was given its bundle, or was left alone.

The pod has it as its annotation pretune.dev/reason: "<reason>: <message>".
"""

from __future__ import annotations

from typing import NewType

from pretune.api.reasons import Entry

DeliveryReason = NewType("DeliveryReason", str)

DELIVERIES: dict[str, Entry] = {}


def _reason(name: str, means: str, remedy: str) -> DeliveryReason:
    """Return the constant, after its entry was put into the catalogue."""
    DELIVERIES[name] = Entry(means, remedy)
    return DeliveryReason(name)


# --- given
GIVEN = _reason(
    "Given",
    "The bundle is sealed. The pod starts with it.",
    "Nothing to do.",
)
HELD = _reason(
    "Held",
    "The pod waits (scheduling gate pretune.dev/hold) until its bundle is sealed, while older pods"
    " serve.",
    "Nothing to do: the pod is released when the bundle is sealed, when its attempts fail, or"
    " after spec.hold.timeoutSeconds. To start it at once, set spec.hold.when to Never, or"
    " spec.suspend to true.",
)
NOT_SEALED_YET = _reason(
    "NotSealedYet",
    "The bundle is not sealed yet, and the pod is not held. It starts warm if the bundle is sealed"
    " before its engine starts, otherwise cold.",
    "Nothing to do. spec.hold.when: Always holds such pods too.",
)

# --- left alone
NO_CACHE = _reason(
    "NoCache",
    "The pod's namespace has no cache of the name in the label pretune.dev/cache.",
    "Create the cache, or correct the label.",
)
TOO_LARGE = _reason(
    "TooLarge",
    "The pod, its template or its cache is larger, or nested deeper, than pretune reads.",
    "Reduce what the message names. Bounds: docs/limits.md, under Input.",
)
DELIVERY_OFF = _reason(
    "DeliveryOff",
    "spec.delivery.mode is None.",
    "Set it to Auto.",
)
SUSPENDED = _reason(
    "Suspended",
    "spec.suspend is true, and the bundle is not sealed.",
    "Set spec.suspend to false.",
)
STORAGE_NOT_READY = _reason(
    "StorageNotReady",
    "The claim cannot be used: a pod that mounts it might not start.",
    "Read the cache's condition StorageReady.",
)
OVERRIDE_SET = _reason(
    "OverrideSet",
    "The engine sets VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR itself.",
    "Remove the variable, or the label pretune.dev/cache.",
)
ENGINE_UNKNOWN = _reason(
    "EngineUnknown",
    "It is unknown which container is the engine.",
    "Set spec.engineContainer of the cache.",
)
TARGET_UNKNOWN = _reason(
    "TargetUnknown",
    "The cache has several targets, and it is unknown to which of them the pod's node belongs; or"
    " the pod's nodeSelector or node affinity excludes the target's nodes.",
    "Annotate the pod template with pretune.dev/target, or give it the nodeSelector of one target."
    " Add a target for other nodes.",
)
OWNER_UNREADABLE = _reason(
    "OwnerUnreadable",
    "The pod's owner could not be read, so the pod's fingerprint is unknown.",
    "Nothing to do if it happens once. Otherwise read the webhook's log.",
)
NOT_TUNABLE = _reason(
    "NotTunable",
    "The bundle is Refused. The message says why.",
    "Read the bundle's reason in the cache's status.",
)
TUNING_FAILED = _reason(
    "TuningFailed",
    "The bundle's attempts failed.",
    "Read the bundle's reason in the cache's status.",
)
NOTHING_TO_TUNE = _reason(
    "NothingToTune",
    "The engine tunes nothing: the bundle is empty.",
    "Nothing to do.",
)
UNDELIVERABLE = _reason(
    "Undeliverable",
    "A pod could not start with this bundle (because of its volume or the seed container), and was"
    " replaced without it; or the seed container cannot run in the pod's image.",
    "Repair what the message names. A volume is tried again after one hour, or after 5 minutes if"
    " pods of one node only could not start. A changed spec.revision tries at once.",
)
SEED_UNTRIED = _reason(
    "SeedUntried",
    "The pod is a Job's, or has no controller: it could not be replaced if pretune-seed kept it from"
    " starting. Whether pretune-seed can run in its image is not known before the bundle is sealed.",
    "Nothing to do: pods that are created after the bundle is sealed are given it. Name the image"
    " by a version or a digest if its tag can move.",
)
NAMES_COLLIDE = _reason(
    "NamesCollide",
    "The pod has a volume, container or mount path with a name that is reserved.",
    "Rename what the message names. Reserved are pretune-claim, pretune-agent, pretune-tactics,"
    " pretune-seed, and paths below /pretune.",
)
