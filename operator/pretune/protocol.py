"""What passes between the controller and the agent: the task given to it, its report, and the manifest on the claim.

The agent runs in the engine's image, so this module is standard library only and speaks Python 3.8.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Dict, List, Mapping, Optional, Type, TypeVar

SCHEMA = "pretune.dev/bundle/v1"
TASK_VARIABLE = "PRETUNE_TASK"
POD_UID_VARIABLE = "PRETUNE_POD_UID"  # by the downward API: check, seal and prune name their staging folder after it
TERMINATION_LOG = "/dev/termination-log"

# Where things are in a container of ours, and in the engine (the tactics: its override variable points there).
CLAIM_MOUNT = "/pretune/claim"  # the claim at its root, no subPath
AGENT_MOUNT = "/pretune/agent"
TACTICS_MOUNT = "/pretune/tactics"
SOURCE_MOUNT = "/pretune/import"  # import: the claim that holds what vLLM wrote elsewhere, at its root, read-only
AGENT_FILE = "agent.pyz"  # the ConfigMap's key

TOO_SLOW = 75  # seed's exit code where it may still be stuck in a read of the claim: its script clears the folder once more, and ends well

# The kubelet shares 12 KiB of termination messages among a pod's containers and cuts one at 4,096 bytes
# (docs/dev/facts-kubernetes.md).
REPORT_BYTES = 700
ANSWER_BYTES = 4000  # of inspect, which is alone in its pod
ANSWERS = 8  # bundles that one inspect answers for, so that its report stays within ANSWER_BYTES

T = TypeVar("T")


class WireError(ValueError):
    """A manifest, task or report that is not of our form; the message names the field."""


@dataclass(frozen=True)
class Inputs:
    """What a bundle's id is made of. Adoption compares all of it, since an id holds only 12 hex of the hash."""

    fingerprint: str
    revision: str
    target: str
    nodeSelector: Mapping[
        str, Any
    ]  # identity.placement(): the target's terms laid over the pod's own

    def bundle_id(self) -> str:
        """12 hex of sha256 over the inputs, then the target's name: at most 33 characters."""
        text = json.dumps(
            [self.fingerprint, self.revision, self.nodeSelector],
            sort_keys=True,
            separators=(",", ":"),
        )
        return hashlib.sha256(text.encode()).hexdigest()[:12] + "-" + self.target


@dataclass(frozen=True)
class Versions:
    """Of what ran, as the image and the files say; "" is unknown, and unknown equals unknown."""

    vllm: str = ""
    flashinfer: str = ""
    cuda: str = ""
    gpu: str = ""


@dataclass(frozen=True)
class Writer:
    """Whose files a bundle's are: prune runs as them."""

    uid: int
    gid: int
    groups: List[int] = field(default_factory=list)


@dataclass(frozen=True)
class File:
    path: str  # relative to the part's folder, with "/"
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Part:
    """One kind of cache in a bundle: its folder there, the engine's variable that points to it, its layout, its files."""

    name: str  # "tactics"
    variable: str  # "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"
    layout: str  # Managed | PerRank | Shared | Empty
    entries: int
    files: List[File]
    folders: List[str]  # every folder below the part's own, empty ones included


