"""vLLM as one object, and its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Dict, Iterable, Mapping, Optional, Sequence, Tuple

from pretune.engines.base import Engine, Part
from pretune.engines.command import runs_program
from pretune.engines.vllm import cli, releases

if TYPE_CHECKING:
    from pretune.engines.evidence import Evidence, Found, Tree
    from pretune.engines.logs import FailureParser, LogParser, LogSummary


class _Tactics(Part):
    """FlashInfer's tactics, which vLLM has it keep in a folder (tactics.py)."""

    name = "tactics"
    variable = cli.OVERRIDE
    places = (".cache/vllm/flashinfer_autotune_cache", ".cache/flashinfer/autotune")
    folder_kinds = "an override folder or a key folder"
    named_in_log = "Using FlashInfer autotune cache"

    def is_known(self, path: str) -> bool:
        from pretune.engines.vllm import tactics

        return tactics.is_known(path)

    def judge(
        self,
        paths: Sequence[str],
        read: Callable[[str], bytes],
        gpus: int = 0,
        words: Sequence[str] = (),
    ) -> "Evidence":
        from pretune.engines.vllm import tactics

        return tactics.judge(paths, read, gpus, words)

    def read_entries(self, path: str, raw: bytes) -> Dict[str, str]:
        from pretune.engines.vllm import tactics

        return tactics.read_entries(path, raw)

    def key_space_of(self, path: str) -> str:
        from pretune.engines.vllm import tactics

        return tactics.key_space_of(path)

    def operation_of(self, key: str) -> str:
        from pretune.engines.vllm import tactics

        return tactics.operation_of(key)

    def readable_layouts(
        self, version: str, gpus: int, words: Sequence[str] = ()
    ) -> Tuple[str, ...]:
        return releases.readable_layouts(version, gpus, words)

    def find(self, tree: "Tree", at: Tuple[str, ...]) -> "Iterable[Found]":
        from pretune.engines.vllm import places

        return places.find(tree, at)


class _VLLM(Engine):
    name = "vllm"
    title = "vLLM"
    parts = (_Tactics(),)
    programs = ("vllm",)
    variable_prefix = "VLLM_"
    secret_flags = ("--api-key", "--hf-token")
    other_health_paths = ("/v2/health/ready",)  # KServe's Hugging Face server
    distributions = (
        ("vllm", "vllm", "vLLM"),
        ("flashinfer", "flashinfer-python", "FlashInfer"),
    )

    def recognises(self, image: str, words: Sequence[str]) -> bool:
        return runs_program(words, "vllm")

    def read_port(self, words: Sequence[str]) -> int:
        return cli.read_port(words)

    def serves_https(self, words: Sequence[str]) -> bool:
        return cli.serves_https(words)

    def read_host(self, words: Sequence[str]) -> str:
        return cli.read_host(words)

    def count_ranks(self, words: Sequence[str]) -> Optional[int]:
        return cli.count_ranks(words)

    def find_multi_pod_flag(self, words: Sequence[str]) -> Optional[str]:
        return cli.find_multi_pod_flag(words)

    def find_registration(self, words: Sequence[str], env: Mapping[str, str]) -> Optional[str]:
        return cli.find_registration(words, env)

    def check_release(self, version: str, gpus: int) -> Tuple[str, str]:
        return releases.check_release(version, gpus)

    def create_log_parser(self, until: Optional[float] = None) -> "LogParser":
        from pretune.engines.vllm.log import Parser  # not in the agent

        return Parser(until)

    def create_failure_parser(self) -> "FailureParser":
        from pretune.engines.vllm.failure_log import Parser  # not in the agent

        return Parser()

    def explain_miss(self, summary: "LogSummary", folders: str, others: str) -> str:
        from pretune.engines.vllm.log import explain_miss  # not in the agent

        return explain_miss(summary, folders, others)


VLLM = _VLLM()
