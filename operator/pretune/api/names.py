"""Names of the AutotuneCache API: labels, annotations, containers, states."""

from __future__ import annotations

GROUP = "pretune.dev"
VERSION = "v1alpha1"
KIND = "AutotuneCache"
PLURAL = "autotunecaches"

# Labels and annotations. CACHE and ROLE stand on all that is ours; a pod with CACHE and without ROLE is a consumer.
CACHE = "pretune.dev/cache"
ROLE = "pretune.dev/role"  # tuning | proof | import | inspect | prune; on a claim and a ConfigMap: claim | agent
BUNDLE = "pretune.dev/bundle"  # label of an attempt; annotation of a consumer: what it was given
DELIVERY = "pretune.dev/delivery"  # annotation of a consumer: ReadOnly | Overlay | None
REASON = "pretune.dev/reason"  # annotation of a consumer: "<one of reasons.DELIVERIES>: <message>"
TARGET = "pretune.dev/target"  # annotation of a consumer, by its author: the name of its target
HOLD = "pretune.dev/hold"  # scheduling gate of a consumer that waits for its bundle
ATTEMPT = "pretune.dev/attempt"  # the attempt's number, from 1
FINGERPRINT = "pretune.dev/fingerprint"  # annotation: whole
WHEN_DELETED = "pretune.dev/when-deleted"  # annotation of our claim: Delete | Retain
SIZE = "pretune.dev/size"  # annotation of our claim: what spec.storage.claim.size asked for, so that a change is seen
STORAGE = (
    "pretune.dev/storage"  # annotation of an attempt: where its bundle goes to, by storage_place()
)
REQUEST_KEY = (
    "pretune.dev/question"  # annotation of an inspect or prune Job: the ids it was given, as JSON
)

IMPORT = "pretune.dev/import"  # annotation of a cache, by its author: `<claim>[/<path in it>]`, a folder that vLLM wrote itself

TUNING, PROOF, INSPECT, PRUNE = "tuning", "proof", "inspect", "prune"
IMPORTING = "import"  # its pod needs no GPU: it holds up nobody's attempt but its own bundle's
CHECK_CONTAINER, SEAL_CONTAINER = "pretune-check", "pretune-seal"
PROVE_CONTAINER, IMPORT_CONTAINER = "pretune-prove", "pretune-import"
AGENT_CONTAINER = "pretune-agent"  # of inspect and prune
SEED_CONTAINER = "pretune-seed"  # of consumers, and of a proof's pod

PENDING, TUNING_STATE, SEALED, FAILED, REFUSED, RETIRED = (
    "Pending",
    "Tuning",
    "Sealed",
    "Failed",
    "Refused",
    "Retired",
)
PROVING = "Proving"  # on the claim, and given to no pod before its proof: only with spec.verify: BeforeRelease
STATES = (PENDING, TUNING_STATE, PROVING, SEALED, FAILED, REFUSED, RETIRED)
