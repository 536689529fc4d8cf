"""`vllm serve` arguments: any option is accepted, as the stand-in need not know them all."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Sequence, Union

Value = Union[str, bool]

_SHORT = {
    "-tp": "tensor-parallel-size", "-pp": "pipeline-parallel-size", "-dp": "data-parallel-size", "-q": "quantization",
    "-n": "nnodes", "-r": "node-rank", "-ep": "enable-expert-parallel", "-cc": "compilation-config", "-O": "optimization-level",
}  # fmt: skip
# Switches take no value, so that a model's name may follow one.
_SWITCHES = {
    "enforce-eager", "trust-remote-code", "enable-expert-parallel", "enable-lora", "disable-log-stats", "enable-prefix-caching",
    "enable-chunked-prefill", "async-scheduling", "enable-auto-tool-choice", "enable-flashinfer-autotune", "headless",
    "disable-flashinfer-autotune", "disable-custom-all-reduce", "skip-tokenizer-init", "enable-sleep-mode",
}  # fmt: skip
DEFAULT_MODEL = "Qwen/Qwen3-0.6B"  # what `vllm serve` takes when no model is named


class ArgumentsError(ValueError):
    """The command line is not one of `vllm serve`."""


class Arguments(NamedTuple):
    """The model and every option by its long name, without dashes; `--no-x` is x: False."""

    model: str
    options: Dict[str, Value]

    def text(self, name: str, default: str) -> str:
        """An option's value as it was written."""
        return str(self.options.get(name, default))

    def number(self, name: str, default: int) -> int:
        """An option's value as a number; raises ArgumentsError."""
        text = self.text(name, str(default))
        if not text.isdigit():
            raise ArgumentsError(f"argument --{name}: invalid int value: {text!r}")
        return int(text)

    def is_on(self, name: str) -> bool:
        """Whether a switch was given (and not as --no-…)."""
        return bool(self.options.get(name, False))


def parse(words: Sequence[str]) -> Arguments:
    """Takes the words after `vllm serve`. The last value of a repeated option wins. Raises ArgumentsError."""
    models: List[str] = []
    options: Dict[str, Value] = {}
    at = 0
    while at < len(words):
        word, at = words[at], at + 1
        if not word.startswith("-"):
            models.append(word)
            continue
        name, equals, value = word.partition("=")
        if name[:2] == "-O" and name[2:].isdigit():
            name, equals, value = "-O", "=", name[2:]
        name = _SHORT.get(name, name[2:] if name.startswith("--") else name).replace("_", "-")
        if name.startswith("-"):
            raise ArgumentsError(f"unrecognized arguments: {word}")
        if equals:
            options[name] = value
        elif name.startswith("no-"):
            options[name[3:]] = False
        elif name in _SWITCHES or at == len(words) or words[at].startswith("-"):
            options[name] = True
        else:
            options[name], at = words[at], at + 1
    if len(models) > 1:
        raise ArgumentsError(f"unrecognized arguments: {' '.join(models[1:])}")
    named = options.pop("model", None)
    return Arguments(models[0] if models else str(named or DEFAULT_MODEL), options)
