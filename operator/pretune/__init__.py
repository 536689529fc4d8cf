"""pretune tunes FlashInfer once, ahead of the rollout.

Every vLLM pod gets the same sealed result.
"""

__version__ = "0.1.0"
