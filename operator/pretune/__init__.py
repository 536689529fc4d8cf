"""pretune: tune FlashInfer once, ahead of the rollout, and give every vLLM pod the same sealed result."""

__version__ = "0.1.0"
