"""vLLM's tactics files: their names and layouts, their entries, and which of them fit together.

Read in the sources of vLLM 0.22 to 0.33 and FlashInfer 0.6.11 to 0.7.2 (docs/dev/facts-vllm.md,
docs/dev/facts-flashinfer.md). No I/O: the caller hands in names and a function that reads a file.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from pretune.api import reasons
from pretune.engines.evidence import Evidence, Unsound
from pretune.engines.vllm.cli import last_number
from pretune.engines.vllm.releases import NOTHING_TUNED
from pretune.protocol import EMPTY, MANAGED, PER_RANK, SHARED, Versions

# The largest tactics file known is 165 kB. A parsed file takes some ten times its size of memory,
# and seal is a small container.
MAX_FILE_BYTES = 8 * 1024 * 1024

_HEX = r"[0-9a-f]"
_MANAGED_MANIFEST = re.compile(r"v2/%s{16}/manifest\.json$" % _HEX)
_MANAGED_ENTRY = re.compile(r"v2/%s{16}/entries/%s{24}\.json$" % (_HEX, _HEX))
_RANK_FILE = re.compile(r"([^/]+)/autotune_configs_dp(\d{1,6})_rank(\d{1,6})\.json$")
_SHARED_FILE = re.compile(r"[^/]+/autotune_configs\.json$")
_KNOWN = (_MANAGED_MANIFEST, _MANAGED_ENTRY, _RANK_FILE, _SHARED_FILE)
# mkstemp beside the target, then os.replace: AutoTuner.save_configs, the managed store, vLLM's own
# broadcast file.
_TEMPORARY = re.compile(r"(\.autotuner_|\.autotune_|\.autotune_configs[^/]*\.json\.)[^/]*\.tmp$")
_OPERATION = re.compile(r"\(\s*'([^']{1,120})'")


# --- one file


def is_known(path: str) -> bool:
    """Return whether a file of this path is one of a layout's."""
    return any(form.match(path) for form in _KNOWN)


def key_space_of(path: str) -> str:
    """Return the folder within which an entry's key is unique.

    vLLM's key folder, or an environment's folder of a managed store.
    """
    names = path.split("/")
    is_managed = _MANAGED_ENTRY.match(path) or _MANAGED_MANIFEST.match(path)
    return "/".join(names[:2]) if is_managed else names[0]


def read_entries(path: str, raw: bytes) -> Dict[str, str]:
    """Return the tactics of one known file, by key, in a canonical form. Raises Unsound.

    A record's key is its namespace and its own key. A managed store's manifest has no tactics.
    """
    if _MANAGED_MANIFEST.match(path):
        _document(path, raw)
        return {}
    if _MANAGED_ENTRY.match(path):
        _check_managed_entry(path, raw)
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


def operation_of(key: str) -> str:
    """Return the operation that an entry is of.

    FlashInfer's keys are the text of a tuple that begins with it; of a record, its namespace.
    """
    found = _OPERATION.match(key)
    return found.group(1) if found else key.split(": ", 1)[0][:120]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _document(path: str, raw: bytes) -> Dict[str, Any]:
    if len(raw) > MAX_FILE_BYTES:
        limit = MAX_FILE_BYTES >> 20
        raise _corrupt("%s: larger than %d MiB, no tactics file is" % (path, limit))
    try:
        data = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _corrupt("%s: no JSON: %s" % (path, error)) from None
    if not isinstance(data, dict):
        raise _corrupt("%s: not a JSON object" % path)
    return data


def _corrupt(message: str) -> Unsound:
    return Unsound(reasons.CORRUPT_FILES, message)


def _check_managed_entry(path: str, raw: bytes) -> None:
    data = _document(path, raw)
    has_texts = isinstance(data.get("key"), str) and isinstance(data.get("runner"), str)
    if not has_texts or "tactic" not in data:
        raise _corrupt("%s: an entry without key, runner or tactic" % path)


@dataclass
class _File:
    """One v1 file: what vLLM compares between ranks, and what tunes."""

    path: str
    metadata: Mapping[str, Any]
    compared: int  # keys other than the metadata, of which vLLM compares the number
    entries: int
    operations: Mapping[str, int]  # entries of each


def _configs(path: str, raw: bytes) -> _File:
    """Return a v1 file: `_metadata`, `_generation`, `_records` {namespace: {…}}, and entries.

    An entry is "(op, runner, …)": [runner, tactic, …].
    """
    data = _document(path, raw)
    metadata = data.pop("_metadata", None)
    records = data.get("_records", {})
    if not isinstance(metadata, (dict, type(None))) or not isinstance(records, dict):
        raise _corrupt("%s: _metadata or _records is no object" % path)
    keys = [key for key in data if not key.startswith("_")]
    for key in keys:
        value = data[key]
        if not isinstance(value, list) or len(value) < 2 or not isinstance(value[0], str):
            raise _corrupt("%s: %.80s has no [runner, tactic]" % (path, key))
    recorded = {
        str(namespace)[:120]: len(inside)
        for namespace, inside in records.items()
        if isinstance(inside, dict) and inside
    }
    number = sum(len(inside) for inside in records.values() if isinstance(inside, dict))
    operations = Counter(operation_of(key) for key in keys)
    operations.update(recorded)
    return _File(path, metadata or {}, len(data), len(keys) + number, operations)


