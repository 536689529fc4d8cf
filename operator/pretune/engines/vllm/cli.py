"""vLLM's command line and variables."""

from __future__ import annotations

import functools
import re
from typing import Iterator, List, Mapping, Optional, Sequence, Tuple

from pretune.engines.command import program, shell_words

OVERRIDE = "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"
DEFAULT_PORT = 8000
_NUMBER = re.compile(r"[0-9]{1,9}\Z")


def flags(words: Sequence[str]) -> Iterator[Tuple[str, Optional[str]]]:
    """Yield flag and value of `--flag value`, `--flag=value`, `-tp 2`, `--flag`.

    `_` in a flag becomes `-`, as in vLLM's parser.
    """
    return iter(_list_flags(tuple(words)))


@functools.lru_cache(8)  # asked for again and again about one engine
def _list_flags(words: Tuple[str, ...]) -> Sequence[Tuple[str, Optional[str]]]:
    return tuple(_read_flags(shell_words(words)))


def _read_flags(plain: Sequence[str]) -> Iterator[Tuple[str, Optional[str]]]:
    for index, word in enumerate(plain):
        if not re.match(r"--?[A-Za-z]", word):
            continue
        name, equals, value = word.partition("=")
        following = plain[index + 1] if index + 1 < len(plain) else ""
        if equals:
            yield name.replace("_", "-"), value
        else:
            # Not the next flag, nor the end of a script's command.
            has_value = re.match(r"[^-;&|()<>]", following)
            yield name.replace("_", "-"), following if has_value else None


def last_number(words: Sequence[str], *names: str) -> Optional[int]:
    """Return the last value of a flag, which is what vLLM takes.

    None where it is absent, or not written as a number: `$(TP)`.
    """
    values = _values(words, *names)
    return _number(values[-1]) if values else None


def _values(words: Sequence[str], *names: str) -> List[Optional[str]]:
    """Return what a flag of these names is given, each time; None where that is nothing."""
    return [value for name, value in flags(words) if name in names]


def _number(value: Optional[str]) -> Optional[int]:
    return int(value) if value is not None and _NUMBER.match(value) else None


def read_port(words: Sequence[str]) -> int:
    """Return the HTTP port; the default where the words name none as a number."""
    return last_number(words, "--port") or DEFAULT_PORT


# Flags whose values multiply to the number of ranks.
_SIZES = (
    ("--tensor-parallel-size", "-tp"),
    ("--pipeline-parallel-size", "-pp"),
    ("--data-parallel-size", "-dp"),
    ("--prefill-context-parallel-size", "-pcp"),
)


def count_ranks(words: Sequence[str]) -> Optional[int]:
    """Return the number of ranks that the words ask for; None where a size cannot be read."""
    ranks = 1
    for names in _SIZES:
        values = _values(words, *names)
        size = _number(values[-1]) if values else 1
        if size is None:
            return None
        ranks *= size
    return ranks


def serves_https(words: Sequence[str]) -> bool:
    """Return whether the HTTP server is given a certificate."""
    return bool(_values(words, "--ssl-certfile"))


def read_host(words: Sequence[str]) -> str:
    """Return the address that the HTTP server listens on; "" where the words name none."""
    values = _values(words, "--host")
    return (values[-1] or "") if values else ""


def find_multi_pod_flag(words: Sequence[str]) -> Optional[str]:
    """Return the flag that makes this engine one of several pods, as in the words.

    None for a whole engine. A value that cannot be read here (`--nnodes $(NODES)`) counts as
    several: a wrong copy would connect to production.
    """
    plain = shell_words(words)
    size, local = last_number(words, "--data-parallel-size", "-dp"), None
    for name, value in flags(words):
        shown = name if value is None else "%s %s" % (name, value)
        if name in (
            "--headless",
            "--data-parallel-external-lb",
            "-dpe",
            "--data-parallel-rank",
            "-dpn",
        ):
            return shown
        if name in ("--nnodes", "--ray-cluster-size") and value != "1":
            return shown
        if name in ("--node-rank", "--data-parallel-start-rank", "-dpr") and value != "0":
            return shown
        if name in ("--data-parallel-size-local", "-dpl"):
            local = (shown, _number(value))
    if local and (size is None or local[1] is None or local[1] < size) and (size or 0) != 1:
        return local[0]
    if plain == list(words):  # in a script -n and -r may be any program's
        for name, least in (("-n", 2), ("-r", 1)):
            number = last_number(words, name)
            if number is not None and number >= least:
                return "%s %d" % (name, number)
    for index, word in enumerate(plain[:-1]):
        if program(word) == "ray" and plain[index + 1] == "start":
            for name, value in _read_flags(plain[index:]):
                if name == "--address":
                    return "ray start --address" + (" " + value if value else "")
            break  # what follows was read
    return None


# ModelExpress reads MX_*, and MODEL_EXPRESS_* before it.
_REGISTERING_VARIABLES = ("DYN_", "LMCACHE_CONTROLLER_", "MOONCAKE_", "MX_", "MODEL_EXPRESS_")
_REGISTERING_SWITCHES = ("LMCACHE_ENABLE_CONTROLLER", "LMCACHE_ENABLE_NIXL", "LMCACHE_ENABLE_PD")
_REGISTERING_LOADERS = ("mx", "modelexpress", "mx-source", "mx-target")
_OFF = ("0", "false", "no", "off")
_REGISTERING = re.compile(r"mooncake|moriio|proxy_ip", re.IGNORECASE)


def find_registration(words: Sequence[str], env: Mapping[str, str]) -> Optional[str]:
    """Return the variable or flag by which this engine announces itself to a router, or None.

    env: "" for a value that is a reference, which counts as switched on. Dynamo: any `DYN_*` or the
    module `dynamo`. ModelExpress, whose servers hand weights from one engine to the next:
    `--load-format mx` or `modelexpress`, its variables. LMCache: its controller's variables, and
    the sender of a disaggregated prefill (NIXL). Mooncake: `MOONCAKE_*`, its connectors, its store.
    P2P NCCL and MoRIIO connectors: a `proxy_ip`.
    """
    for name in sorted(env):
        value = env[name] or ""
        if name.startswith(_REGISTERING_VARIABLES):
            return name
        if name in _REGISTERING_SWITCHES and value.lower() not in _OFF:
            return name
        if name in ("LMCACHE_NIXL_ROLE", "LMCACHE_PD_ROLE") and value.lower() != "receiver":
            return name
        if name == "LMCACHE_REMOTE_URL" and _REGISTERING.search(value):
            return name
    plain = shell_words(words)
    for index, word in enumerate(plain):
        if word == "-m" and index + 1 < len(plain) and re.match(r"dynamo(\.|$)", plain[index + 1]):
            return "-m " + plain[index + 1]
    for flag, given in flags(words):
        if flag == "--load-format" and (given or "").lower() in _REGISTERING_LOADERS:
            return "%s %s" % (flag, given)
        if flag == "--kv-transfer-config" and given and _REGISTERING.search(given):
            return flag
        if flag.startswith("--kv-transfer-config.") and _REGISTERING.search(
            flag + "=" + (given or "")
        ):
            return flag
    return None
