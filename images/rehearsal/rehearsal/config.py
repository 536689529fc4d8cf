"""From `vllm serve` arguments to vLLM's own engine config."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .releases import argument_parser, register_ir_kernels


def parse(words: Sequence[str]) -> argparse.Namespace:
    """vLLM's own parser; exits with 2 for a wrong argument."""
    asked: argparse.Namespace = argument_parser().parse_args(list(words))
    if getattr(asked, "model_tag", None):
        asked.model = asked.model_tag
    return asked


def engine_config(asked: argparse.Namespace) -> Any:
    """The `VllmConfig` that `vllm serve` would make of these arguments."""
    import vllm.model_executor.models.registry as registry
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    registry._run_in_subprocess = lambda look: (
        look()
    )  # a child process would not see the pretended device
    register_ir_kernels(current_platform)
    return AsyncEngineArgs.from_cli_args(asked).create_engine_config(
        usage_context=UsageContext.OPENAI_API_SERVER
    )
