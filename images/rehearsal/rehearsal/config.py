"""From `vllm serve` arguments to vLLM's own engine config."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


def parse(words: Sequence[str]) -> argparse.Namespace:
    """vLLM's own parser; exits with 2 for a wrong argument."""
    from vllm.entrypoints.common.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    asked: argparse.Namespace = make_arg_parser(FlexibleArgumentParser(prog="vllm serve")).parse_args(list(words))
    if getattr(asked, "model_tag", None):
        asked.model = asked.model_tag
    return asked


def engine_config(asked: argparse.Namespace) -> Any:
    """The `VllmConfig` that `vllm serve` would make of these arguments."""
    import vllm.model_executor.models.registry as registry
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    registry._run_in_subprocess = lambda look: look()  # a child process would not see the pretended device
    current_platform.import_ir_kernels()  # as a worker does
    return AsyncEngineArgs.from_cli_args(asked).create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
