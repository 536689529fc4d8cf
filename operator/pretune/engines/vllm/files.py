"""All that pretune knows of vLLM: its variable, its flags, which releases persist tactics, and how their files look.

Read in the sources of vLLM 0.22 to 0.33 and FlashInfer 0.6.11 to 0.7.2 (docs/dev/facts-vllm.md).
Standard library only, Python 3.8,
and no I/O: the caller hands in words, names and a function that reads a file. The agent and the controller both use it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from pretune.engines.vllm.cli import _number
from pretune.engines.vllm.releases import EMPTY, MANAGED, NOTHING_TUNED, PER_RANK, SHARED

# The largest tactics file known is 165 kB. A parsed file takes some ten times its size of memory, and seal is a small container.
LARGEST_FILE = 8 * 1024 * 1024


class Unsound(Exception):
    """What the engine wrote is no tactics that may be published; `reason` is one of reasons.REASONS."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__("%s: %s" % (reason, message))
        self.reason, self.message = reason, message


# --- what it wrote

# Below the folder that a cache is kept in where no override is set (0.25 to 0.33): files of a rank or of all under
# <FlashInfer's version>/<architectures>/<key>/, the managed store's under v2/. They begin in $XDG_CACHE_HOME, which is ~/.cache.
DEFAULT_ROOT = (".cache", "vllm", "flashinfer_autotune_cache")
DEFAULT_STORE = (".cache", "flashinfer", "autotune")
VERSION_FOLDER = re.compile(r"\d+\.\d+[0-9A-Za-z.+_-]*")
ARCHITECTURES_FOLDER = re.compile(r"\d+[a-z]?(_\d+[a-z]?)*")  # "90a", "100a_103a"
KEY_FOLDER = re.compile(r"[0-9a-f]{64}")
ENVIRONMENT_FOLDER = re.compile(r"[0-9a-f]{16}")
CONFIGS_FILE = re.compile(r"autotune_configs(_dp\d{1,6}_rank\d{1,6})?\.json")

_HEX = r"[0-9a-f]"
_MANAGED_MANIFEST = re.compile(r"v2/%s{16}/manifest\.json$" % _HEX)
_MANAGED_ENTRY = re.compile(r"v2/%s{16}/entries/%s{24}\.json$" % (_HEX, _HEX))
_RANK_FILE = re.compile(r"([^/]+)/autotune_configs_dp(\d{1,6})_rank(\d{1,6})\.json$")
_SHARED_FILE = re.compile(r"[^/]+/autotune_configs\.json$")
# mkstemp beside the target, then os.replace: AutoTuner.save_configs, the managed store, vLLM's own broadcast file.
_TEMPORARY = re.compile(r"(\.autotuner_|\.autotune_|\.autotune_configs[^/]*\.json\.)[^/]*\.tmp$")


def known(path: str) -> bool:
    """Whether a file of this relative path is one of a layout's: it belongs into a bundle."""
    return any(
        one.match(path) for one in (_MANAGED_MANIFEST, _MANAGED_ENTRY, _RANK_FILE, _SHARED_FILE)
    )


_OPERATION = re.compile(r"\(\s*'([^']{1,120})'")


def place_of(path: str) -> str:
    """The folder within which an entry's key is unique: vLLM's key folder, or an environment's folder of a managed store."""
    parts = path.split("/")
    return (
        "/".join(parts[:2])
        if _MANAGED_ENTRY.match(path) or _MANAGED_MANIFEST.match(path)
        else parts[0]
    )


def tuned(path: str, raw: bytes) -> Dict[str, str]:
    """The tactics of one known file, by key: (namespace and key for `_records`), in a canonical form. A managed store's manifest
    has none. Raises Unsound."""
    if _MANAGED_MANIFEST.match(path):
        _document(path, raw)
        return {}
    if _MANAGED_ENTRY.match(path):
        _managed_entry(path, raw)
        data = _document(path, raw)
        return {str(data.pop("key")): _canonical(data)}
    _configs(path, raw)
    data = _document(path, raw)
    records = data.get("_records") or {}
    found = {key: _canonical(value) for key, value in data.items() if not key.startswith("_")}
    found.update(
        ("%s: %s" % (namespace, key), _canonical(value))
        for namespace, inside in records.items()
        if isinstance(inside, dict)
        for key, value in inside.items()
    )
    return found


