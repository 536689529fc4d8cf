"""The agent, killed after any one of its operations on files."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretune.agent.claim.fs import Disk

from tests.builders.agent_pod import AgentPod

OPERATIONS = ("mkdir", "create", "write", "chmod", "fsync", "rename", "unlink", "rmdir")
KILLED_CODE = 99


class KillingDisk(Disk):
    """Ends the process after the n-th operation, without any cleanup."""

    def __init__(self, operations: int) -> None:
        self.left = operations

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            os._exit(KILLED_CODE)


def _killing(name: str) -> Callable[..., Any]:
    def operation(self: KillingDisk, *arguments: Any) -> Any:
        if name == "write" and self.left == 1:  # half of it is written
            os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
            os._exit(KILLED_CODE)
        result = getattr(Disk, name)(self, *arguments)
        self._count()
        return result

    return operation


for _name in OPERATIONS:
    setattr(KillingDisk, _name, _killing(_name))


def is_killed_at(operations: int, act: Callable[[Disk], Any]) -> bool:
    """Whether `act`, in a process of its own, was killed by its n-th operation."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act(KillingDisk(operations))
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED_CODE), code
    return code == KILLED_CODE


def kill_after_each_operation(
    folder: Path,
    act: Callable[[AgentPod, Disk], Any],
    prepare: Callable[[AgentPod], Any],
    check: Callable[[AgentPod], None],
) -> int:
    """Kill `act` after each of its operations in turn, each time with new folders.

    Returns the number of operations.
    """
    for operations in range(1, 2000):
        (folder / str(operations)).mkdir()
        pod = AgentPod(folder / str(operations))
        prepare(pod)
        killed = is_killed_at(operations, functools.partial(act, pod))
        check(pod)
        if not killed:
            return operations - 1
    raise AssertionError("it never ends")
