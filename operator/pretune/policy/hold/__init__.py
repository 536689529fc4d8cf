"""Whether a pod is held behind the scheduling gate, and when it is released."""
