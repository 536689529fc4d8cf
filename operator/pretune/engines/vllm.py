"""All that pretune knows of vLLM: its variable, its flags, which releases persist tactics, and how their files look.

Read in the sources of vLLM 0.22 to 0.33 and FlashInfer 0.6.11 to 0.7.2 (facts/vllm.md). Standard library only, Python 3.8,
and no I/O: the caller hands in words, names and a function that reads a file. The agent and the controller both use it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

OVERRIDE = "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"
DEFAULT_PORT = 8000
HEALTH_PATH = "/health"
PACKAGES = ("vllm", "flashinfer-python")  # distributions whose versions decide whether tactics fit

MANAGED, PER_RANK, SHARED, EMPTY = "Managed", "PerRank", "Shared", "Empty"

FIRST_RELEASE = (0, 25)  # 0.22 to 0.24 have the variable, and the saving switched off in the code
FIRST_DISTRIBUTED = (0, 27)  # 0.25 and 0.26 save on one rank only
FIRST_MANAGED = (0, 33)  # FlashInfer's managed store, where one rank runs
FIRST_PER_RANK = (0, 32)  # 0.27 to 0.31: one file for all ranks, and a warm start that can hang

# The largest tactics file known is 165 kB. A parsed file takes some ten times its size of memory, and seal is a small container.
LARGEST_FILE = 8 * 1024 * 1024

NOTHING_TUNED = (
    "The engine tuned nothing. Possible causes: no tunable kernel is reached (dense FP8 on Hopper), compute capability below 9.0,"
    " -O0 or autotune switched off, FlashInfer without cubins and nvcc"
)


class Unsound(Exception):
    """What the engine wrote is no tactics that may be published; `reason` is one of reasons.REASONS."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__("%s: %s" % (reason, message))
        self.reason, self.message = reason, message


# --- the engine's command


def words_of(command: Sequence[str]) -> List[str]:
    """The command's words, with the script of a `sh -c` taken apart; what a shell would expand stays as it is written."""
    out: List[str] = []
    shell, script_next = False, False
    for index, word in enumerate(command):
        if index == 0:
            shell = word.rsplit("/", 1)[-1] in ("sh", "bash", "dash", "ash", "zsh")
        elif script_next:
            out += _script_words(word)
            script_next = shell = False
            continue
        elif shell and re.match(r"-[a-z]*c[a-z]*$", word):
            script_next = True
        out.append(word)
    return out


def _script_words(script: str) -> List[str]:
    text = script.replace("\\\n", " ")
    try:
        lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        return list(lexer)
    except ValueError:  # an open quote, say in a here-document
        return text.split()


def _flags(words: Sequence[str]) -> Iterator[Tuple[str, Optional[str]]]:
    """Flag and value of `--flag value`, `--flag=value`, `-tp 2`, `--flag`; `_` in a flag is `-`, as vLLM's parser has it."""
    plain = words_of(words)
    for index, word in enumerate(plain):
        if not re.match(r"--?[A-Za-z]", word):
            continue
        name, equals, value = word.partition("=")
        following = plain[index + 1] if index + 1 < len(plain) else ""
        if equals:
            yield name.replace("_", "-"), value
        else:
            has_value = re.match(r"[^-;&|()<>]", following)  # the next flag, or the end of a script's command
            yield name.replace("_", "-"), following if has_value else None


def _number(words: Sequence[str], *names: str) -> Optional[int]:
    """The last value of a flag (vLLM takes the last); None when absent, or not written as a number: `$(TP)`."""
    found = None
    for name, value in _flags(words):
        if name in names:
            found = int(value) if value is not None and value.isdigit() else None
    return found


def port(words: Sequence[str]) -> int:
    """The engine's HTTP port from its command and args; the default where the words name none as a number."""
    return _number(words, "--port") or DEFAULT_PORT


def several_pods(words: Sequence[str]) -> Optional[str]:
    """The flag that makes this engine one of several pods, as it stands in the words; None for a whole engine.

    A value that cannot be read here (`--nnodes $(NODES)`) counts as several: a wrong copy would dial production.
    """
    size, local = _number(words, "--data-parallel-size", "-dp"), None
    for name, value in _flags(words):
        shown = name if value is None else "%s %s" % (name, value)
        if name in ("--headless", "--data-parallel-external-lb", "-dpe", "--data-parallel-rank", "-dpn"):
            return shown
        if name in ("--nnodes", "--ray-cluster-size") and value != "1":
            return shown
        if name in ("--node-rank", "--data-parallel-start-rank", "-dpr") and value != "0":
            return shown
        if name in ("--data-parallel-size-local", "-dpl"):
            local = (shown, int(value) if value and value.isdigit() else None)
    if local and (size is None or local[1] is None or local[1] < size) and (size or 0) != 1:
        return local[0]
    plain = words_of(words)
    if plain == list(words):  # in a script -n and -r may be any program's
        for name, least in (("-n", 2), ("-r", 1)):
            number = _number(words, name)
            if number is not None and number >= least:
                return "%s %d" % (name, number)
    for index, word in enumerate(plain[:-1]):
        if word.rsplit("/", 1)[-1] == "ray" and plain[index + 1] == "start":
            for name, value in _flags(plain[index:]):
                if name == "--address":
                    return "ray start --address" + (" " + value if value else "")
    return None