def operation(key: str) -> str:
    """The operation that an entry is of: FlashInfer's keys are the text of a tuple that begins with it; of a record, its namespace."""
    found = _OPERATION.match(key)
    return found.group(1) if found else key.split(": ", 1)[0][:120]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Tactics:
    """What lies under the override folder. `files` is what belongs into a bundle: temporary and foreign files do not."""

    layout: str
    entries: int  # tactics that one rank loads; those of the pipeline's stages added up
    files: List[str]
    notes: List[str] = field(default_factory=list)
    rank_files: int = 0
    unlike: str = ""  # ranks that should hold the same operations and do not, as a sentence; "": there are none
    flashinfer: str = ""
    cuda: str = ""
    gpu: str = ""

    def message(self) -> str:
        """One line for a person: what was found, then what is odd about it."""
        found = {
            MANAGED: "%s in a managed store" % _count(self.entries, "entry", "entries"),
            PER_RANK: "%s in %s"
            % (
                _count(self.entries, "entry", "entries"),
                _count(self.rank_files, "rank file", "rank files"),
            ),
            SHARED: "%s in a shared file" % _count(self.entries, "entry", "entries"),
            EMPTY: NOTHING_TUNED,
        }[self.layout]
        return ", ".join([found, *self.notes])


def _count(number: int, one: str, many: str) -> str:
    return "%d %s" % (number, one if number == 1 else many)


@dataclass
class _File:
    """One v1 file: what vLLM compares between ranks (metadata, and the number of all other keys), and what tunes."""

    path: str
    metadata: Mapping[str, Any]
    compared: int
    entries: int
    operations: Mapping[str, int]  # entries of each


def read_tactics(
    paths: Sequence[str], read: Callable[[str], bytes], gpus: int = 0, words: Sequence[str] = ()
) -> Tactics:
    """Tells the layout, counts entries and checks every file.

    `paths` are all regular files, relative to the override folder; `read` gives one file's bytes; `words` are the engine's, for its
    tensor and pipeline sizes. Raises Unsound: CorruptFiles, IncompleteRanks, SharedLayout. What `read` raises passes through.
    """
    managed: List[str] = []
    ranks: Dict[str, Dict[Tuple[int, int], _File]] = {}
    shared: List[_File] = []
    temporary: List[str] = []
    foreign: List[str] = []
    metadata: List[Mapping[str, Any]] = []
    entries = 0
    for path in sorted(paths):
        rank = _RANK_FILE.match(path)
        if _TEMPORARY.match(path.rsplit("/", 1)[-1]):
            temporary.append(path)
        elif _MANAGED_ENTRY.match(path):
            _managed_entry(path, read(path))
            managed.append(path)
            entries += 1
        elif _MANAGED_MANIFEST.match(path):
            metadata.append(_document(path, read(path)))
            managed.append(path)
        elif rank:
            one = _configs(path, read(path))
            place = (int(rank.group(2)), int(rank.group(3)))
            if place in ranks.setdefault(rank.group(1), {}):  # rank1 and rank01: never vLLM's
                raise Unsound("CorruptFiles", "%s: a second file of this rank" % path)
            ranks[rank.group(1)][place] = one
            metadata.append(one.metadata)
        elif _SHARED_FILE.match(path):
            one = _configs(path, read(path))
            shared.append(one)
            metadata.append(one.metadata)
        else:
            foreign.append(path)
    if managed and not any(_MANAGED_MANIFEST.match(path) for path in managed):
        raise Unsound(
            "CorruptFiles",
            "%s: a managed store without its manifest.json" % managed[0].split("/entries/")[0],
        )

    tensor = _number(words, "--tensor-parallel-size", "-tp")
    pipeline = _number(words, "--pipeline-parallel-size", "-pp") or 1
    unlike = ""
    for key, files in sorted(ranks.items()):
        entries += _one_engines_entries(key, files, tensor, pipeline)
        unlike = unlike or _unlike(files, tensor, pipeline)
    if not ranks:  # beside rank files a shared one is a by-product: sparse MLA on SM120
        entries += sum(one.entries for one in shared)
    layout = PER_RANK if ranks else SHARED if shared else MANAGED if managed else EMPTY
    if not entries:
        layout = EMPTY
    if layout == SHARED and gpus > 1:
        raise Unsound(
            "SharedLayout",
            "the engine keeps one file for all ranks (%s) on %d GPUs: a warm start can hang for 30 minutes"
            % (shared[0].path, gpus),
        )
    if foreign and not entries:
        raise Unsound(
            "CorruptFiles",
            "%s: not a file of any vLLM release that this pretune knows, and nothing else was tuned"
            % foreign[0],
        )

    rank_files = sum(len(files) for files in ranks.values())
    notes = []
    if layout == PER_RANK and rank_files < gpus * len(ranks):
        notes.append("fewer than the %d GPUs" % gpus)
    if unlike:
        notes.append(unlike)
    if temporary:
        notes.append("%s left out" % _count(len(temporary), "temporary file", "temporary files"))
    if foreign:
        notes.append("%s of no known form left out" % _count(len(foreign), "file", "files"))
    return Tactics(
        layout=layout,
        entries=entries,
        files=sorted(
            managed
            + [one.path for files in ranks.values() for one in files.values()]
            + [one.path for one in shared]
        ),
        notes=notes,
        rank_files=rank_files,
        unlike=unlike,
        flashinfer=_said(metadata, "flashinfer_version"),
        cuda=_said(metadata, "cuda_version"),
        gpu=_said(metadata, "gpu"),
    )


