"""Names of the AutotuneCache API: labels, annotations, the gate, roles, containers, states."""

from __future__ import annotations

GROUP = "pretune.dev"
VERSION = "v1alpha1"
KIND = "AutotuneCache"
PLURAL = "autotunecaches"

# --- labels

# On every object of ours. A pod with CACHE and without ROLE is a consumer.
CACHE = "pretune.dev/cache"
ROLE = "pretune.dev/role"  # of a Job or pod: see below; of a claim: claim; of a ConfigMap: agent
ATTEMPT = "pretune.dev/attempt"  # of a Job or pod: the number of the attempt or proof, from 1
BUNDLE = "pretune.dev/bundle"  # of a Job or pod: the bundle's id; of a consumer an annotation

# --- annotations of a consumer

DELIVERY = "pretune.dev/delivery"  # a mode of manifests/delivery_modes.py, or None
REASON = "pretune.dev/reason"  # "<name in delivery_reasons.DELIVERIES>: <message>"
TARGET = "pretune.dev/target"  # set by the pod's author: the name of its target

HOLD = "pretune.dev/hold"  # scheduling gate of a consumer that waits for its bundle

# --- annotations of other objects

# Of a cache, set by its author: `<claim>[/<path in it>]`, a folder that vLLM wrote elsewhere.
IMPORT = "pretune.dev/import"
# Of a cache, set by its author: any text. Another one starts a new attempt at what failed.
RETRY = "pretune.dev/retry"
# Of an attempt, a proof or an import: the fingerprint, all of it; where the bundle goes, by
# storage_place().
FINGERPRINT = "pretune.dev/fingerprint"
STORAGE = "pretune.dev/storage"
GENERATION = "pretune.dev/generation"  # of a Job: that of the cache for which it was created
GPUS = "pretune.dev/gpus"  # of an attempt or a proof, and of its pod: how many the engine may use
ENGINE = "pretune.dev/engine"  # of an attempt or a proof, and of its pod: the engine's container
REQUEST_KEY = "pretune.dev/question"  # of a Job that inspects or prunes: the ids it was given
# Of our claim: Delete or Retain; the size that spec.storage.claim.size had, to notice a change.
WHEN_DELETED = "pretune.dev/when-deleted"
SIZE = "pretune.dev/size"

# --- roles

TUNING, PROOF, INSPECT, PRUNE = "tuning", "proof", "inspect", "prune"
IMPORTING = "import"  # needs no GPU, so that only attempts of its own bundle wait for it

# --- containers

CHECK_CONTAINER, SEAL_CONTAINER = "pretune-check", "pretune-seal"
PROVE_CONTAINER, IMPORT_CONTAINER = "pretune-prove", "pretune-import"
AGENT_CONTAINER = "pretune-agent"  # of inspect and prune
SEED_CONTAINER = "pretune-seed"  # of consumers, and of a proof's pod

# --- states of a bundle

PENDING = "Pending"
TUNING_STATE = "Tuning"
# On the claim, and given to no pod before its proof: only with spec.verify: BeforeRelease.
PROVING = "Proving"
SEALED = "Sealed"
FAILED = "Failed"
REFUSED = "Refused"
RETIRED = "Retired"
STATES = (PENDING, TUNING_STATE, PROVING, SEALED, FAILED, REFUSED, RETIRED)
