"""The situations, in the order of the document. Where the stand-in's table has the same one, it has the same name."""

from __future__ import annotations

CELLS: dict[str, str] = {
    "cold": (
        "The tuning pod: the engine's first start, into an empty folder. What it leaves is sealed."
    ),
    "no bundle": (
        "A pod that is created before its bundle is sealed, and is not held: seed finds no"
        " bundle, and the pod starts (fail-open)."
    ),
    "warm": "A pod that is given its bundle, as `delivery.mode: Auto` does it.",
    "warm as another uid": "The same, as uid 2000; the tuning pod ran as 1000.",
    "an operation is missing": (
        "The engine has one operation more than when it was tuned (same image and arguments;"
        " other weights, for example)."
    ),
    "another GPU product": (
        "The pod's node has another GPU product than the tuning pod's node had, and the cache"
        " has one target for both."
    ),
    "another FlashInfer": (
        "The bundle was tuned with another FlashInfer, and its manifest records that."
    ),
    "another FlashInfer, unrecorded": (
        "The same, where the versions in the tuned image were unknown: only FlashInfer compares."
    ),
    "read-only forced": "A pod that is given its bundle with `delivery.mode: ReadOnly`.",
    "read-only forced, an operation is missing": "The same, and the engine has one operation more.",
    "read-only by hand": (
        "The user mounts the sealed bundle read-only and sets the override variable: pretune"
        " leaves the pod alone."
    ),
    "read-only by hand, another GPU product": "The same, on another GPU product: no file fits.",
    "read-only by hand, another configuration": (
        "The same with another `--max-num-seqs`, in a pod without the label: its key has no folder."
    ),
    "nothing to tune": (
        "The engine reaches no tunable operation: the bundle is Empty, and the pod is left as"
        " it is."
    ),
    "two GPUs": "`--tensor-parallel-size 2`: two ranks, and what pretune does for such an engine.",
    "two GPUs, an operation is missing": (
        "The same, and the engine has one operation more than when it was tuned."
    ),
    "image swapped": (
        "The tag now names an image with another vLLM release; the bundle is still that of the"
        " old one."
    ),
}

# What CI has no time for; `make fidelity` plays it too.
_LEFT_OUT = (
    "another FlashInfer, unrecorded",
    "read-only forced, an operation is missing",
    "read-only by hand",
    "read-only by hand, another GPU product",
    "read-only by hand, another configuration",
    "two GPUs",
    "two GPUs, an operation is missing",
)
CI_CELLS = tuple(name for name in CELLS if name not in _LEFT_OUT)
