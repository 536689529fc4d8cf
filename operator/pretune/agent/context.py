"""What an agent container works with: its task, the places where things are, and the clock."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Callable, Mapping

from pretune import protocol
from pretune.agent.claim.fs import Disk
from pretune.engines import registry
from pretune.engines.base import Engine, Part


@dataclass
class Context:
    """The defaults are those of a pod; tests name their own folders."""

    task: protocol.Task
    pod_uid: str  # names the staging folder
    claim: str = protocol.CLAIM_MOUNT
    parts: str = protocol.PARTS_MOUNT  # holds a folder for each part of the engine
    source: str = protocol.SOURCE_MOUNT
    proc: str = "/proc"  # prove: the kernel driver names the node's GPUs there
    path: str = os.defpath
    pythonpath: str = ""
    disk: Disk = field(default_factory=Disk)
    now: Callable[[], float] = time.time  # Unix seconds
    limit_seconds: float = 45.0  # that a starting pod may wait for seed
    answer_seconds: float = 60.0  # that an engine without an HTTP probe may leave a URL unanswered
    loading_seconds: float = 1800.0  # that an engine without an HTTP probe may answer 503
    settle_seconds: float = 2.0  # between two scans for an engine without an HTTP probe
    log: Callable[[str], None] = lambda line: print(line, flush=True)  # one line a step

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> "Context":
        """Return this container's context. Raises WireError where it has no valid task."""
        return cls(
            task=protocol.Task.load(env.get(protocol.TASK_VARIABLE, "")),
            pod_uid=env.get(protocol.POD_UID_VARIABLE) or "by-hand",
            path=env.get("PATH", os.defpath),
            pythonpath=env.get("PYTHONPATH", ""),
        )

    @property
    def engine(self) -> Engine:
        """The engine of the task. Raises ValueError where this release does not know it."""
        return registry.find_engine(self.task.engine)

    def folder(self, part: Part) -> str:
        """Return where a part's folder is mounted."""
        return os.path.join(self.parts, part.name)

    @property
    def inputs(self) -> protocol.Inputs:
        """The inputs of the task's bundle. Raises WireError where the task has none."""
        if self.task.inputs is None:
            raise protocol.WireError("task: no inputs")
        return self.task.inputs