_OFF = ("0", "false", "no", "off")
_REGISTERING = re.compile(r"mooncake|moriio|proxy_ip", re.IGNORECASE)


def registers_itself(words: Sequence[str], env: Mapping[str, str]) -> Optional[str]:
    """The env name or flag by which this engine announces itself to a router, or None.

    `env` holds "" for a value that is a reference: it counts as switched on. Dynamo: any `DYN_*` or the module `dynamo`. LMCache: its
    controller's variables. Mooncake: `MOONCAKE_*`, its connectors, its store. P2P NCCL and MoRIIO connectors: a `proxy_ip`.
    """
    for name in sorted(env):
        value = env[name] or ""
        if name.startswith(("DYN_", "LMCACHE_CONTROLLER_", "MOONCAKE_")):
            return name
        if name == "LMCACHE_ENABLE_CONTROLLER" and value.lower() not in _OFF:
            return name
        if name == "LMCACHE_REMOTE_URL" and _REGISTERING.search(value):
            return name
    plain = words_of(words)
    for index, word in enumerate(plain):
        if word == "-m" and index + 1 < len(plain) and re.match(r"dynamo(\.|$)", plain[index + 1]):
            return "-m " + plain[index + 1]
    for flag, given in _flags(words):
        if flag == "--kv-transfer-config" and given and _REGISTERING.search(given):
            return flag
        if flag.startswith("--kv-transfer-config.") and _REGISTERING.search(flag + "=" + (given or "")):
            return flag
    return None


# --- releases


def support(version: str, gpus: int) -> Tuple[str, str]:
    """Whether this release's tactics can be kept: ("", note) to go on, or (reason, message that names the version).

    `version` is that of the distribution, "" if it cannot be told; `gpus` is what the engine asks for, 0 if unknown.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if not version:
        return "", "vLLM's version unknown"
    if not found or version.startswith("0.1.dev"):  # what setuptools-scm calls a build of a clone without tags
        return "", "vLLM's version %s does not tell its release" % version
    release = (int(found.group(1)), int(found.group(2)))
    if release < FIRST_RELEASE:
        return "ReleaseTooOld", "vLLM %s in the image does not persist tactics; 0.25 and newer do" % version
    if release < FIRST_DISTRIBUTED and gpus > 1:
        return (
            "ReleaseTooOld",
            "vLLM %s in the image persists tactics on one GPU only, and the engine asks for %d; 0.32 and newer do for all"
            % (version, gpus),
        )
    if release < FIRST_PER_RANK and gpus > 1:
        return (
            "SharedLayout",
            "vLLM %s in the image keeps one file for all ranks, and the engine asks for %d GPUs: a warm start can hang for"
            " 30 minutes; 0.32 and newer keep a file per rank" % (version, gpus),
        )
    return "", ""


def layouts(version: str, gpus: int, words: Sequence[str] = ()) -> Tuple[str, ...]:
    """The layouts that this release reads on so many GPUs, the likeliest first; all of them where the release is not known.

    0.33 keeps a managed store where one rank runs, which may be so on several GPUs (the others idle), and a file a rank where more do;
    on one GPU a file a rank only with a FlashInfer that has no managed store.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    release = (int(found.group(1)), int(found.group(2))) if found and not version.startswith("0.1.dev") else None
    if release is not None and release < FIRST_PER_RANK:
        return (SHARED,)
    if release is not None and release < FIRST_MANAGED:
        return (PER_RANK,)
    ranks = (_number(words, "--tensor-parallel-size", "-tp") or 1) * (
        _number(words, "--pipeline-parallel-size", "-pp") or 1
    )
    managed_first = (MANAGED, PER_RANK) if gpus <= 1 else (PER_RANK, MANAGED) if ranks == 1 else (PER_RANK,)
    return managed_first if release is not None else (*managed_first, SHARED)


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
    return any(one.match(path) for one in (_MANAGED_MANIFEST, _MANAGED_ENTRY, _RANK_FILE, _SHARED_FILE))


