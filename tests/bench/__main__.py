"""make bench: one table of what pretune costs and how fast it is.

Each figure is measured in this run on the local cluster, and has beside it what it is compared
with, measured in the same run, and its aim.

    python -m tests.bench [ROW …]

ROW is a key of ROWS; the default is all of them but those of ON_REQUEST, which take minutes. Progress goes to stderr, the table to stdout.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from tests.bench import (
    admission,
    hostile,
    namespaces,
    noise,
    release,
    rollout,
    scale,
    seeding,
    tuning,
)
from tests.bench.harness import Bench
from tests.bench.table import Row, format_table
from tests.cluster.cluster_lock import ClusterLock

ROWS: dict[str, Callable[[Bench], list[Row]]] = {
    "gpu-seconds": rollout.measure_gpu_seconds,
    "ready": rollout.measure_ready,
    "release": release.measure_release,
    "admission": admission.measure_admission,
    "seed": seeding.measure_seeding,
    "scale": scale.measure_scale,
    "latency": tuning.measure_latency,
    "memory": tuning.measure_memory,
    "publish": tuning.measure_publishing,
    "noise": noise.measure_noise,
    "namespaces": namespaces.measure_namespaces,
    "hostile": hostile.measure_hostile,
}
ON_REQUEST = ("namespaces", "hostile")


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        print(f"unknown rows: {', '.join(unknown)}; known ones: {' '.join(ROWS)}", file=sys.stderr)
        return 2
    bench, cluster_lock = Bench(), ClusterLock()
    bench.report("waiting until no test uses the cluster")
    cluster_lock.acquire(alone=True)
    bench.install()
    rows: list[Row] = []
    for name in names or [name for name in ROWS if name not in ON_REQUEST]:
        rows += ROWS[name](bench)
    model = next(
        (
            line.split(": ")[1]
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "",
    )
    cores = len(os.sched_getaffinity(0))
    print(f"\non {platform.node()}: {cores} cores, {model}; local cluster, stand-in engine")
    print("\n".join(format_table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
