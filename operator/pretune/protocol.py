"""What the controller and the agent exchange: tasks, reports, and the manifest on the claim.

The agent runs in the engine's image, so this module is standard library only and speaks Python 3.8.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Dict, List, Mapping, Optional, Union, cast

SCHEMA = "pretune.dev/bundle/v1"
TASK_VARIABLE = "PRETUNE_TASK"
# By the downward API: check, seal and prune name their staging folder after it.
POD_UID_VARIABLE = "PRETUNE_POD_UID"
TERMINATION_LOG = "/dev/termination-log"

# Where things are in the agent's containers, and in the engine.
PARTS_MOUNT = "/pretune"  # a folder below it for each part of the engine, by its name
CLAIM_MOUNT = "/pretune/claim"  # the claim at its root, no subPath
AGENT_MOUNT = "/pretune/agent"
# Import: the claim that holds what the engine wrote elsewhere, at its root, read-only.
SOURCE_MOUNT = "/pretune/import"
AGENT_FILE = "agent.py"  # the ConfigMap's key

# Seed's exit code where it may still hang in a read of the claim. Its script then empties the
# folder.
TOO_SLOW_EXIT_CODE = 75
# Of an agent container whose agent is not this release's, and did not run.
AGENT_CHANGED_EXIT_CODE = 76

# The kubelet shares 12 KiB of termination messages among a pod's containers and cuts one at 4,096
# bytes (docs/dev/facts-kubernetes.md).
REPORT_BYTES = 700
ANSWER_BYTES = 4000  # of inspect, which is alone in its pod
ANSWERS = 8  # bundles that one inspect answers for, so that its report stays within ANSWER_BYTES

# How an engine's files may lie in a bundle: the CRD's enum of status.bundles[].layout. In the order
# of how few pods may share one folder.
MANAGED, PER_RANK, SHARED, EMPTY = "Managed", "PerRank", "Shared", "Empty"
LAYOUTS = (EMPTY, MANAGED, PER_RANK, SHARED)

# Bounds of what is read.
MAX_MESSAGE = 4096  # characters of a report: the kubelet cuts a termination message there
MAX_TEXT = 1 << 20  # characters of any other text
MAX_NUMBER = 2**31 - 1  # the status' integers are of 32 bits
MAX_ID = 2**32 - 1  # of a user or group
MAX_GROUPS = 128
MAX_PARTS = 16
MAX_FILES = 10000  # of a bundle
MAX_BYTES = 256 * 1024 * 1024  # of a bundle


class WireError(ValueError):
    """A manifest, task or report that is not of our form; the message names the field."""


@dataclass(frozen=True)
class Inputs:
    """What a bundle's id is made of.

    Adoption compares all of it, since an id holds only 12 hex of the hash.
    """

    fingerprint: str
    revision: str
    target: str
    # identity.placement(): the target's terms laid over the pod's own.
    nodeSelector: Mapping[str, Any]

    def bundle_id(self) -> str:
        """Return 12 hex of sha256 over the inputs, and the target's name: at most 33 characters."""
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
class SealedPart:
    """What a bundle has of one part of the engine: the folder of that name in it."""

    name: str  # "tactics"
    variable: str  # "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"
    layout: str  # one of LAYOUTS
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
    parts: List[SealedPart]  # at least one
    message: str = ""
    schema: str = SCHEMA

    @property
    def layout(self) -> str:
        """The layout of the part that the fewest pods may share; Empty: nothing in any part."""
        return max((part.layout for part in self.parts), key=LAYOUTS.index)

    @property
    def entries(self) -> int:
        return sum(part.entries for part in self.parts)

    @property
    def number_of_files(self) -> int:
        return sum(len(part.files) for part in self.parts)

    def dump(self) -> bytes:
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def load(cls, raw: bytes) -> "Manifest":
        """Return the manifest. Raises WireError where the bytes are none of this schema."""
        data = _Fields(_json(raw, "manifest"), "manifest")
        schema = data.text("schema")
        if schema != SCHEMA:
            raise WireError("manifest: schema is %r, this release reads %r" % (schema, SCHEMA))
        return cls(
            id=data.text("id"),
            cache=data.text("cache"),
            inputs=_inputs(data.object("inputs")),
            versions=_versions(data.object("versions")),
            writer=_writer(data.object("writer")),
            gpus=data.number("gpus"),
            tunedSeconds=data.number("tunedSeconds"),
            sealedAt=data.timestamp("sealedAt"),
            parts=[_part(part) for part in data.objects("parts", MAX_PARTS)],
            message=data.text("message", "", most=MAX_TEXT),
        )