_OPERATION = re.compile(r"\(\s*'([^']{1,120})'")


def place_of(path: str) -> str:
    """The folder within which an entry's key is unique: vLLM's key folder, or an environment's folder of a managed store."""
    parts = path.split("/")
    return "/".join(parts[:2]) if _MANAGED_ENTRY.match(path) or _MANAGED_MANIFEST.match(path) else parts[0]


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
            % (_count(self.entries, "entry", "entries"), _count(self.rank_files, "rank file", "rank files")),
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
            "CorruptFiles", "%s: a managed store without its manifest.json" % managed[0].split("/entries/")[0]
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
            "%s: not a file of any vLLM release that this pretune knows, and nothing else was tuned" % foreign[0],
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
            managed + [one.path for files in ranks.values() for one in files.values()] + [one.path for one in shared]
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
        raise Unsound("CorruptFiles", "%s: larger than %d MiB, no tactics file is" % (path, LARGEST_FILE >> 20))
    try:
        data = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Unsound("CorruptFiles", "%s: no JSON: %s" % (path, error)) from None
    if not isinstance(data, dict):
        raise Unsound("CorruptFiles", "%s: not a JSON object" % path)
    return data


def _managed_entry(path: str, raw: bytes) -> None:
    data = _document(path, raw)
    if not isinstance(data.get("key"), str) or not isinstance(data.get("runner"), str) or "tactic" not in data:
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
    operations.update({str(space)[:120]: len(one) for space, one in records.items() if isinstance(one, dict) and one})
    return _File(path, metadata or {}, len(data), len(tuned) + recorded, operations)


def _one_engines_entries(key: str, files: Mapping[Tuple[int, int], _File], tensor: Optional[int], pipeline: int) -> int:
    """The rank rule over one key folder, by (dp, rank); gives the entries that the engine loads from it.

    On a warm start vLLM compares `_metadata` and the number of keys over its tuning group: all ranks, or with a pipeline the stage's
    tensor-parallel block (ranks counted on from stage to stage). A stage may have written nothing; a block is there whole or not at all.
    """
    first = files[min(files)]
    for one in files.values():
        if one.metadata != first.metadata:
            odd = sorted(
                n for n in set(one.metadata) | set(first.metadata) if one.metadata.get(n) != first.metadata.get(n)
            )
            raise Unsound(
                "IncompleteRanks", "%s and %s differ in _metadata: %s" % (first.path, one.path, ", ".join(odd))
            )

    by_dp: Dict[int, Set[int]] = {}
    for dp, rank in files:
        by_dp.setdefault(dp, set()).add(rank)
    missing = _missing(by_dp, tensor, pipeline)
    if missing:
        raise Unsound(
            "IncompleteRanks",
            "%s/autotune_configs_%s.json is missing, other ranks of its group are there" % (key, missing),
        )

    groups = _tuning_groups(files, tensor, pipeline)
    loaded = {_block(rank, tensor, pipeline) for dp, rank in files if dp == min(by_dp)}  # the blocks of one replica
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
                return "%s and %s hold unlike entries of %s" % (members[0].path, one.path, odd[0][0])
    return ""


def _missing(by_dp: Mapping[int, Set[int]], tensor: Optional[int], pipeline: int) -> str:
    """The first file that should be there, as "dp0_rank2", or "".

    Ranks count on over the replicas of experts (dp0 has 0 and 1, dp1 has 2 and 3; seen in 0.32 and 0.33), or from 0 in each.
    """
    for dp in range(max(by_dp)):
        if dp not in by_dp:
            return "dp%d_rank0" % dp
    everywhere: List[Tuple[int, int]] = [(rank, dp) for dp, ranks in by_dp.items() for rank in ranks]
    counts_on = len(by_dp) > 1 and len({rank for rank, _ in everywhere}) == len(everywhere)
    worlds: List[Tuple[int, Set[int]]] = [(0, {rank for rank, _ in everywhere})] if counts_on else sorted(by_dp.items())
    size = max(max(ranks) for _, ranks in worlds) + 1
    block = tensor or 1
    size = -(-size // block) * block  # a block is there whole: the last one too
    for dp, ranks in worlds:
        for rank in range(size):
            stage_is_silent = pipeline > 1 and not any(other // block == rank // block for other in ranks)
            if rank not in ranks and not stage_is_silent:
                owner = max([d for r, d in everywhere if r < rank] or [0]) if counts_on else dp
                return "dp%d_rank%d" % (owner, rank)
    return ""
