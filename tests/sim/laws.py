"""What must hold at every moment, whichever process was killed, and the form of every status.

docs/dev/invariants.md: 1, 2, 8 and 9.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import yaml
from pretune.api.advice import ADVICE
from pretune.api.names import BUNDLE, CACHE, KIND, PROOF, ROLE, TUNING
from pretune.api.reasons import REASONS
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.protocol import AGENT_FILE

from tests.sim.cluster import Server, Write
from tests.sim.world import World

CRD = Path(__file__).parents[2] / "charts/pretune/templates/crds/autotunecaches.yaml"
LOST = 600.0
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@cache
def crd() -> Object:
    """The chart's CRD without its template actions, which stand on lines of their own."""
    lines = (line for line in CRD.read_text().splitlines() if not line.startswith("{{"))
    found: Object = yaml.safe_load("\n".join(lines))
    return found


@cache
def status_validator() -> jsonschema.Draft202012Validator:
    """Of the CRD's status. An unknown field is an error: the API server would drop it in silence."""
    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    formats = jsonschema.FormatChecker(formats=())
    formats.checks("date-time")(
        lambda text: not isinstance(text, str) or TIME.fullmatch(text) is not None
    )
    return jsonschema.Draft202012Validator(_closed(schema), format_checker=formats)


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return [_closed(one) for one in schema] if isinstance(schema, list) else schema
    made = {
        name: _closed(one) for name, one in schema.items() if not name.startswith("x-kubernetes")
    }
    if (
        schema.get("type") == "object"
        and "properties" in schema
        and "additionalProperties" not in schema
    ):
        made["additionalProperties"] = False
    return made


class Laws:
    """Listens to every write; `check` looks at the whole after each step."""

    def __init__(self, server: Server, world: World) -> None:
        self.server, self.world = server, world
        self.sealed: dict[tuple[str, tuple[str, str]], str] = {}  # (claim's uid, place) -> digest
        self.status_writes = 0
        self.late_leaders = (
            False  # whether one was stopped in its middle: what it makes then, nobody could know of
        )
        self.wasted: list[str] = []  # tuning pods made although their bundle was on the claim
        server.listeners.append(self._on_write)

    def _on_write(self, write: Write) -> None:
        if write.kind == "AutotuneCache" and write.by:
            assert write.verb == "patch status", (
                f"the controller only ever writes a cache's status: {write}"
            )
            self.status_writes += 1
            valid_status(write.object.get("status") or {})
        if write.by and write.verb != "delete":
            ours = [
                one for one in write.object["metadata"].get("finalizers", ()) if "pretune" in one
            ]
            assert not ours, f"a finalizer of ours on {write.kind} {write.name}"
        if write.by:
            _is_permitted(write)
        if (
            write.kind == "Pod"
            and write.verb == "create"
            and write.object["metadata"]["labels"].get(ROLE) == TUNING
        ):
            bundle = write.object["metadata"]["labels"][BUNDLE]
            if any(
                place[1] == bundle
                for volume in self.world.volumes.values()
                for place in volume.bundles
            ):
                self.wasted.append(bundle)

    def check(self) -> None:
        self._one_attempt()
        self._bundles_stay()
        for start in self.world.starts:
            assert not start.sealed_already, (
                f"the engine of {start.bundle} was started although it is on the claim"
            )

    def _one_attempt(self) -> None:
        """docs/dev/invariants.md, 1, proofs included. A pod whose node has not answered for ten minutes counts as gone."""
        alive = Counter(
            pod["metadata"]["labels"][BUNDLE]
            for role in (TUNING, PROOF)
            for pod in self.server.matching("v1", "Pod", "", f"{ROLE}={role}", "")
            if pod["status"]["phase"] in ("Pending", "Running") and not self._lost(pod)
        )
        assert all(count <= 1 for count in alive.values()), (
            f"two live attempts at one bundle: {alive}"
        )
        targets = Counter(bundle.partition("-")[2] for bundle in alive)
        assert self.late_leaders or all(count <= 1 for count in targets.values()), (
            f"two at work on a target: {alive}"
        )
        jobs = Counter(
            job["metadata"]["labels"][BUNDLE]
            for role in (TUNING, PROOF)
            for job in self.server.matching("batch/v1", "Job", "", f"{ROLE}={role}", "")
            if _may_make_a_pod(job)
        )
        assert all(count <= 1 for count in jobs.values()), (
            f"two unfinished Jobs of one bundle: {jobs}"
        )

    def _lost(self, pod: Object) -> bool:
        since = pod["metadata"].get("deletionTimestamp")
        return bool(since) and self.world.clock.now - parse_timestamp(since) >= LOST

    def _bundles_stay(self) -> None:
        """docs/dev/invariants.md, 2: on one claim an id has one digest, until prune has removed it."""
        for uid, volume in self.world.volumes.items():
            for place, bundle in volume.bundles.items():
                before = self.sealed.setdefault((uid, place), bundle.digest)
                if place[1] not in self.world.pruned:
                    assert before == bundle.digest, f"bundle {place[1]} changed"


