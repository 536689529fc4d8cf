"""The commands: up, down, restart PROGRAM, product NAME [NODE]."""

from __future__ import annotations

import os
import sys

from localcluster.control_plane import PROGRAMS, restart
from localcluster.places import LOCK, NODES
from localcluster.steps import StepError, locked, report, step
from localcluster.teardown import tear_down, traces
from localcluster.up import bring_up, label


def main(arguments: list[str]) -> int:
    """Carry out one command; returns the exit code."""
    try:
        if os.geteuid() != 0:
            raise StepError(
                "the cluster needs root: it makes containers, bridges and mounts",
                "run it with sudo",
            )
        with locked(LOCK):
            match arguments:
                case ["up"]:
                    bring_up(_node_count())
                case ["down"] if traces():
                    with step("remove the cluster"):
                        tear_down()
                case ["down"]:
                    print("there is no cluster")
                case ["restart", program] if program in PROGRAMS:
                    with step(f"kill {program} and start it again"):
                        restart(program)
                case ["product", product]:
                    label("node0", product)
                case ["product", product, node]:
                    label(node, product)
                case _:
                    raise StepError(
                        f"no such command: {' '.join(arguments)}",
                        f"up | down | restart {{{'|'.join(PROGRAMS)}}} | product NAME [NODE]",
                    )
    except StepError as failure:
        return report(failure)
    return 0


def _node_count() -> int:
    wanted = os.environ.get("NODES") or "1"
    if wanted not in [str(node.index + 1) for node in NODES]:
        raise StepError(f"NODES={wanted}: there can be 1 or {len(NODES)} nodes")
    return int(wanted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
