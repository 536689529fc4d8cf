"""The situations, in the order of the document. Where the stand-in's table has the same one, it has the same name."""

from __future__ import annotations

CELLS: dict[str, str] = {
    "cold": "The tuning pod: the engine's first start, into an empty folder. What it leaves is sealed.",
    "no bundle": "A pod that is made before its bundle is sealed, and is not held: seed finds none, and lets it start (fail-open).",
    "warm": "A pod that is given its bundle, as `delivery.mode: Auto` does it.",
    "warm as another uid": "The same, as uid 2000; the tuning pod ran as 1000.",
    "an operation is missing": "The engine has an operation more than when it was tuned (same image and arguments; other weights, say).",
    "another GPU product": "The pod's node has another product than the tuning pod's had, and the cache has one target for both.",
    "another FlashInfer": "The bundle is of another FlashInfer, and its manifest says so.",
    "another FlashInfer, untold": "The same, where the versions in the image that was tuned could not be told: FlashInfer alone decides.",
    "read-only forced": "A pod that is given its bundle with `delivery.mode: ReadOnly`.",
    "read-only forced, an operation is missing": "The same, and the engine has an operation more.",
    "read-only by hand": "The user mounts the sealed bundle read-only and sets the override variable: pretune leaves the pod alone.",
    "read-only by hand, another GPU product": "The same, on another GPU product: nothing that is there fits.",
    "read-only by hand, another configuration": "The same with another `--max-num-seqs`, in a pod without the label: its key has none.",
    "nothing to tune": "The engine reaches no tunable operation: the bundle is Empty, and the pod is left as it is.",
    "two GPUs": "`--tensor-parallel-size 2`: two ranks, and what the operator does for such an engine.",
    "two GPUs, an operation is missing": "The same, and the engine has an operation more than when it was tuned.",
    "image swapped": "Under the same tag, which may move, is another vLLM release by now; the bundle is still the old one's.",
}

# What CI has no time for; `make fidelity` plays it too.
_LEFT_OUT = (
    "another FlashInfer, untold",
    "read-only forced, an operation is missing",
    "read-only by hand",
    "read-only by hand, another GPU product",
    "read-only by hand, another configuration",
    "two GPUs",
    "two GPUs, an operation is missing",
)
IN_CI = tuple(name for name in CELLS if name not in _LEFT_OUT)