def _may_make_a_pod(job: Object) -> bool:
    """Not one that is over, nor one that was told to end: its deadline comes before any pod."""
    said = {one["type"] for one in (job.get("status") or {}).get("conditions", ())}
    return (
        not said & {"Complete", "Failed", "FailureTarget"}
        and job["spec"].get("activeDeadlineSeconds") != 1
    )


def _is_permitted(write: Write) -> None:
    """What charts/pretune/templates/policy/controller_objects.yaml lets the controller write."""
    meta, where = write.object["metadata"], f"a policy would refuse {write}"
    labels, owners = meta.get("labels") or {}, meta.get("ownerReferences") or ()
    assert meta["namespace"] != "kube-system", where
    if write.kind == "Job":
        (owner,) = [owner for owner in owners if owner.get("controller")]
        assert (owner["kind"], owner["name"]) == (KIND, labels.get(CACHE)) and ROLE in labels, where
        given = write.object["spec"]["template"]["metadata"]["labels"]
        assert {name: given.get(name) for name in (CACHE, ROLE)} == {
            name: labels[name] for name in (CACHE, ROLE)
        }, where
    if write.kind == "ConfigMap":
        assert re.fullmatch("pretune-agent-[0-9a-f]{12}", meta["name"]), where
        assert write.verb == "delete" or (
            write.object["immutable"] and list(write.object["binaryData"]) == [AGENT_FILE]
        ), where
    if write.kind == "PersistentVolumeClaim":
        assert meta["name"] == f"pretune-{labels.get(CACHE)}" and labels.get(ROLE) == "claim", where


def valid_status(status: Object) -> None:
    """Of the CRD's form, every reason in the closed list, list-map keys unique."""
    _check_status(json.dumps(status))


@lru_cache(maxsize=10_000)  # a journey that is repeated with another fault writes the same statuses
def _check_status(text: str) -> None:
    status = json.loads(text)
    errors = sorted(
        status_validator().iter_errors(status), key=lambda one: list(map(str, one.path))
    )
    assert not errors, "\n".join(
        f"status.{'.'.join(map(str, one.path))}: {one.message}" for one in errors
    )
    for field, key in (("conditions", "type"), ("bundles", "id")):
        names = [one[key] for one in status.get(field, ())]
        assert len(names) == len(set(names)), f"status.{field}: {key} twice: {names}"
    said = [one for field in ("conditions", "bundles") for one in status.get(field, ())]
    said += [one["lastFailure"] for one in status.get("bundles", ()) if "lastFailure" in one]
    said += [one["undeliverable"] for one in status.get("bundles", ()) if "undeliverable" in one]
    unknown = {one["reason"] for one in said} - set(REASONS)
    assert not unknown, f"reasons that reasons.REASONS does not know: {unknown}"
    advice = {one["reason"] for one in status.get("warnings", ())} - set(ADVICE)
    assert not advice, f"reasons that reasons.ADVICE does not know: {advice}"