def _said(metadata: Sequence[Mapping[str, Any]], name: str) -> str:
    """The first file's word on it; "unknown" and "None" are what FlashInfer writes where it cannot tell."""
    for one in metadata:
        value = one.get(name)
        if isinstance(value, str) and value not in ("", "unknown", "None", "*"):
            return value[:64]
    return ""


def _document(path: str, raw: bytes) -> Dict[str, Any]:
    if len(raw) > LARGEST_FILE:
        raise Unsound(
            "CorruptFiles",
            "%s: larger than %d MiB, no tactics file is" % (path, LARGEST_FILE >> 20),
        )
    try:
        data = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Unsound("CorruptFiles", "%s: no JSON: %s" % (path, error)) from None
    if not isinstance(data, dict):
        raise Unsound("CorruptFiles", "%s: not a JSON object" % path)
    return data


def _managed_entry(path: str, raw: bytes) -> None:
    data = _document(path, raw)
    if (
        not isinstance(data.get("key"), str)
        or not isinstance(data.get("runner"), str)
        or "tactic" not in data
    ):
        raise Unsound("CorruptFiles", "%s: an entry without key, runner or tactic" % path)


def _configs(path: str, raw: bytes) -> _File:
    """A v1 file: `_metadata`, `_generation`, `_records` {namespace: {…}}, and "(op, runner, …)": [runner, tactic, …]."""
    data = _document(path, raw)
    metadata = data.pop("_metadata", None)
    records = data.get("_records", {})
    if not isinstance(metadata, (dict, type(None))) or not isinstance(records, dict):
        raise Unsound("CorruptFiles", "%s: _metadata or _records is no object" % path)
    tuned = [name for name in data if not name.startswith("_")]
    for name in tuned:
        value = data[name]
        if not isinstance(value, list) or len(value) < 2 or not isinstance(value[0], str):
            raise Unsound("CorruptFiles", "%s: %.80s has no [runner, tactic]" % (path, name))
    recorded = sum(len(one) for one in records.values() if isinstance(one, dict))
    operations = Counter(operation(name) for name in tuned)
    operations.update(
        {
            str(space)[:120]: len(one)
            for space, one in records.items()
            if isinstance(one, dict) and one
        }
    )
    return _File(path, metadata or {}, len(data), len(tuned) + recorded, operations)


