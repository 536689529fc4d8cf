"""seed against `cp -R` of the same bundle in the same pod: 200 small files, and as many bytes as a bundle may have."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from pretune.manifests.agent_archive import build_agent_config_map
from pretune.manifests.agent_container import AGENT_VOLUME, CLAIM_VOLUME, build_seed_container
from pretune.protocol import CLAIM_MOUNT, TACTICS_MOUNT, Task

from tests.bench.harness import Bench, claim, serving
from tests.bench.table import Row
from tests.cluster.kube import Object
from tests.unit.agent import pod as world

FILES, BIG_FILES, MIB = 200, 64, 256
ROUNDS = 9
COPIES = "/copies"

ALTERNATE = """
import json, os, shutil, subprocess, sys, time
source, rounds, cached = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "cached"

def empty(folder):
    for name in os.listdir(folder):
        subprocess.run(["chmod", "-R", "u+w", os.path.join(folder, name)], check=True)  # cp keeps a bundle's modes
        shutil.rmtree(os.path.join(folder, name))

def took(words):
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
    seeds.append(took(["/bin/sh", "-c", os.environ["SEED"]]))
    with open("/dev/termination-log") as log:
        said = json.load(log)
    assert said["reason"] == "Seeded", said
    copies.append(took(["cp", "-R", source, "/copies/"]))
    assert count("/pretune/tactics") == count("/copies"), "not the same files"
print(json.dumps([seeds[1:], copies[1:]]))  # the first round finds nothing in any cache
"""


def seeded(bench: Bench) -> list[Row]:
    """Medians of ROUNDS, alternating: with the bundle in the node's page cache, as for every pod of a node but the first, and without."""
    with bench.namespace("seed") as namespace:
        seed, copy = prepared(bench, namespace, "few", world.managed_store(FILES - 1))("cached")
        big = prepared(bench, namespace, "big", _large())
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


def _large() -> dict[str, bytes]:
    """The managed store with entries that fill what a bundle may have; what fills them means nothing to FlashInfer."""
    files = world.managed_store(BIG_FILES)
    room = MIB * 1024 * 1024 - sum(len(one) for one in files.values()) - 64 * BIG_FILES
    for path in files:
        if "/entries/" in path:
            entry = json.loads(files[path])
            files[path] = json.dumps({**entry, "filling": "x" * (room // BIG_FILES)}).encode()
    return files


def prepared(
    bench: Bench, namespace: str, name: str, files: dict[str, bytes]
) -> Callable[[str], tuple[float, float]]:
    """A pod with these files as a bundle on its claim. What it gives measures `cached` or `uncached`: seconds of seed, and of cp -R."""
    bench.say(
        f"seed: {len(files)} files, {sum(len(one) for one in files.values()) / 1048576:.1f} MiB"
    )
    bench.kube.create(claim(namespace, name))
    bound = bench.kube.until(
        "PersistentVolumeClaim",
        namespace,
        name,
        lambda one: one["status"].get("phase") == "Bound",
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
    bench.kube.create(runner(namespace, name))
    bench.kube.until(
        "Pod", namespace, name, lambda one: one["status"].get("phase") == "Running", 60
    )
    source = f"{CLAIM_MOUNT}/{world.CACHE}/bundles/{world.INPUTS.bundle_id()}/tactics"
    words = ("python3", "-", source, str(ROUNDS))

    def measure(how: str) -> tuple[float, float]:
        said = bench.inside(namespace, name, *words, how, stdin=ALTERNATE, container="pretune-seed")
        seeds, copies = json.loads(said)
        return statistics.median(seeds), statistics.median(copies)

    return measure


def runner(namespace: str, name: str) -> Object:
    """A pod with the seed container as injection makes it, which waits instead of seeding; its command is in a variable."""
    template = serving()
    [engine] = template["spec"]["containers"]
    task = Task(
        cache=world.CACHE,
        inputs=world.INPUTS,
        gpus=1,
        ready=None,
        command=["/opt/engines/0.33.0/bin/vllm"],
    )
    mounts = [
        {"name": "tactics", "mountPath": TACTICS_MOUNT},
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
