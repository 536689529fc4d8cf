"""seed, compared with `cp -R` of the same bundle in the same pod: 200 files, and 256 MiB."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from pretune.manifests.agent_archive import build_agent_config_map
from pretune.manifests.agent_container import AGENT_VOLUME, CLAIM_VOLUME, build_seed_container
from pretune.protocol import CLAIM_MOUNT, Task

from tests.bench.harness import Bench, claim, serving_template
from tests.bench.table import Row
from tests.builders import agent_pod as world
from tests.cluster.kube import Object

FILES, BIG_FILES, MIB = 200, 64, 256
ROUNDS = 9
COPIES = "/copies"

ALTERNATE = """
import json, os, shutil, subprocess, sys, time
source, rounds, cached = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "cached"

def empty(folder):
    for name in os.listdir(folder):
        # cp keeps the modes of a bundle.
        subprocess.run(["chmod", "-R", "u+w", os.path.join(folder, name)], check=True)
        shutil.rmtree(os.path.join(folder, name))

def run(words):
    for folder, _, names in os.walk(source) if not cached else ():
        for name in names:
            file = os.open(os.path.join(folder, name), os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)
    began = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began

def count(folder):
    return sum(len(files) for _, _, files in os.walk(folder))

seeds, copies = [], []
for _ in range(rounds + 1):
    empty("/pretune/tactics"), empty("/copies")
    seeds.append(run(["/bin/sh", "-c", os.environ["SEED"]]))
    with open("/dev/termination-log") as log:
        report = json.load(log)
    assert report["reason"] == "Seeded", report
    copies.append(run(["cp", "-R", source, "/copies/"]))
    assert count("/pretune/tactics") == count("/copies"), "not the same files"
print(json.dumps([seeds[1:], copies[1:]]))  # not the first round, with cold page caches
"""


def measure_seeding(bench: Bench) -> list[Row]:
    """Measure both in turns, and return medians of ROUNDS.

    The bundle is in the node's page cache, as it is for each pod of a node except the first one; the
    large one is also measured without.
    """
    with bench.namespace("seed") as namespace:
        seed, copy = prepare_pod(bench, namespace, "few", world.managed_store(FILES - 1))("cached")
        big = prepare_pod(bench, namespace, "big", _large_bundle())
        cases = [("", big("cached")), (", read from the disk", big("uncached"))]
    rows = [
        Row(
            f"seed of {FILES} files",
            f"{seed:.2f} s",
            f"{copy:.2f} s: cp -R in the same pod",
            f"+{seed - copy:.2f} s",
            "≤ +0.3 s",
            seed - copy <= 0.3,
        )
    ]
    for how, (ours, theirs) in cases:
        rows.append(
            Row(
                f"seed of {MIB} MiB{how}",
                f"{ours:.2f} s, {MIB / ours:.0f} MiB/s",
                f"{theirs:.2f} s, {MIB / theirs:.0f} MiB/s: cp -R",
                f"{theirs / ours:.2f} of its speed",
                "≥ 0.8",
                theirs / ours >= 0.8,
            )
        )
    return rows


def _large_bundle() -> dict[str, bytes]:
    """Return a managed store of 256 MiB; FlashInfer ignores what fills its entries."""
    files = world.managed_store(BIG_FILES)
    room = MIB * 1024 * 1024 - sum(len(content) for content in files.values()) - 64 * BIG_FILES
    for path in files:
        if "/entries/" in path:
            entry = json.loads(files[path])
            files[path] = json.dumps({**entry, "filling": "x" * (room // BIG_FILES)}).encode()
    return files


def prepare_pod(
    bench: Bench, namespace: str, name: str, files: dict[str, bytes]
) -> Callable[[str], tuple[float, float]]:
    """Start a pod with these files as a bundle on its claim, and return a function that measures.

    It takes `cached` or `uncached`, and returns the seconds of seed and of cp -R.
    """
    bench.report(
        f"seed: {len(files)} files, {sum(len(content) for content in files.values()) / 1048576:.1f} MiB"
    )
    bench.kube.create(claim(namespace, name))
    bound = bench.kube.wait_until(
        "PersistentVolumeClaim",
        namespace,
        name,
        lambda claim: claim["status"].get("phase") == "Bound",
        30,
    )
    volume = bench.kube.get("PersistentVolume", "", bound["spec"]["volumeName"])
    assert volume is not None
    with tempfile.TemporaryDirectory() as folder:
        pod = world.AgentPod(Path(folder))
        pod.seal(files)
        shutil.copytree(pod.claim, volume["spec"]["hostPath"]["path"], dirs_exist_ok=True)
    agent = build_agent_config_map(namespace)
    if bench.kube.get("ConfigMap", namespace, agent["metadata"]["name"]) is None:
        bench.kube.create(agent)
    bench.kube.create(seed_pod(namespace, name))
    bench.kube.wait_until(
        "Pod", namespace, name, lambda pod: pod["status"].get("phase") == "Running", 60
    )
    source = f"{CLAIM_MOUNT}/{world.CACHE}/bundles/{world.INPUTS.bundle_id()}/tactics"
    words = ("python3", "-", source, str(ROUNDS))

    def measure(how: str) -> tuple[float, float]:
        output = bench.exec_in_pod(
            namespace, name, *words, how, stdin=ALTERNATE, container="pretune-seed"
        )
        seeds, copies = json.loads(output)
        return statistics.median(seeds), statistics.median(copies)

    return measure


def seed_pod(namespace: str, name: str) -> Object:
    """Return a pod with the seed container as admission adds it, which waits instead of seeding.

    Its command is in the variable SEED.
    """
    template = serving_template()
    [engine] = template["spec"]["containers"]
    task = Task(
        cache=world.CACHE,
        inputs=world.INPUTS,
        gpus=1,
        ready=None,
        command=["/opt/engines/0.33.0/bin/vllm"],
    )
    mounts = [
        {"name": "tactics", "mountPath": "/pretune/tactics"},
        {"name": "copies", "mountPath": COPIES},
    ]
    seed = build_seed_container("pretune-seed", engine, task, {}, CLAIM_VOLUME, mounts)
    [*_, script] = seed["command"]
    seed["env"] = [*seed["env"], {"name": "SEED", "value": script}]
    seed["command"] = ["sleep", "3600"]
    volumes = [
        {"name": "tactics", "emptyDir": {}},
        {"name": "copies", "emptyDir": {}},
        {
            "name": AGENT_VOLUME,
            "configMap": {"name": build_agent_config_map(namespace)["metadata"]["name"]},
        },
        {"name": CLAIM_VOLUME, "persistentVolumeClaim": {"claimName": name, "readOnly": True}},
    ]
    spec = {
        **template["spec"],
        "containers": [seed],
        "volumes": volumes,
        "terminationGracePeriodSeconds": 0,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name},
        "spec": spec,
    }
