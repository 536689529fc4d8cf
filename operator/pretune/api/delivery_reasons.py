"""Why a consumer was given what it was given: annotation pretune.dev/reason of the pod, as "<reason>: <message>"."""

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
GIVEN = _reason("Given", "The bundle is sealed; the pod starts with it.", "Nothing to do.")
HELD = _reason(
    "Held",
    "The pod waits (scheduling gate pretune.dev/hold) until its bundle is sealed, while older pods serve.",
    "Nothing to do: it is released when the bundle is sealed, when its attempt fails, or after spec.hold.timeoutSeconds."
    " To start it at once: set spec.hold.when to Never, or spec.suspend to true.",
)
NOT_SEALED_YET = _reason(
    "NotSealedYet",
    "The bundle is not there yet and the pod is not held; it starts warm if the bundle is sealed before the pod's engine starts,"
    " else cold.",
    "Nothing to do. spec.hold.when: Always holds such pods too.",
)

# --- left alone
NO_CACHE = _reason(
    "NoCache",
    "The label pretune.dev/cache names a cache that is not in the pod's namespace.",
    "Create it, or correct the label.",
)
DELIVERY_OFF = _reason("DeliveryOff", "spec.delivery.mode is None.", "Set it to Auto.")
SUSPENDED = _reason(
    "Suspended", "spec.suspend is true, and the bundle is not sealed.", "Set spec.suspend to false."
)
STORAGE_NOT_READY = _reason(
    "StorageNotReady",
    "The claim cannot be used; a pod that mounts it might not start.",
    "See the cache's condition StorageReady.",
)
OVERRIDE_SET = _reason(
    "OverrideSet",
    "The engine sets VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR itself.",
    "Remove the variable, or the label pretune.dev/cache.",
)
ENGINE_UNKNOWN = _reason(
    "EngineUnknown",
    "Which container is the engine cannot be told.",
    "Set spec.engineContainer of the cache.",
)
TARGET_UNKNOWN = _reason(
    "TargetUnknown",
    "The cache has several targets, and which one the pod's node belongs to cannot be told.",
    "Annotate the pod template with pretune.dev/target, or give it the nodeSelector of one target.",
)
OWNER_UNREADABLE = _reason(
    "OwnerUnreadable",
    "The pod's owner could not be read, so that its fingerprint is not known.",
    "Nothing to do if it passes; else see the webhook's log.",
)
NOT_TUNABLE = _reason(
    "NotTunable",
    "The bundle is Refused; the message says why.",
    "See the bundle's reason in the cache's status.",
)
TUNING_FAILED = _reason(
    "TuningFailed",
    "The bundle's attempts failed.",
    "See the bundle's reason in the cache's status.",
)
NOTHING_TO_TUNE = _reason(
    "NothingToTune", "The engine tunes nothing: the bundle is empty.", "Nothing to do."
)
UNDELIVERABLE = _reason(
    "Undeliverable",
    "A pod could not start with this bundle (its volume or the seed container), and was replaced without it.",
    "Mend what the bundle's message names. A volume is tried again after an hour; a changed spec.revision"
    " tries at once.",
)
NAMES_COLLIDE = _reason(
    "NamesCollide",
    "The pod has a volume, container or mount path that ours would collide with.",
    "Rename what the message names: pretune-claim, pretune-agent, pretune-tactics, pretune-seed, and paths below /pretune are ours.",
)
