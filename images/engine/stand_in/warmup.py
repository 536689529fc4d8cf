"""vLLM's side: `flashinfer_autotune()` of each release."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Mapping, Sequence

from .arguments import Arguments
from .files import write_bytes
from .gpus import Gpu
from .key import key
from .log import vllm as vllm_log
from .profiles import Metadata, metadata
from .ranks import Rank, World, world_of
from .releases import Keeps, Release
from .settings import Settings
from .store import ManagedStore
from .sweep import Sweep
from .tuner import Tuner, fingerprint

VARIABLE = "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"
SHARED_FILE = "autotune_configs.json"


class WarmUp:
    """One engine's tuning. `run` does it; afterwards `written` names the folders that it uses. Raises ArgumentsError."""

    def __init__(
        self,
        release: Release,
        arguments: Arguments,
        settings: Settings,
        gpu: Gpu,
        environ: Mapping[str, str],
    ) -> None:
        self._release, self._arguments, self._gpu, self._environ = release, arguments, gpu, environ
        self._world = world_of(arguments)
        experts = len(self._world.ranks) if arguments.is_on("enable-expert-parallel") else 0
        self._sweep = Sweep(release, settings, experts)
        self.written: List[Path] = []

    @property
    def profiled(self) -> List[int]:
        """How often each rank asked for the time of a tactic."""
        return [self._sweep.profiled.get(rank, 0) for rank in self._world.ranks]

    def run(self) -> None:
        """Tunes what is not found. Raises what vLLM raises: OSError where a folder cannot be written, ValueError for broken JSON."""
        ranks = self._world.ranks
        if self._is_off():
            # Up to 0.26 each rank says it; then only a node's first one.
            for rank in ranks if self._release.number < (0, 27) else ranks[:1]:
                vllm_log(rank.label).info("Skipping FlashInfer autotune because it is disabled.")
        elif self._gpu.tunes:
            self._tune(self._world)

    def _is_off(self) -> bool:
        options = self._arguments.options
        given = options.get("enable-flashinfer-autotune") is False or self._arguments.is_on(
            "disable-flashinfer-autotune"
        )
        return given or (
            options.get("optimization-level") == "0"
            and not self._arguments.is_on("enable-flashinfer-autotune")
        )

    def _tune(self, world: World) -> None:
        keeps = self._release.keeps
        if keeps is Keeps.MANAGED and world.is_simple:
            self._managed(world)
        elif keeps in (Keeps.MANAGED, Keeps.PER_RANK):
            if keeps is Keeps.MANAGED and world.legacy:
                line = f"Using legacy FlashInfer autotune cache synchronization for {world.legacy}"
                vllm_log(world.ranks[0].label).info(line)
            self._per_rank(world)
        elif keeps is Keeps.SHARED:
            self._shared(world)
        elif keeps is Keeps.LEADER and len(world.ranks) == 1:
            self._leader(world.ranks[0])
        else:
            self._measure({rank: self._tuner() for rank in world.ranks})

    # One function a way of keeping

    def _leader(self, rank: Rank) -> None:
        path, tuner = self._key_folder() / SHARED_FILE, self._tuner()
        self._says(rank, f"autotune cache file: {path}")
        may_be_saved = tuner.load(path) if path.is_file() else True
        self._measure({rank: tuner})
        if may_be_saved and tuner.tuned:
            tuner.save(path)
        if not path.exists():
            vllm_log(rank.label).warning(
                "No FlashInfer autotune cache entries found.Falling back to default tactics."
            )
            return
        write_bytes(path, path.read_bytes(), f".{SHARED_FILE}.")
        tuner.load(path)
        vllm_log(rank.label).info(f"FlashInfer autotune cache loaded on rank 0 from {path}.")

    def _shared(self, world: World) -> None:
        path, tuners = (
            self._key_folder() / SHARED_FILE,
            {rank: self._tuner() for rank in world.ranks},
        )
        self._says(world.ranks[0], f"autotune cache file: {path}")
        if path.exists():
            content = path.read_bytes()
            for tuner in tuners.values():
                write_bytes(path, content, f".{SHARED_FILE}.")
                tuner.load(path)
        self._measure(tuners)
        tuners[world.ranks[0]].save(path)

    def _per_rank(self, world: World) -> None:
        tuned: Dict[Rank, Tuner] = {}
        for group in world.groups:
            tuned.update(self._group(group))
        for rank, tuner in tuned.items():  # after a barrier of the whole world
            if tuner.tuned:
                tuner.save(self._key_folder() / rank.file_name)

    def _group(self, group: Sequence[Rank]) -> Dict[Rank, Tuner]:
        """Ranks that compare their files, and tune together."""
        folder, tuners = self._key_folder(), {rank: self._tuner() for rank in group}
        if group is self._world.groups[0]:  # only a node's first rank says what others would, too
            self._says(group[0], f"autotune cache file: {folder / group[0].file_name}")
        prints = [fingerprint(folder / rank.file_name) for rank in group]
        hit = prints[0] is not None and all(print_ == prints[0] for print_ in prints)
        if hit:
            loaded = [tuner.load(folder / rank.file_name) for rank, tuner in tuners.items()]
            hit = all(loaded)
            if not hit:
                for tuner in tuners.values():
                    tuner.clear()
        # 0.33: a hit skips the sweep; 0.32 tunes what the files lack
        self._measure(tuners, skipped=hit and self._release.keeps is Keeps.MANAGED)
        return tuners

    def _managed(self, world: World) -> None:
        rank = world.ranks[0]
        root = Path(self._override()).expanduser() if self._override() else self._managed_default()
        self._says(
            rank,
            f"managed autotune cache (root={root if self._override() else 'flashinfer default'})",
        )
        with self._sweep.process(1):
            store = ManagedStore(root, self._metadata())
            self.written.append(store.folder)
            self._sweep.measure({rank: store})

    # What they share

    def _measure(self, tuners: Mapping[Rank, Tuner], skipped: bool = False) -> None:
        with self._sweep.process(len(tuners)):
            self._sweep.measure(tuners, skipped)

    def _says(self, rank: Rank, what: str) -> None:
        hint = (
            ". Pass --disable-flashinfer-autotune to skip autotuning."
            if self._release.hints
            else ""
        )
        vllm_log(rank.label).info(f"Using FlashInfer {what}{hint}")

    def _tuner(self) -> Tuner:
        return Tuner(self._metadata(), self._release.format)

    def _metadata(self) -> Metadata:
        return metadata(self._release, self._gpu.name)

    def _override(self) -> str:
        return self._environ.get(VARIABLE, "")

    def _key_folder(self) -> Path:
        if self._override():
            root = Path(self._override()).expanduser()
        else:
            cache = self._environ.get("VLLM_CACHE_ROOT") or str(
                Path(self._environ.get("XDG_CACHE_HOME", "~/.cache")) / "vllm"
            )
            root = (
                Path(cache).expanduser()
                / "flashinfer_autotune_cache"
                / self._release.flashinfer
                / self._gpu.arch
            )
        folder = root / key(self._release, self._arguments, self._gpu, self._environ)
        folder.mkdir(parents=True, exist_ok=True)
        if folder not in self.written:
            self.written.append(folder)
        return folder

    def _managed_default(self) -> Path:
        own = self._environ.get("FLASHINFER_AUTOTUNE_CACHE_DIR")
        base = self._environ.get("FLASHINFER_WORKSPACE_BASE")
        return (
            Path(own)
            if own
            else (Path(base) if base else Path.home()) / ".cache" / "flashinfer" / "autotune"
        )
