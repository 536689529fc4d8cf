"""A part of vLLM and an engine that no release has, each one object.

In a test's process this is a module of the tests. In an operator and an agent of the tests it is
pretune/engines/added.py (tests/seams/overlay.py), so it is Python 3.8 and imports what an engine
may.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pretune.engines.base import Engine, Part
from pretune.engines.command import runs_program

if TYPE_CHECKING:
    from pretune.engines.evidence import Evidence
    from pretune.engines.logs import LogParser


class _Plans(Part):
    """Files *.plan, each a JSON object of entries: "operation/shape": plan."""

    def is_known(self, path: str) -> bool:
        return path.endswith(".plan")

    def judge(
        self,
        paths: Sequence[str],
        read: Callable[[str], bytes],
        gpus: int = 0,
        words: Sequence[str] = (),
    ) -> Evidence:
        from pretune.engines.evidence import Evidence
        from pretune.protocol import EMPTY, MANAGED

        files = [path for path in sorted(paths) if self.is_known(path)]
        number = sum(len(self.read_entries(path, read(path))) for path in files)
        layout = MANAGED if number else EMPTY
        return Evidence(layout, number, files, f"{number} {self.name}")

    def read_entries(self, path: str, raw: bytes) -> dict[str, str]:
        from pretune.api import reasons
        from pretune.engines.evidence import Unsound

        try:
            return {str(key): str(plan) for key, plan in json.loads(raw.decode()).items()}
        except (ValueError, AttributeError):
            raise Unsound(reasons.CORRUPT_FILES, f"{path}: not an object of plans") from None

    def key_space_of(self, path: str) -> str:
        return path

    def operation_of(self, key: str) -> str:
        return key.split("/")[0]


class _Kernels(_Plans):
    name = "kernels"
    variable = "VLLM_TEST_KERNEL_DIR"


KERNELS = _Kernels()


class _ToyPlans(_Plans):
    name = "plans"
    variable = "TOY_PLAN_DIR"


class _Toy(Engine):
    name = "toy"
    title = "Toy"
    parts = (_ToyPlans(),)
    programs = ("toy-server",)
    # The status has no field for the version of an engine of the tests.
    distributions = (("vllm", "toy-server", "Toy"),)
    health_path = "/ready"

    def recognises(self, image: str, words: Sequence[str]) -> bool:
        return runs_program(words, "toy-server")

    def read_port(self, words: Sequence[str]) -> int:
        return 8123

    def find_multi_pod_flag(self, words: Sequence[str]) -> str | None:
        return "--shard" if "--shard" in words else None

    def check_release(self, version: str, gpus: int) -> tuple[str, str]:
        from pretune.api import reasons

        if version.startswith("0."):
            return reasons.RELEASE_TOO_OLD, f"Toy {version} keeps no plans; 1.0 and newer do"
        return "", ""

    def create_log_parser(self, until: float | None = None) -> LogParser:
        from pretune.engines import logs  # not in the agent

        class Parser(logs.LogParser):
            hints = (b"toy:",)
            result = logs.UNKNOWN

            def read_line(self, line: str) -> None:
                if "toy: loaded" in line:
                    self.result = logs.WARM
                elif "toy: tuned" in line:
                    self.result = logs.TUNED
                self.ready = "toy: ready" in line

            def summary(self) -> logs.LogSummary:
                return logs.LogSummary(self.result, ready=self.ready, began=self.began)

        return Parser(until)


TOY = _Toy()
