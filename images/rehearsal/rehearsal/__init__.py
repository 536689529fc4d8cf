"""vLLM's own FlashInfer warm-up on a machine without a GPU.

Real: the engine config made from `vllm serve` arguments, the key, `kernel_warmup()`, FlashInfer's AutoTuner and its files, the log lines.
Replaced: what touches a GPU (C extensions, device queries, the time of one tactic) and the model (toy kernels are tuned).
"""