def digest(manifest: bytes) -> str:
    """Return the bundle's digest: that of its manifest, which holds those of its files."""
    return "sha256:" + hashlib.sha256(manifest).hexdigest()


@dataclass(frozen=True)
class Task:
    """What one agent container is to do; passed as JSON in PRETUNE_TASK."""

    cache: str  # namespace.name: the folder below the claim's root (and subPath)
    subPath: str = ""
    inputs: Optional[Inputs] = None  # check, seal, seed
    gpus: int = 0
    # The engine's command and args: its interpreter is read from them.
    command: List[str] = field(default_factory=list)
    ready: Optional[str] = None  # URL of an HTTP engine; None for exec and grpc probes
    headers: Mapping[str, str] = field(default_factory=dict)  # of that probe
    # Inspect: the wanted bundles; prune: those to remove.
    ids: List[str] = field(default_factory=list)
    proven: bool = False  # seed: give only a bundle whose proof is on the claim
    # Prove: the engine reads the bundle on the claim, read-only; there is no copy to compare.
    onClaim: bool = False
    # Import: the folder in the source claim, which is mounted at SOURCE_MOUNT; "" is its root.
    source: str = ""
    engine: str = "vllm"  # by its name in engines/registry.py
    # Without `ready`: URLs, one of which the engine may answer once it is ready.
    health: List[str] = field(default_factory=list)
    argsOnly: bool = False  # command has only args: the image's entrypoint runs them

    def dump(self) -> str:
        # As asdict, without the copies that it makes: the webhook does this for each pod.
        data = {**vars(self), "inputs": None if self.inputs is None else vars(self.inputs)}
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @classmethod
    def load(cls, raw: str) -> "Task":
        """Return the task. Raises WireError, which names the field."""
        data = _Fields(_json(raw, "task"), "task")
        inputs, ready = data.optional("inputs"), data.data.get("ready")
        return cls(
            cache=data.text("cache"),
            subPath=data.text("subPath", ""),
            inputs=None if inputs is None else _inputs(inputs),
            gpus=data.number("gpus", 0),
            command=data.texts("command"),
            ready=None if ready is None else data.text("ready"),
            headers=data.text_map("headers"),
            ids=data.texts("ids"),
            proven=data.flag("proven"),
            onClaim=data.flag("onClaim"),
            source=data.text("source", ""),
            engine=data.text("engine", "vllm"),
            health=data.texts("health"),
            argsOnly=data.flag("argsOnly"),
        )


# Reasons of reports that are on no condition; the others are those of api/reasons.py. What was
# done:
CHECKED = "Checked"  # the attempt goes on
PROVEN = "Proven"
INSPECTED = "Inspected"
PRUNED = "Pruned"
SEEDED = "Seeded"
# Why it was not done:
INSPECT_FAILED = "InspectFailed"
PRUNE_FAILED = "PruneFailed"
# Why seed left the folder empty (or NoSpace, UnsafePath, NoPython, AgentMissing, AgentChanged):
NO_BUNDLE = "NoBundle"
NOT_PROVEN = "NotProven"
CORRUPT_BUNDLE = "CorruptBundle"
INPUTS_DIFFER = "InputsDiffer"
VERSIONS_DIFFER = "VersionsDiffer"
CLAIM_TOO_SLOW = "TooSlow"
SEED_FAILED = "SeedFailed"

_OF_A_BUNDLE = ("Sealed", "NothingToTune")  # reasons of a report that says what a bundle is


