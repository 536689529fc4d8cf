"""vLLM's side: `flashinfer_autotune()` of each release."""

from __future__ import annotations

import contextlib
import os
import random
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Mapping, Sequence

from .arguments import Arguments
from .files import write_bytes
from .gpus import Gpu
from .key import key
from .log import Progress
from .log import flashinfer as flashinfer_log
from .log import vllm as vllm_log
from .profiles import BUCKETS, Profile, metadata, profiles
from .ranks import Rank, World, worlds
from .releases import Keeps, Release
from .settings import Settings
from .store import ManagedStore
from .tuner import Tuner, fingerprint

VARIABLE = "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"
SHARED_FILE = "autotune_configs.json"


class CrashError(RuntimeError):
    """The faults `crash` and `warm-crash`: what a kernel that fails while it is tuned looks like."""


class WarmUp:
    """One engine's tuning. `run` does it; afterwards `written` names the folders that it uses. Raises ArgumentsError."""

    def __init__(
        self, release: Release, arguments: Arguments, settings: Settings, gpu: Gpu, environ: Mapping[str, str]
    ) -> None:
        self._release, self._arguments, self._settings, self._gpu, self._environ = (
            release,
            arguments,
            settings,
            gpu,
            environ,
        )
        self._worlds = worlds(release, arguments)
        self._unstable = random.getrandbits(47) if settings.fault == "never-keeps-one" else None
        self.written: List[Path] = []

    def run(self) -> None:
        """Tunes what is not found. Raises what vLLM raises: OSError where a folder cannot be written, ValueError for broken JSON."""
        if self._is_off():
            vllm_log("EngineCore").info("Skipping FlashInfer autotune because it is disabled.")
        elif self._gpu.tunes:
            for world in self._worlds:
                self._tune(world)

    def _is_off(self) -> bool:
        options = self._arguments.options
        given = options.get("enable-flashinfer-autotune") is False or self._arguments.is_on(
            "disable-flashinfer-autotune"
        )
        return given or (
            options.get("optimization-level") == "0" and not self._arguments.is_on("enable-flashinfer-autotune")
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
            self._sweep(world.ranks, {rank: Tuner({}) for rank in world.ranks})

    # One function a way of keeping

    def _leader(self, rank: Rank) -> None:
        path, tuner = self._key_folder() / SHARED_FILE, self._tuner()
        self._says(rank, "cache file", path)
        if path.is_file():
            tuner.load(path)
        self._sweep([rank], {rank: tuner})
        if tuner.tuned:
            tuner.save(path)
        if not path.exists():
            vllm_log(rank.label).warning("No FlashInfer autotune cache entries found.Falling back to default tactics.")
            return
        write_bytes(path, path.read_bytes(), f".{SHARED_FILE}.")
        tuner.load(path)
        vllm_log(rank.label).info(f"FlashInfer autotune cache loaded on rank 0 from {path}.")

    def _shared(self, world: World) -> None:
        path, tuners = self._key_folder() / SHARED_FILE, {rank: self._tuner() for rank in world.ranks}
        self._says(world.ranks[0], "cache file", path)
        if path.exists():
            content = path.read_bytes()
            for tuner in tuners.values():
                write_bytes(path, content, f".{SHARED_FILE}.")
                tuner.load(path)
            self._strike_if(any(tuner.loaded for tuner in tuners.values()))
            if len(world.ranks) > 1 and all(tuner.loaded for tuner in tuners.values()):
                self._hang(world)
        self._sweep(world.ranks, tuners)
        tuners[world.ranks[0]].save(path)

    def _per_rank(self, world: World) -> None:
        hit_ends_it = (
            self._release.keeps is Keeps.MANAGED
        )  # 0.33: a hit skips the sweep; 0.32 tunes what the files lack
        saved = []
        for group in world.groups:
            folder, tuners = self._key_folder(), {rank: self._tuner() for rank in group}
            self._says(group[0], "cache file", folder / group[0].file_name)
            prints = [fingerprint(folder / rank.file_name) for rank in group]
            hit = prints[0] is not None and all(print_ == prints[0] for print_ in prints)
            if hit:
                loaded = [tuners[rank].load(folder / rank.file_name) for rank in group]
                hit = all(loaded)
                if not hit:
                    for tuner in tuners.values():
                        tuner.clear()
            self._sweep(group, tuners, skipped=hit and hit_ends_it)
            saved += [(tuners[rank], folder / rank.file_name) for rank in group if tuners[rank].tuned]
        for tuner, path in saved:  # after a barrier of the whole world
            tuner.save(path)

    def _managed(self, world: World) -> None:
        rank = world.ranks[0]
        root = Path(self._override()).expanduser() if self._override() else self._managed_default()
        self._says(rank, "managed autotune cache", root if self._override() else "flashinfer default")
        with _process():
            store = ManagedStore(root, self._metadata())
            self.written.append(store.folder)
            self._strike_if(bool(store.known))
            self._sizes(rank)
            wanted = self._profiles(0)
            self._measure([p for p in wanted if not store.has(p)], store.publish)

    # What they share

    def _sweep(self, ranks: Sequence[Rank], tuners: Dict[Rank, Tuner], skipped: bool = False) -> None:
        """Ranks tune side by side, in step: the time is that of one."""
        with _process():
            self._strike_if(any(tuner.loaded for tuner in tuners.values()))
            if skipped:
                return
            self._sizes(ranks[0])
            wanted = [p for p in self._profiles(ranks[0].stage) if not all(tuners[rank].has(p) for rank in ranks)]

            def learn(profile: Profile) -> None:
                for rank in ranks:
                    tuners[rank].learn(profile)

            self._measure(wanted, learn)

    def _measure(self, wanted: Sequence[Profile], learn: Callable[[Profile], None]) -> None:
        operations: Dict[str, List[Profile]] = {}
        for profile in wanted:
            operations.setdefault(profile.operation, []).append(profile)
        while wanted and self._settings.tunes_until and not os.path.exists(self._settings.tunes_until):
            time.sleep(0.02)
        done = 0
        for operation, parts in operations.items():
            progress = Progress(operation, len(parts))
            for profile in parts:
                if self._settings.fault == "crash" and done >= len(wanted) // 2:
                    raise CrashError("CUDA error: an illegal memory access was encountered")
                time.sleep(self._settings.seconds_per_entry)
                learn(profile)
                done += 1
                progress.step()

    def _profiles(self, stage: int) -> List[Profile]:
        return profiles(self._settings.entries, stage, self._unstable)

    def _strike_if(self, warm: bool) -> None:
        """The faults of a start that finds tactics."""
        if warm and self._settings.fault == "warm-crash":
            raise CrashError("CUDA error: an illegal memory access was encountered (from a loaded tactic)")
        while warm and self._settings.fault == "warm-hang":
            time.sleep(3600)

    def _hang(self, world: World) -> None:
        """A rank that has all its entries skips the reduction in which the others wait."""
        time.sleep(self._settings.hang_seconds)
        raise RuntimeError(
            "[gloo/transport/tcp/unbound_buffer.cc] Timed out waiting 1800000ms for recv operation to complete "
            f"({len(world.ranks)} ranks, warm start)"
        )

    def _says(self, rank: Rank, what: str, where: object) -> None:
        place = f" (root={where})" if what.startswith("managed") else f": {where}"
        hint = ". Pass --disable-flashinfer-autotune to skip autotuning." if self._release.hints else ""
        line = (
            f"Using FlashInfer {what}{place}"
            if what.startswith("managed")
            else f"Using FlashInfer autotune {what}{place}"
        )
        vllm_log(rank.label).info(line + hint)

    def _sizes(self, rank: Rank) -> None:
        vllm_log(rank.label).info(f"Running FlashInfer autotune with {BUCKETS[-1]} tokens and token buckets {BUCKETS}.")

    def _tuner(self) -> Tuner:
        return Tuner(self._metadata())

    def _metadata(self) -> Dict[str, str]:
        return metadata(self._release.flashinfer, self._gpu.name)

    def _override(self) -> str:
        return self._environ.get(VARIABLE, "")

    def _key_folder(self) -> Path:
        if self._override():
            root = Path(self._override()).expanduser()
        else:
            cache = self._environ.get("VLLM_CACHE_ROOT") or str(
                Path(self._environ.get("XDG_CACHE_HOME", "~/.cache")) / "vllm"
            )
            root = Path(cache).expanduser() / "flashinfer_autotune_cache" / self._release.flashinfer / self._gpu.arch
        folder = root / key(self._release, self._arguments, self._gpu, self._environ)
        folder.mkdir(parents=True, exist_ok=True)
        if folder not in self.written:
            self.written.append(folder)
        return folder

    def _managed_default(self) -> Path:
        own = self._environ.get("FLASHINFER_AUTOTUNE_CACHE_DIR")
        base = self._environ.get("FLASHINFER_WORKSPACE_BASE")
        return Path(own) if own else (Path(base) if base else Path.home()) / ".cache" / "flashinfer" / "autotune"


@contextlib.contextmanager
def _process() -> Iterator[None]:
    flashinfer_log.info("[Autotuner]: Autotuning process starts ...")
    try:
        yield
    finally:
        flashinfer_log.info("[Autotuner]: Autotuning process ends")
