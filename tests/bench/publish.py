"""How long seal takes to publish 200 files, compared with `cp -R` and `sync` of the same files.

    python -m tests.bench.publish [FOLDER]

FOLDER is on the disk to measure; the default is the system's temporary folder. Seal reads and checks
every file, copies it, syncs it and its folders, reads it back and renames the folder: `cp -R; sync`
only copies and syncs.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.builders.agent_pod import INPUTS, AgentPod, managed_store

FILES = 200
ROUNDS = 9


def measure(where: str) -> tuple[float, float]:
    """Return the seconds of seal, and of `cp -R` with `sync -f`, in a folder: medians of ROUNDS."""
    with tempfile.TemporaryDirectory(dir=where) as folder:
        pod = AgentPod(Path(folder)).write_tactics(managed_store(FILES - 1))
        copies = Path(folder) / "copies"
        copies.mkdir()
        subprocess.run(["sync"], check=True)
        ours, theirs = [], []
        for number in range(ROUNDS):
            begin = time.perf_counter()
            report = pod.run("seal", inputs=replace(INPUTS, revision=str(number)))
            ours.append(time.perf_counter() - begin)
            assert report.reason == "Sealed", report
            begin = time.perf_counter()
            subprocess.run(["cp", "-R", str(pod.tactics), str(copies / str(number))], check=True)
            subprocess.run(["sync", "-f", str(copies)], check=True)
            theirs.append(time.perf_counter() - begin)
    return statistics.median(ours), statistics.median(theirs)


def main() -> None:
    seal, copy = measure(sys.argv[1] if len(sys.argv) > 1 else tempfile.gettempdir())
    print(
        f"publish of {FILES} files, median of {ROUNDS}, on {platform.node()} ({platform.machine()})"
    )
    print(f"  seal                 {seal * 1000:8.1f} ms")
    print(f"  cp -R, sync -f       {copy * 1000:8.1f} ms")
    print(f"  ratio                {seal / copy:8.1f}")


if __name__ == "__main__":
    main()
