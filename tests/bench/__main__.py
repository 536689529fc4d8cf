"""make bench: one table of what pretune costs and how fast it is. Each figure is measured in this run on the local cluster and stands
beside what it is held against, measured in the same run, and its aim.

python -m tests.bench [ROW …]        default: all; their names are the keys of ROWS. Progress goes to stderr, the table to stdout.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from tests.bench import admission, release, rollout, scale, seeding, tuning
from tests.bench.harness import Bench
from tests.bench.table import Row, lines
from tests.cluster.peace import Peace

ROWS: dict[str, Callable[[Bench], list[Row]]] = {
    "gpu-seconds": rollout.gpu_seconds,
    "ready": rollout.ready,
    "release": release.released,
    "admission": admission.admitted,
    "seed": seeding.seeded,
    "scale": scale.scale,
    "latency": tuning.latency,
    "memory": tuning.memory,
    "publish": tuning.published,
}


def main(names: list[str]) -> int:
    unknown = [one for one in names if one not in ROWS]
    if unknown:
        print(f"no row {', '.join(unknown)}; there are: {' '.join(ROWS)}", file=sys.stderr)
        return 2
    bench, peace = Bench(), Peace()
    bench.say("waiting until no test uses the cluster")
    peace.begin(alone=True)
    bench.install()
    rows: list[Row] = []
    for name in names or ROWS:
        rows += ROWS[name](bench)
    model = next(
        (
            line.split(": ")[1]
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "",
    )
    print(
        f"\non {platform.node()}: {len(os.sched_getaffinity(0))} cores, {model}; local cluster, stand-in engine"
    )
    print("\n".join(lines(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
