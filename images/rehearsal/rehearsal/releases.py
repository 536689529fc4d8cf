"""Where vLLM's releases differ, as far as the rehearsal touches them: told by what is there, not by version."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
from typing import Any


def first_of(*names: str) -> Any:
    """The first of these modules that there is; raises ModuleNotFoundError naming the last one."""
    for name in names[:-1]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(
                str(error.name)
            ):  # it is there, and something that it imports is not
                raise
    return importlib.import_module(names[-1])


def argument_parser() -> Any:
    """vLLM's parser for `vllm serve`: 0.33 has it in common, 0.29 to 0.32 in launchers, older ones in openai."""
    places = ("common", "launchers", "openai")
    arguments = first_of(*(f"vllm.entrypoints.{place}.cli_args" for place in places))
    parsers = importlib.import_module("vllm.utils.argparse_utils")
    return arguments.make_arg_parser(parsers.FlexibleArgumentParser(prog="vllm serve"))


def register_ir_kernels(platform: Any) -> None:
    """As a worker does before it makes its config's last part. Older releases have no such kernels."""
    register = getattr(platform, "import_ir_kernels", None)
    if register is not None:
        register()


def name_process(name: str) -> None:
    """Log lines name the process, from 0.31 on."""
    logger = importlib.import_module("vllm.logger")
    if hasattr(logger, "set_vllm_process_name"):
        logger.set_vllm_process_name(name)


def switch_off(owner: Any, *names: str) -> None:
    """Of these settings, those that there are."""
    for name in names:
        if hasattr(owner, name):
            setattr(owner, name, False)


def replace(owner: Any, **values: Any) -> None:
    """Of these functions, those that there are."""
    for name, value in values.items():
        if hasattr(owner, name):
            setattr(owner, name, value)


@functools.cache
def ranks_are_in_experts_keys() -> bool:
    """Whether this FlashInfer tells the ranks of a mixture of experts apart in its keys: 0.6.18 to 0.7.0.post1 do.

    Read from the text of its MoERunner, whose class is made only together with its compiled kernels.
    """
    found = importlib.util.find_spec("flashinfer")
    assert found is not None and found.origin is not None
    text = Path(found.origin).with_name("fused_moe").joinpath("core.py").read_text()
    start = text.find("def get_cache_key_extras")
    if start < 0:
        return False
    end = text.find("\n        def ", start + 1)
    return "self.tp_rank," in text[start:end]
