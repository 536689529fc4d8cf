"""A process beside the cluster that does what hardware and a storage driver do elsewhere.

- GPUs: each node says that it has `nvidia.com/gpu`, again whenever a kubelet that starts has set it
  to 0.
- Volumes: a claim of our StorageClasses gets a PersistentVolume on a folder of this machine, which
  every node sees, so ReadWriteMany holds. Its mode is 0777, which is what any uid sees of an NFS
  export or of a driver with fsGroup. A released volume with reclaimPolicy Delete is deleted with
  its folder.

The rules for claims are those of the external-provisioner contract: the controller manager
annotates a claim with the provisioner's name, and with the selected node where the class waits for
the first consumer.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from localcluster.api import Api, ApiError, Object
from localcluster.places import GPUS, VOLUMES

PROVISIONER = "pretune.dev/local"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
WATCH_SECONDS = 300
MERGE_PATCH = "application/merge-patch+json"


def main() -> NoReturn:
    """Watch nodes, claims and volumes for ever; a lost watch is opened again after a second."""
    api = Api()
    VOLUMES.mkdir(parents=True, exist_ok=True)
    watches: list[tuple[str, Callable[[Api, Object], None]]] = [
        ("/api/v1/nodes", keep_gpus),
        ("/api/v1/persistentvolumeclaims", provision),
        ("/api/v1/persistentvolumes", reclaim),
    ]
    for path, handle in watches:
        threading.Thread(target=_follow, args=(api, path, handle), daemon=True).start()
    while True:
        time.sleep(3600)


def _follow(api: Api, path: str, handle: Callable[[Api, Object], None]) -> NoReturn:
    while True:
        try:
            for item in api.watch(path, WATCH_SECONDS):
                handle(api, item)
        except ApiError as refusal:
            print(f"{path}: {refusal}", file=sys.stderr, flush=True)
            time.sleep(1)
        except Exception:
            traceback.print_exc()
            time.sleep(1)


def keep_gpus(api: Api, node: Object) -> None:
    """Write the GPUs into a node's status where they are missing."""
    status = node.get("status", {})
    wanted = {"nvidia.com/gpu": str(GPUS)}
    if all(
        status.get(field, {}).get("nvidia.com/gpu") == str(GPUS)
        for field in ("capacity", "allocatable")
    ):
        return
    path = f"/api/v1/nodes/{node['metadata']['name']}/status"
    api.call("PATCH", path, {"status": {"capacity": wanted, "allocatable": wanted}}, MERGE_PATCH)


def provision(api: Api, claim: Object) -> None:
    """Make the folder and the volume of a claim that asks us for one and has none."""
    meta, spec = claim["metadata"], claim["spec"]
    asked = meta.get("annotations", {})
    if asked.get("volume.kubernetes.io/storage-provisioner") != PROVISIONER or spec.get(
        "volumeName"
    ):
        return
    if meta.get("deletionTimestamp"):
        return
    storage_class = api.call(
        "GET", f"/apis/storage.k8s.io/v1/storageclasses/{spec['storageClassName']}"
    )
    waits = storage_class.get("volumeBindingMode") == "WaitForFirstConsumer"
    if waits and "volume.kubernetes.io/selected-node" not in asked:
        return
    name = f"pvc-{meta['uid']}"
    folder = VOLUMES / name
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    volume: Object = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {PROVISIONED_BY: PROVISIONER}},
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "volumeMode": "Filesystem",
            "storageClassName": spec["storageClassName"],
            "persistentVolumeReclaimPolicy": storage_class.get("reclaimPolicy", "Delete"),
            "hostPath": {"path": str(folder), "type": "Directory"},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": meta["namespace"],
                "name": meta["name"],
                "uid": meta["uid"],
                "resourceVersion": meta["resourceVersion"],
            },
        },
    }
    try:
        api.call("POST", "/api/v1/persistentvolumes", volume)
    except ApiError as refusal:
        if refusal.status != 409:  # there already: the claim's own event came twice
            raise


def reclaim(api: Api, volume: Object) -> None:
    """Remove a volume of ours, with its folder, once its claim is gone and its policy is Delete."""
    meta, spec = volume["metadata"], volume["spec"]
    ours = meta.get("annotations", {}).get(PROVISIONED_BY) == PROVISIONER
    released = volume.get("status", {}).get("phase") == "Released"
    if not (ours and released and spec.get("persistentVolumeReclaimPolicy") == "Delete"):
        return
    folder = VOLUMES / meta["name"]
    if spec.get("hostPath", {}).get("path") != str(folder):
        return  # not as we made it: never remove a folder that somebody else named
    if not meta.get("deletionTimestamp"):
        try:
            api.call("DELETE", f"/api/v1/persistentvolumes/{meta['name']}")
        except ApiError as refusal:
            if refusal.status != 404:
                raise
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
