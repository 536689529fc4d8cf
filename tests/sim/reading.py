"""Reading objects as the API server has them: what the rooms of the world ask of a pod, a Job, a claim. Nothing here changes anything."""

from __future__ import annotations

from pretune.api.names import CACHE, HOLD, PROOF, ROLE, TUNING
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.protocol import TASK_VARIABLE, Task

GPU = "nvidia.com/gpu"


def ref(obj: Object) -> Object:
    """Just enough of an object to patch or delete it, and only it."""
    meta = obj["metadata"]
    return {
        "apiVersion": obj["apiVersion"],
        "kind": obj["kind"],
        "metadata": {name: meta[name] for name in ("namespace", "name", "uid") if name in meta},
    }


def label(obj: Object, name: str) -> str:
    return str((obj["metadata"].get("labels") or {}).get(name, ""))


def note(obj: Object, name: str) -> str:
    return str((obj["metadata"].get("annotations") or {}).get(name, ""))


def controller(obj: Object) -> Object:
    """The controlling owner's reference, or {}."""
    return next(
        (one for one in obj["metadata"].get("ownerReferences") or () if one.get("controller")), {}
    )


def owner(obj: Object) -> str:
    """The controlling owner's uid, or ""."""
    return str(controller(obj).get("uid", ""))


def leaving(obj: Object) -> bool:
    return "deletionTimestamp" in obj["metadata"]


# --- pods


def terminal(pod: Object) -> bool:
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def consumer(pod: Object) -> bool:
    return bool(label(pod, CACHE)) and not label(pod, ROLE)


def engine(pod: Object) -> str:
    """The engine is the last init container of a tuning or proof pod, and what asks for GPUs of any other; inspect and prune have none."""
    if label(pod, ROLE) in (TUNING, PROOF):
        init = pod["spec"].get("initContainers") or ()
        return str(init[-1]["name"]) if init else ""
    asking = (one["name"] for one in pod["spec"]["containers"] if gpus_of(one))
    return "" if label(pod, ROLE) else str(next(asking, ""))


def gpus_of(container: Object) -> int:
    return int(((container.get("resources") or {}).get("limits") or {}).get(GPU, 0))


def gpus(pod: Object) -> int:
    """What the pod occupies on its node: its containers and native sidecars."""
    beside = [
        one
        for one in pod["spec"].get("initContainers") or ()
        if one.get("restartPolicy") == "Always"
    ]
    return sum(gpus_of(one) for one in (*pod["spec"]["containers"], *beside))


def is_held(pod: Object) -> bool:
    return any(gate["name"] == HOLD for gate in pod["spec"].get("schedulingGates") or ())


def every_container(pod: Object) -> list[Object]:
    """As they are specified, in the order in which they start."""
    return [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]


def containers(pod: Object) -> list[Object]:
    """The statuses of all its containers, in their order."""
    return [
        *pod["status"].get("initContainerStatuses", ()),
        *pod["status"].get("containerStatuses", ()),
    ]


def status(pod: Object, name: str) -> Object:
    return next((one for one in containers(pod) if one["name"] == name), {})


def state(pod: Object, name: str) -> Object:
    return status(pod, name).get("state") or {}


def end_of(pod: Object, container: str) -> Object | None:
    """How a container ended, or None."""
    found = state(pod, container).get("terminated")
    return dict(found) if found else None


def running(pod: Object) -> set[str]:
    """The names of its containers that run."""
    return {one["name"] for one in containers(pod) if "running" in one["state"]}


def ready(pod: Object) -> bool:
    found = said(pod, "Ready")
    return not leaving(pod) and found is not None and found["status"] == "True"


def said(obj: Object, kind: str) -> Object | None:
    """The condition of this type."""
    return next(
        (one for one in (obj.get("status") or {}).get("conditions", ()) if one["type"] == kind),
        None,
    )


def claims(pod: Object) -> list[str]:
    volumes = pod["spec"].get("volumes") or ()
    return [
        one["persistentVolumeClaim"]["claimName"]
        for one in volumes
        if "persistentVolumeClaim" in one
    ]


def required_nodes(pod: Object) -> list[str]:
    """The names of the nodes that its terms ask for; []: none by name."""
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    return [
        value
        for term in required.get("nodeSelectorTerms") or ()
        for field in term.get("matchFields") or ()
        for value in field["values"]
    ]


def task(pod: Object, container: str) -> Task:
    """As the kubelet hands it over: `$$` is one dollar."""
    for one in every_container(pod):
        if one["name"] == container:
            value = next(env["value"] for env in one["env"] if env["name"] == TASK_VARIABLE)
            return Task.load(value.replace("$$", "$"))
    raise AssertionError(f"no container {container}")


def folder(task: Task) -> str:
    """Of the cache, below the claim's root."""
    return f"{task.subPath}/{task.cache}" if task.subPath else task.cache


# --- Jobs


def over(job: Object) -> bool:
    return bool(said(job, "Complete") or said(job, "Failed"))


def finished_at(job: Object) -> float:
    found = said(job, "Complete") or said(job, "Failed")
    assert found is not None
    return parse_timestamp(found["lastTransitionTime"])