@dataclass(frozen=True)
class Manifest:
    """`bundles/<id>/manifest.json`: what is in a bundle, of what it was made, and by whom."""

    id: str
    cache: str  # namespace.name
    inputs: Inputs
    versions: Versions
    writer: Writer
    gpus: int
    tunedSeconds: int  # from the check container's end to the seal's
    sealedAt: str  # RFC 3339, UTC
    parts: List[Part]
    message: str = ""
    schema: str = SCHEMA

    def dump(self) -> bytes:
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def load(cls, raw: bytes) -> "Manifest":
        """Raises WireError when the bytes are not a manifest of this schema."""
        data = _object(raw, "manifest")
        if data.get("schema") != SCHEMA:
            raise WireError(
                "manifest: schema is %r, this release reads %r" % (data.get("schema"), SCHEMA)
            )
        try:
            parts = [
                _build(Part, {**part, "files": [_build(File, f) for f in part["files"]]})
                for part in data["parts"]
            ]
            return _build(
                cls,
                {
                    **data,
                    "inputs": _build(Inputs, data["inputs"]),
                    "versions": _build(Versions, data["versions"]),
                    "writer": _build(Writer, data["writer"]),
                    "parts": parts,
                },
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise WireError("manifest: %s" % error) from None


def digest(manifest: bytes) -> str:
    """The bundle's digest: that of its manifest, which holds those of its files."""
    return "sha256:" + hashlib.sha256(manifest).hexdigest()


@dataclass(frozen=True)
class Task:
    """What one agent container is to do; passed as JSON in PRETUNE_TASK."""

    cache: str  # namespace.name: the folder below the claim's root (and subPath)
    subPath: str = ""
    inputs: Optional[Inputs] = None  # check, seal, seed
    gpus: int = 0
    command: List[str] = field(
        default_factory=list
    )  # the engine's command and args: its interpreter is read from them
    ready: Optional[str] = None  # URL of an HTTP engine; None for exec and grpc probes
    headers: Mapping[str, str] = field(default_factory=dict)  # of that probe
    ids: List[str] = field(
        default_factory=list
    )  # inspect: the wanted ones; prune: the ones to remove
    proven: bool = False  # seed: give only a bundle whose proof is on the claim
    onClaim: bool = False  # prove: the engine reads the bundle on the claim itself, read-only; there is no copy to compare
    source: str = ""  # import: the folder in the source claim, which is mounted at SOURCE_MOUNT; "" is its root

    def dump(self) -> str:
        # What asdict says, without the copies that it makes: the webhook says it for each pod.
        data = {**vars(self), "inputs": None if self.inputs is None else vars(self.inputs)}
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @classmethod
    def load(cls, raw: str) -> "Task":
        data = _object(raw.encode(), "task")
        if data.get("inputs") is not None:
            data["inputs"] = _build(Inputs, data["inputs"])
        return _build(cls, data)


@dataclass(frozen=True)
class Report:
    """What a container of ours says at its end, in its termination message.

    `reason` is one of reasons.REASONS, or "Checked" (check: go on), "Proven", "Inspected", "Pruned", "PruneFailed", "InspectFailed",
    "Seeded", or why seed left the folder empty: "NoBundle", "NotProven", "CorruptBundle", "InputsDiffer", "VersionsDiffer", "NoSpace",
    "TooSlow", "UnsafePath", "SeedFailed", and from its script "NoPython", "AgentMissing".
    """

    by: str  # check | seal | seed | prove | import | inspect | prune
    reason: str
    message: str = ""
    id: str = ""
    layout: str = ""
    entries: int = 0
    digest: str = ""
    versions: Optional[Versions] = None
    writer: Optional[Writer] = None
    seconds: int = 0  # tunedSeconds
    newEntries: int = 0  # prove: tactics that the engine tuned although it had the bundle
    proven: bool = False  # check, and inspect's answers: the bundle's proof is on the claim
    at: str = ""  # sealedAt
    fingerprint: str = ""  # in inspect's answers: adoption compares it, and remembers it for bundles that it did not ask for
    bundles: List["Report"] = field(
        default_factory=list
    )  # inspect: the bundles found whole, wanted ones first
    more: int = 0  # inspect: bundles found beyond ANSWERS

    def dump(self) -> str:
        """One JSON line of at most REPORT_BYTES (ANSWER_BYTES for inspect): the prose is cut first."""
        limit = ANSWER_BYTES if self.by == "inspect" else REPORT_BYTES
        data = _lean(self)
        text = _compact(data)
        while len(text.encode()) > limit and data.get("message"):
            over = len(text.encode()) - limit
            kept = (
                data["message"]
                .encode()[: max(0, len(data["message"].encode()) - over - 3)]
                .decode(errors="ignore")
            )
            data["message"] = kept + "…" if kept else ""
            text = _compact(data)
        return text

    @classmethod
    def load(cls, raw: str) -> "Optional[Report]":
        """None when the text is no report of ours: another program's words, or cut off."""
        try:
            return cls._of(_object(raw.encode(), "report"))
        except WireError:
            return None

    @classmethod
    def _of(cls, data: Dict[str, Any]) -> "Report":
        for name, kind in (("versions", Versions), ("writer", Writer)):
            if data.get(name) is not None:
                data[name] = _build(kind, data[name])
        data["bundles"] = [cls._of(one) for one in data.get("bundles", [])]
        if not data.get("by") or not data.get("reason"):
            raise WireError("report: no by or no reason")
        return _build(cls, data)


def _lean(value: Any) -> Any:
    """asdict without what equals its default, so that a report stays short."""
    out = {}
    for one in fields(value):
        got = getattr(value, one.name)
        if got in ("", 0, None) or got == [] or got == {}:
            if one.name in ("uid", "gid"):
                out[one.name] = got
            continue
        if isinstance(got, list) and got and isinstance(got[0], Report):
            got = [_lean(item) for item in got]
        elif isinstance(got, (Versions, Writer)):
            got = _lean(got)
        out[one.name] = got
    return out


def _compact(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False)


def _object(raw: bytes, what: str) -> Dict[str, Any]:
    try:
        data = json.loads(raw)
    except (ValueError, UnicodeDecodeError) as error:
        raise WireError("%s: not JSON: %s" % (what, error)) from None
    if not isinstance(data, dict):
        raise WireError("%s: not an object" % what)
    return data


def _build(kind: Type[T], data: Mapping[str, Any]) -> T:
    """The dataclass from a mapping: unknown fields are left out (a newer writer), missing ones are named."""
    if not isinstance(data, Mapping):
        raise WireError("%s: not an object" % kind.__name__)
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**{name: value for name, value in data.items() if name in known})
    except TypeError as error:
        raise WireError("%s: %s" % (kind.__name__, error)) from None