@dataclass(frozen=True)
class Report:
    """What an agent container reports at its end, in its termination message."""

    by: str  # check | seal | seed | prove | import | inspect | prune
    reason: str  # one of api/reasons.py, or of those above
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
    # In inspect's answers: adoption compares it, and keeps it of bundles that it did not ask for.
    fingerprint: str = ""
    bundles: List["Report"] = field(
        default_factory=list
    )  # inspect: the bundles found whole, wanted ones first
    more: int = 0  # inspect: bundles found beyond ANSWERS

    def dump(self) -> str:
        """Return one JSON line of at most REPORT_BYTES, for inspect ANSWER_BYTES.

        The message is cut first.
        """
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
        """Return the report, with every field of its declared type and within its bounds.

        None for any other text: another program's words, a report that was cut off or is malformed.
        A tenant's pod may say anything here, so nothing of it is trusted.
        """
        if len(raw) > MAX_MESSAGE:
            return None
        try:
            return cls._from(_Fields(_json(raw, "report"), "report"), nested=False)
        except WireError:
            return None

    @classmethod
    def _from(cls, data: "_Fields", nested: bool) -> "Report":
        versions, writer = data.optional("versions"), data.optional("writer")
        bundles = [] if nested else data.objects("bundles", ANSWERS, [])
        report = cls(
            by=data.text("by", most=16),
            reason=data.text("reason", most=64),
            message=data.text("message", "", most=MAX_MESSAGE),
            id=data.text("id", "", most=63),
            layout=data.text("layout", "", most=32),
            entries=data.number("entries", 0),
            digest=data.text("digest", "", most=128),
            versions=None if versions is None else _versions(versions),
            writer=None if writer is None else _writer(writer),
            seconds=data.number("seconds", 0),
            newEntries=data.number("newEntries", 0),
            proven=data.flag("proven"),
            at=data.timestamp("at", ""),
            fingerprint=data.text("fingerprint", "", most=64),
            bundles=[cls._from(bundle, nested=True) for bundle in bundles],
            more=data.number("more", 0),
        )
        if not report.by or not report.reason:
            raise WireError("report: no by or no reason")
        if report.layout not in ("", *LAYOUTS):
            raise WireError("report: layout %r is unknown" % report.layout)
        if report.reason in _OF_A_BUNDLE and not (report.layout and report.digest and report.at):
            raise WireError("report: a bundle without layout, digest or time")
        return report


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