# --- all files of a folder

_Ranks = Dict[Tuple[int, int], _File]  # by (dp, rank)


@dataclass
class _Folder:
    """The files below the override folder, by their form."""

    managed: List[str] = field(default_factory=list)
    managed_entries: int = 0
    ranks: Dict[str, _Ranks] = field(default_factory=dict)  # by key folder
    shared: List[_File] = field(default_factory=list)
    temporary: List[str] = field(default_factory=list)
    foreign: List[str] = field(default_factory=list)
    metadata: List[Mapping[str, Any]] = field(default_factory=list)

    def add(self, path: str, read: Callable[[str], bytes]) -> None:
        rank = _RANK_FILE.match(path)
        if _TEMPORARY.match(path.rsplit("/", 1)[-1]):
            self.temporary.append(path)
        elif _MANAGED_ENTRY.match(path):
            _check_managed_entry(path, read(path))
            self.managed.append(path)
            self.managed_entries += 1
        elif _MANAGED_MANIFEST.match(path):
            self.metadata.append(_document(path, read(path)))
            self.managed.append(path)
        elif rank:
            self._add_rank(rank.group(1), (int(rank.group(2)), int(rank.group(3))), path, read)
        elif _SHARED_FILE.match(path):
            file = _configs(path, read(path))
            self.shared.append(file)
            self.metadata.append(file.metadata)
        else:
            self.foreign.append(path)

    def _add_rank(
        self, key: str, rank: Tuple[int, int], path: str, read: Callable[[str], bytes]
    ) -> None:
        file = _configs(path, read(path))
        if rank in self.ranks.setdefault(key, {}):  # rank1 and rank01: never vLLM's
            raise _corrupt("%s: a second file of this rank" % path)
        self.ranks[key][rank] = file
        self.metadata.append(file.metadata)

    @property
    def rank_files(self) -> List[_File]:
        return [file for files in self.ranks.values() for file in files.values()]

    @property
    def layout(self) -> str:
        """Of what is there; it may be without entries."""
        if self.ranks:
            return PER_RANK
        return SHARED if self.shared else MANAGED if self.managed else EMPTY

    @property
    def files(self) -> List[str]:
        """The paths of all files that belong into a bundle, sorted."""
        v1 = [file.path for file in (*self.rank_files, *self.shared)]
        return sorted(self.managed + v1)

    def recorded(self, name: str) -> str:
        """Return the first file's value; FlashInfer writes "unknown" or "None" for none."""
        for metadata in self.metadata:
            value = metadata.get(name)
            if isinstance(value, str) and value not in ("", "unknown", "None", "*"):
                return value[:64]
        return ""


def judge(
    paths: Sequence[str], read: Callable[[str], bytes], gpus: int = 0, words: Sequence[str] = ()
) -> Evidence:
    """Return the layout, the entries and what belongs into a bundle, after each file was checked.

    paths: all regular files, relative to the override folder; read: gives one file's bytes; words:
    the engine's, for its tensor and pipeline sizes. Raises Unsound (CorruptFiles, IncompleteRanks,
    SharedLayout); what `read` raises passes.
    """
    folder = _Folder()
    for path in sorted(paths):
        folder.add(path, read)
    if folder.managed and not any(_MANAGED_MANIFEST.match(path) for path in folder.managed):
        store = folder.managed[0].split("/entries/")[0]
        raise _corrupt("%s: a managed store without its manifest.json" % store)

    tensor = last_number(words, "--tensor-parallel-size", "-tp")
    pipeline = last_number(words, "--pipeline-parallel-size", "-pp") or 1
    number, unlike = folder.managed_entries, ""
    for key, files in sorted(folder.ranks.items()):
        number += _entries_of_one_engine(key, files, tensor, pipeline)
        unlike = unlike or _unlike(files, tensor, pipeline)
    if not folder.ranks:  # beside rank files a shared one is a by-product: sparse MLA on SM120
        number += sum(file.entries for file in folder.shared)
    layout = folder.layout if number else EMPTY
    if layout == SHARED and gpus > 1:
        raise Unsound(
            reasons.SHARED_LAYOUT,
            "the engine keeps one file for all ranks (%s) on %d GPUs:"
            " a warm start can hang for 30 minutes" % (folder.shared[0].path, gpus),
        )
    if folder.foreign and not number:
        raise _corrupt(
            "%s: not a file of any vLLM release that this pretune knows, and nothing else was tuned"
            % folder.foreign[0]
        )
    return Evidence(
        layout=layout,
        entries=number,
        files=folder.files,
        summary=_summary(layout, number, len(folder.rank_files)),
        notes=_notes(folder, layout, gpus, unlike),
        unlike=unlike,
        versions=Versions(
            flashinfer=folder.recorded("flashinfer_version"),
            cuda=folder.recorded("cuda_version"),
            gpu=folder.recorded("gpu"),
        ),
    )