def _one_engines_entries(
    key: str, files: Mapping[Tuple[int, int], _File], tensor: Optional[int], pipeline: int
) -> int:
    """The rank rule over one key folder, by (dp, rank); gives the entries that the engine loads from it.

    On a warm start vLLM compares `_metadata` and the number of keys over its tuning group: all ranks, or with a pipeline the stage's
    tensor-parallel block (ranks counted on from stage to stage). A stage may have written nothing; a block is there whole or not at all.
    """
    first = files[min(files)]
    for one in files.values():
        if one.metadata != first.metadata:
            odd = sorted(
                n
                for n in set(one.metadata) | set(first.metadata)
                if one.metadata.get(n) != first.metadata.get(n)
            )
            raise Unsound(
                "IncompleteRanks",
                "%s and %s differ in _metadata: %s" % (first.path, one.path, ", ".join(odd)),
            )

    by_dp: Dict[int, Set[int]] = {}
    for dp, rank in files:
        by_dp.setdefault(dp, set()).add(rank)
    missing = _missing(by_dp, tensor, pipeline)
    if missing:
        raise Unsound(
            "IncompleteRanks",
            "%s/autotune_configs_%s.json is missing, other ranks of its group are there"
            % (key, missing),
        )

    groups = _tuning_groups(files, tensor, pipeline)
    loaded = {
        _block(rank, tensor, pipeline) for dp, rank in files if dp == min(by_dp)
    }  # the blocks of one replica
    for members in groups.values():
        for one in members:
            if one.compared != members[0].compared:
                raise Unsound(
                    "IncompleteRanks",
                    "%s has %d entries, %s has %d: the ranks disagree, each start would tune again"
                    % (members[0].path, members[0].entries, one.path, one.entries),
                )
    return sum(groups[place][0].entries for place in loaded)


def _block(rank: int, tensor: Optional[int], pipeline: int) -> int:
    """The tuning group of a rank."""
    return rank // (tensor or 1) if pipeline > 1 else 0


def _tuning_groups(
    files: Mapping[Tuple[int, int], _File], tensor: Optional[int], pipeline: int
) -> Dict[int, List[_File]]:
    groups: Dict[int, List[_File]] = {}
    for (_, rank), one in sorted(files.items()):
        groups.setdefault(_block(rank, tensor, pipeline), []).append(one)
    return groups


def _unlike(files: Mapping[Tuple[int, int], _File], tensor: Optional[int], pipeline: int) -> str:
    """Equal counts are not equal contents, and vLLM compares counts alone: with an operation that one rank's file lacks, 0.32 hangs on
    a warm start (seen, docs/ranks.md). One cold start never wrote such files; a folder that is imported may hold them."""
    for members in _tuning_groups(files, tensor, pipeline).values():
        for one in members:
            odd = sorted(set(one.operations.items()) ^ set(members[0].operations.items()))
            if odd:
                return "%s and %s hold unlike entries of %s" % (
                    members[0].path,
                    one.path,
                    odd[0][0],
                )
    return ""


def _missing(by_dp: Mapping[int, Set[int]], tensor: Optional[int], pipeline: int) -> str:
    """The first file that should be there, as "dp0_rank2", or "".

    Ranks count on over the replicas of experts (dp0 has 0 and 1, dp1 has 2 and 3; seen in 0.32 and 0.33), or from 0 in each.
    """
    for dp in range(max(by_dp)):
        if dp not in by_dp:
            return "dp%d_rank0" % dp
    everywhere: List[Tuple[int, int]] = [
        (rank, dp) for dp, ranks in by_dp.items() for rank in ranks
    ]
    counts_on = len(by_dp) > 1 and len({rank for rank, _ in everywhere}) == len(everywhere)
    worlds: List[Tuple[int, Set[int]]] = (
        [(0, {rank for rank, _ in everywhere})] if counts_on else sorted(by_dp.items())
    )
    size = max(max(ranks) for _, ranks in worlds) + 1
    block = tensor or 1
    size = -(-size // block) * block  # a block is there whole: the last one too
    for dp, ranks in worlds:
        for rank in range(size):
            stage_is_silent = pipeline > 1 and not any(
                other // block == rank // block for other in ranks
            )
            if rank not in ranks and not stage_is_silent:
                owner = max([d for r, d in everywhere if r < rank] or [0]) if counts_on else dp
                return "dp%d_rank%d" % (owner, rank)
    return ""
