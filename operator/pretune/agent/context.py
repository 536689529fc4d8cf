"""Where an agent container finds things. The defaults are the pod's; tests name their own folders."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Callable, Mapping

from pretune import protocol
from pretune.agent.claim.fs import Disk


@dataclass
class Context:
    task: protocol.Task
    pod: str  # its uid: names the staging folder
    claim: str = protocol.CLAIM_MOUNT
    tactics: str = protocol.TACTICS_MOUNT
    source: str = protocol.SOURCE_MOUNT
    proc: str = "/proc"  # prove: the kernel driver names the node's GPUs there
    path: str = os.defpath
    pythonpath: str = ""
    disk: Disk = field(default_factory=Disk)
    now: Callable[[], float] = time.time  # Unix seconds
    limit: float = 45.0  # seconds that a starting pod may wait for seed
    settle: float = 2.0  # seconds between two looks at an engine that cannot be asked over HTTP
    say: Callable[[str], None] = lambda line: print(
        line, flush=True
    )  # one line a step, for a person

    @classmethod
    def of(cls, env: Mapping[str, str]) -> "Context":
        """Raises wire.WireError when the task is missing or not of our form."""
        return cls(
            task=protocol.Task.load(env.get(protocol.TASK_VARIABLE, "")),
            pod=env.get(protocol.POD_UID_VARIABLE) or "by-hand",
            path=env.get("PATH", os.defpath),
            pythonpath=env.get("PYTHONPATH", ""),
        )

    @property
    def inputs(self) -> protocol.Inputs:
        if self.task.inputs is None:
            raise protocol.WireError("task: no inputs")
        return self.task.inputs