def _summary(layout: str, number: int, rank_files: int) -> str:
    if layout == EMPTY:
        return NOTHING_TUNED
    place = {
        MANAGED: "a managed store",
        PER_RANK: _count(rank_files, "rank file", "rank files"),
        SHARED: "a shared file",
    }[layout]
    return "%s in %s" % (_count(number, "entry", "entries"), place)


def _notes(folder: _Folder, layout: str, gpus: int, unlike: str) -> List[str]:
    notes = []
    if layout == PER_RANK and len(folder.rank_files) < gpus * len(folder.ranks):
        notes.append("fewer than the %d GPUs" % gpus)
    if unlike:
        notes.append(unlike)
    if folder.temporary:
        files = _count(len(folder.temporary), "temporary file", "temporary files")
        notes.append("%s left out" % files)
    if folder.foreign:
        notes.append("%s of no known form left out" % _count(len(folder.foreign), "file", "files"))
    return notes


def _count(number: int, singular: str, plural: str) -> str:
    return "%d %s" % (number, singular if number == 1 else plural)


# --- ranks


def _entries_of_one_engine(key: str, files: _Ranks, tensor: Optional[int], pipeline: int) -> int:
    """Check the rank rule over one key folder; return the entries that the engine loads from it.

    On a warm start vLLM compares `_metadata` and the number of keys over its tuning group: all
    ranks, or with a pipeline the stage's tensor-parallel block (ranks counted on from stage to
    stage). A stage may have written nothing; a block is there whole or not at all.
    """
    first = files[min(files)]
    for file in files.values():
        if file.metadata != first.metadata:
            names = set(file.metadata) | set(first.metadata)
            differ = sorted(n for n in names if file.metadata.get(n) != first.metadata.get(n))
            raise Unsound(
                reasons.INCOMPLETE_RANKS,
                "%s and %s differ in _metadata: %s" % (first.path, file.path, ", ".join(differ)),
            )

    by_dp: Dict[int, Set[int]] = {}
    for dp, rank in files:
        by_dp.setdefault(dp, set()).add(rank)
    missing = _missing(by_dp, tensor, pipeline)
    if missing:
        raise Unsound(
            reasons.INCOMPLETE_RANKS,
            "%s/autotune_configs_%s.json is missing, other ranks of its group are there"
            % (key, missing),
        )

    groups = _tuning_groups(files, tensor, pipeline)
    # The groups of one replica.
    loaded = {_group_of(rank, tensor, pipeline) for dp, rank in files if dp == min(by_dp)}
    for members in groups.values():
        for file in members:
            if file.compared != members[0].compared:
                raise Unsound(
                    reasons.INCOMPLETE_RANKS,
                    "%s has %d entries, %s has %d: the ranks disagree, each start would tune again"
                    % (members[0].path, members[0].entries, file.path, file.entries),
                )
    return sum(groups[group][0].entries for group in loaded)


def _group_of(rank: int, tensor: Optional[int], pipeline: int) -> int:
    """Return the tuning group of a rank."""
    return rank // (tensor or 1) if pipeline > 1 else 0


def _tuning_groups(files: _Ranks, tensor: Optional[int], pipeline: int) -> Dict[int, List[_File]]:
    groups: Dict[int, List[_File]] = {}
    for (_, rank), file in sorted(files.items()):
        groups.setdefault(_group_of(rank, tensor, pipeline), []).append(file)
    return groups


def _unlike(files: _Ranks, tensor: Optional[int], pipeline: int) -> str:
    """Return which two ranks hold entries of unlike operations, or "".

    Equal counts are not equal contents, and vLLM compares counts alone: with an operation that one
    rank's file lacks, 0.32 hangs on a warm start (seen, docs/ranks.md). One cold start never wrote
    such files; a folder that is imported may hold them.
    """
    for members in _tuning_groups(files, tensor, pipeline).values():
        first = members[0]
        for file in members:
            differ = sorted(set(file.operations.items()) ^ set(first.operations.items()))
            if differ:
                names = (first.path, file.path, differ[0][0])
                return "%s and %s hold unlike entries of %s" % names
    return ""


def _missing(by_dp: Mapping[int, Set[int]], tensor: Optional[int], pipeline: int) -> str:
    """Return the first file that should be there, as "dp0_rank2", or "".

    Ranks count on over the replicas of experts (dp0 has 0 and 1, dp1 has 2 and 3; seen in 0.32 and
    0.33), or from 0 in each.
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