def _json(raw: Union[str, bytes], what: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise WireError("%s: not JSON: %s" % (what, error)) from None


class _Fields:
    """The fields of a JSON object, each read with its type and bounds.

    Every method raises WireError, which names the field. `default` is what a field that is absent
    has; without one it has to be there. Fields that are not asked for are left out (a newer
    writer).
    """

    def __init__(self, data: Any, what: str) -> None:
        if not isinstance(data, dict):
            raise WireError("%s: not an object" % what)
        self.data: Dict[str, Any] = data
        self.what = what

    def _get(self, name: str, default: Any) -> Any:
        value = self.data.get(name, default)
        if value is None:
            raise WireError("%s: no %s" % (self.what, name))
        return value

    def _error(self, name: str, expected: str) -> WireError:
        return WireError("%s: %s is not %s" % (self.what, name, expected))

    def text(self, name: str, default: Optional[str] = None, most: int = MAX_TEXT) -> str:
        """A text of at most so many characters, which UTF-8 can encode."""
        value = self._get(name, default)
        if not _is_text(value, most):
            raise self._error(name, "a text of at most %d characters" % most)
        return cast(str, value)

    def texts(self, name: str) -> List[str]:
        """A list of texts; [] where it is absent."""
        value = self._get(name, [])
        if not isinstance(value, list) or not all(_is_text(text, MAX_TEXT) for text in value):
            raise self._error(name, "a list of texts")
        return value

    def text_map(self, name: str) -> Dict[str, str]:
        """An object whose values are texts; {} where it is absent."""
        value = self._get(name, {})
        if not isinstance(value, dict) or not all(
            _is_text(text, MAX_TEXT) for text in value.values()
        ):
            raise self._error(name, "an object of texts")
        return value

    def number(self, name: str, default: Optional[int] = None, most: int = MAX_NUMBER) -> int:
        """An integer from 0 to `most`."""
        value = self._get(name, default)
        if not _is_number(value, most):
            raise self._error(name, "a number from 0 to %d" % most)
        return cast(int, value)

    def flag(self, name: str) -> bool:
        """True or false; false where it is absent."""
        value = self._get(name, False)
        if not isinstance(value, bool):
            raise self._error(name, "true or false")
        return value

    def timestamp(self, name: str, default: Optional[str] = None) -> str:
        """A time as time.strftime("%Y-%m-%dT%H:%M:%SZ") writes it."""
        value = self._get(name, default)
        if value != default and not (isinstance(value, str) and _is_timestamp(value)):
            raise self._error(name, "a time in RFC 3339, UTC, without fractions")
        return cast(str, value)

    def object(self, name: str) -> "_Fields":
        """The fields of an object below."""
        return _Fields(self._get(name, None), name)

    def optional(self, name: str) -> "Optional[_Fields]":
        """The fields of an object below; None where it is absent."""
        return None if self.data.get(name) is None else self.object(name)

    def objects(self, name: str, most: int, default: Optional[List[Any]] = None) -> "List[_Fields]":
        """The fields of each object of a list of at most so many."""
        value = self._get(name, default)
        if not isinstance(value, list) or len(value) > most:
            raise self._error(name, "a list of at most %d objects" % most)
        return [_Fields(item, name) for item in value]


def _is_text(value: Any, most: int) -> bool:
    if not isinstance(value, str) or len(value) > most:
        return False
    if value.isascii():
        return True
    try:
        value.encode()  # half of a surrogate pair cannot be written anywhere
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


_TIMESTAMP = re.compile(r"(19[7-9]\d|20\d\d)-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)Z", re.ASCII)
_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _is_timestamp(text: str) -> bool:
    """Whether the text is a time of the years 1970 (a node's clock may be wrong) to 2099.

    By hand, since seed reads a manifest in every pod, and time.strptime imports a calendar.
    """
    found = _TIMESTAMP.fullmatch(text)
    if found is None:
        return False
    year, month, day, hour, minute, second = (int(number) for number in found.groups())
    if not 1 <= month <= 12 or (month == 2 and year % 4 and day > 28):
        return False
    return 1 <= day <= _DAYS[month - 1] and hour < 24 and minute < 60 and second < 60


def _inputs(data: _Fields) -> Inputs:
    placement = data.data.get("nodeSelector")
    if not isinstance(placement, dict):
        raise WireError("inputs: nodeSelector is not an object")
    return Inputs(data.text("fingerprint"), data.text("revision"), data.text("target"), placement)


def _versions(data: _Fields) -> Versions:
    return Versions(**{each.name: data.text(each.name, "", most=128) for each in fields(Versions)})


def _writer(data: _Fields) -> Writer:
    groups = data.data.get("groups", [])
    if not (
        isinstance(groups, list)
        and len(groups) <= MAX_GROUPS
        and all(_is_number(gid, MAX_ID) for gid in groups)
    ):
        raise WireError("writer: groups is not a list of at most %d group ids" % MAX_GROUPS)
    return Writer(data.number("uid", most=MAX_ID), data.number("gid", most=MAX_ID), groups)


def _part(data: _Fields) -> SealedPart:
    layout = data.text("layout")
    if layout not in LAYOUTS:
        raise WireError("parts: layout %r is unknown" % layout)
    files = [
        File(file.text("path"), file.number("size", most=MAX_BYTES), file.text("sha256", most=64))
        for file in data.objects("files", MAX_FILES)
    ]
    return SealedPart(
        name=data.text("name"),
        variable=data.text("variable"),
        layout=layout,
        entries=data.number("entries"),
        files=files,
        folders=data.texts("folders"),
    )
