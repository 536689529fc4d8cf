"""The stand-in of 0.33.0 against vLLM 0.33.0's and FlashInfer 0.7.2.post1's own code, in the same situations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fidelity.playing import VARIABLE, StandIn, files, messages, modes, started

ROOT = Path(__file__).resolve().parents[2]
REHEARSAL = ROOT / "images/rehearsal"
MODEL = REHEARSAL / "tiny-model"
ENTRIES = 21  # of the rehearsal's one operation: vLLM's token buckets
pytestmark = pytest.mark.rehearsal


@dataclass
class Outcome:
    """What can be compared: whether it got ready, what it said, and what lies in the folder then."""

    ready: bool
    read_only_crash: bool
    said: set[str]
    files: list[str]
    modes: set[str]


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A python3 that finds vLLM as the image's does: a virtual environment whose site-packages are the installed ones."""
    ran = subprocess.run([str(REHEARSAL / "install")], check=True, stdout=subprocess.PIPE, text=True)
    packages = Path(ran.stdout.splitlines()[-1])
    base = Path(os.path.realpath(sys.executable))
    venv = tmp_path_factory.mktemp("rehearsal") / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "lib/python3.11").mkdir(parents=True)
    (venv / "lib/python3.11/site-packages").symlink_to(packages)
    (venv / "bin/python3").symlink_to(base)
    (venv / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
    return venv / "bin/python3"


class Rehearsals:
    """Runs rehearsals one after another; `read_only` shows the same files as `writable`, and none can be written there."""

    def __init__(self, interpreter: Path, folder: Path) -> None:
        self.writable, self.read_only, self._logs = folder / "writable", folder / "read-only", folder / "logs"
        for made in (self.writable, self.read_only, self._logs, folder / "home"):
            made.mkdir()
        script = 'mount --bind "$0" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'
        mount = [
            "unshare",
            "-m" if os.getuid() == 0 else "-rm",
            "sh",
            "-c",
            script,
            str(self.writable),
            str(self.read_only),
        ]
        many = [str(interpreter), str(Path(__file__).with_name("many_rehearsals.py")), str(REHEARSAL)]
        environ = {"PATH": os.environ["PATH"], "HOME": str(folder / "home")}
        self._errors = (folder / "errors").open("wb")
        self._process = subprocess.Popen(
            [*mount, *many], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self._errors_file = folder / "errors"

    def run(self, words: list[str], environ: dict[str, str]) -> tuple[int, str]:
        """Exit status and log of one."""
        assert self._process.stdin and self._process.stdout
        log = self._logs / str(time.monotonic_ns())
        self._process.stdin.write(json.dumps({"words": words, "environ": environ, "log": str(log)}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"many_rehearsals.py ended:\n{self._errors_file.read_text()}"
        return int(answer), log.read_text()

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()
        self._errors.close()


@pytest.fixture(scope="session")
def rehearsals(interpreter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsals]:
    running = Rehearsals(interpreter, tmp_path_factory.mktemp("rehearsals"))
    yield running
    running.close()


@dataclass
class Both:
    """Plays one step on both sides."""

    rehearsals: Rehearsals
    stand_in: StandIn
    name: str
    args: list[str]
    outcomes: list[tuple[Outcome, Outcome]] = field(default_factory=list)

    @property
    def caches(self) -> tuple[Path, Path]:
        """The override folders: the rehearsal's, the stand-in's."""
        return self.rehearsals.writable / self.name, self.stand_in.cache

    def start(self, read_only: bool = False, gpu: str = "NVIDIA H200") -> None:
        """Starts both engines, and keeps what they did."""
        self.caches[0].mkdir(exist_ok=True)
        self.outcomes.append((self._rehearse(read_only, gpu), self._play(read_only, gpu)))

    def change(self, how: Callable[[Path], None]) -> None:
        """Does the same to both folders."""
        for cache in self.caches:
            how(cache)

    def _rehearse(self, read_only: bool, gpu: str) -> Outcome:
        root = self.rehearsals.read_only if read_only else self.rehearsals.writable
        environ = {VARIABLE: str(root / self.name), "REHEARSAL_GPU": gpu}
        status, log = self.rehearsals.run([str(MODEL), *self.args], environ)
        return self._outcome(status == 0, log, self.caches[0])

    def _play(self, read_only: bool, gpu: str) -> Outcome:
        environ = {"ENGINE_ENTRIES": str(ENTRIES), "ENGINE_GPU": gpu}
        if read_only:
            engine = self.stand_in.play_read_only(self.stand_in.cache, "0.33.0", *self.args, **environ)
        else:
            engine = self.stand_in.play("0.33.0", *self.args, **environ)
        while engine.process.poll() is None and engine.health() != 200:
            time.sleep(0.02)
        ready = engine.process.poll() is None
        engine.process.terminate()
        engine.ended()
        return self._outcome(ready, engine.log, self.stand_in.cache)

    def _outcome(self, ready: bool, log: str, cache: Path) -> Outcome:
        crash = "OSError: [Errno 30] Read-only file system" in log
        return Outcome(ready, crash, messages(log), files(cache), modes(cache))


def rank_files(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/autotune_configs*.json"))


def drop_an_entry(file: Path) -> None:
    content = json.loads(file.read_text())
    del content[sorted(name for name in content if not name.startswith("_"))[0]]
    file.write_text(json.dumps(content))


def cold_then_warm(both: Both) -> None:
    both.start()
    both.start()


def read_only_miss(both: Both) -> None:
    both.start(read_only=True)


def read_only_hit(both: Both) -> None:
    both.start()
    both.start(read_only=True)


def another_gpu(both: Both) -> None:
    both.start(gpu="NVIDIA H100 80GB HBM3")
    both.start()


def an_unknown_gpu(both: Both) -> None:
    both.start(gpu="unknown")
    both.start()


def an_entry_is_missing(both: Both) -> None:
    def lose(cache: Path) -> None:
        for entry in sorted(cache.glob("v2/*/entries/*.json"))[:1]:
            entry.unlink()
        for file in rank_files(cache):
            drop_an_entry(file)

    both.start()
    both.change(lose)
    both.start()


def a_file_is_cut_off(both: Both) -> None:
    def cut(cache: Path) -> None:
        file = [*sorted(cache.glob("v2/*/entries/*.json")), *rank_files(cache)][0]
        os.truncate(file, file.stat().st_size // 2)

    both.start()
    both.change(cut)
    both.start()


def one_rank_lost_its_file(both: Both) -> None:
    both.start()
    both.change(lambda cache: rank_files(cache)[1].unlink())
    both.start()


def one_rank_lost_an_entry(both: Both) -> None:
    both.start()
    both.change(lambda cache: drop_an_entry(rank_files(cache)[1]))
    both.start()


ALWAYS = [
    cold_then_warm, read_only_miss, read_only_hit, another_gpu, an_unknown_gpu, an_entry_is_missing, a_file_is_cut_off,
]  # fmt: skip
MANAGED: list[str] = []
TP2 = ["--tensor-parallel-size", "2"]


@pytest.mark.parametrize(
    ("args", "situation"),
    [(args, situation) for args in (MANAGED, TP2) for situation in ALWAYS]
    + [(TP2, one_rank_lost_its_file), (TP2, one_rank_lost_an_entry)]
    + [(["-O0"], cold_then_warm), (["--pipeline-parallel-size", "2"], cold_then_warm)],
    ids=lambda value: value.__name__ if callable(value) else "".join(value) or "managed",
)
def test_the_stand_in_does_what_vllm_does(
    rehearsals: Rehearsals, stand_in: StandIn, tmp_path: Path, args: list[str], situation: Callable[[Both], None]
) -> None:
    both = Both(rehearsals, stand_in, tmp_path.name, args)
    situation(both)
    for real, played in both.outcomes:
        if "--pipeline-parallel-size" in args:  # the stand-in's second stage has an entry less
            real.said, played.said = ({line.replace("20", "21") for line in said} for said in (real.said, played.said))
        assert played == real


def test_the_rehearsal_serves_health_once_it_is_warm_and_says_what_it_profiled(
    interpreter: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), VARIABLE: str(cache)}
    command = [str(interpreter), str(REHEARSAL / "vllm"), "serve", str(MODEL)]
    with started(command, environ, tmp_path / "log") as engine:
        assert engine.health() is None
        engine.until_ready(240)
        engine.process.terminate()
        assert engine.ended(5) == 0
        assert f"rehearsal: profiled {5 * ENTRIES}" in engine.log  # four tactics and the fallback
    assert files(cache) == ["v2/ENV/entries/ENTRY.json"] * ENTRIES + ["v2/ENV/manifest.json"]
