"""The two sides that are compared: a release's own code, and the stand-in that plays it. Both do the same steps."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from tests.fidelity.playing import VARIABLE, started
from tests.fidelity.releases import REHEARSAL
from tests.fidelity.seen import Shown, Sight
from tests.fidelity.situations import Change, Engine, Situation, Start

MODEL, MOE_MODEL = str(REHEARSAL / "tiny-model"), str(REHEARSAL / "tiny-moe-model")
TOY_BUCKETS, VLLM_BUCKETS = 5, 21  # profiles of one operation: its own until 0.29, then vLLM's


class Rehearsals:
    """Runs rehearsals of one release one after another; `read_only` shows the same files as `writable`, and none can be written there."""

    def __init__(self, interpreter: Path, folder: Path) -> None:
        self.writable, self.read_only, self._logs = (
            folder / "writable",
            folder / "read-only",
            folder / "logs",
        )
        for made in (self.writable, self.read_only, self._logs, folder / "home"):
            made.mkdir()
        script = 'mount --bind "$0" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'
        namespace = ["unshare", "-m" if os.getuid() == 0 else "-rm"]
        mount = [*namespace, "sh", "-c", script, str(self.writable), str(self.read_only)]
        many = [
            str(interpreter),
            str(Path(__file__).with_name("many_rehearsals.py")),
            str(REHEARSAL),
        ]
        # FlashInfer looks for a device when it is imported, and must find none: its name for the GPU's architecture is told.
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder / "home"),
            "FLASHINFER_CUDA_ARCH_LIST": "9.0a",
        }
        self._errors_file = folder / "errors"
        self._errors = self._errors_file.open("wb")
        self._process = subprocess.Popen(
            [*mount, *many],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._answer()

    def run(
        self, words: Sequence[str], environ: dict[str, str], powerless: bool, patience: int
    ) -> tuple[str, str]:
        """How one ended (ready, exit N, hangs), and its log."""
        log = self._logs / str(time.monotonic_ns())
        request = {
            "words": list(words),
            "environ": environ,
            "log": str(log),
            "powerless": powerless,
        }
        status = self._ask(request | {"patience": patience})
        end = {0: "ready", -14: "hangs"}.get(status, f"exit {status}")
        return end, log.read_text()

    def key(self, words: Sequence[str], environ: dict[str, str]) -> str | None:
        """The folder's name for this configuration; None if there can be none. A word MODEL is the model."""
        words = [word.replace("MODEL", MODEL) for word in words]
        answer: str | None = self._ask({"words": words, "environ": environ, "key": True})
        return answer

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, f"many_rehearsals.py ended:\n{self._errors_file.read_text()}"
        return json.loads(line)

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()
        self._errors.close()


class Side(Protocol):
    """One engine in one situation. `cache` is its override folder."""

    cache: Path

    def start(
        self, engine: Engine, start: Start, patience: int
    ) -> tuple[str, str, tuple[Path, ...]]:
        """How it ended, its log, and other paths of its folder."""


class Real:
    """The release's own code."""

    def __init__(self, rehearsals: Rehearsals, name: str) -> None:
        self.cache, self._name, self._rehearsals = rehearsals.writable / name, name, rehearsals
        self.cache.mkdir()

    def start(
        self, engine: Engine, start: Start, patience: int
    ) -> tuple[str, str, tuple[Path, ...]]:
        """See Side."""
        seen = (
            self._rehearsals.read_only if start.read_only else self._rehearsals.writable
        ) / self._name
        model, operation = (MOE_MODEL, "toy_moe") if engine.experts else (MODEL, "toy_gemm")
        environ = {
            VARIABLE: str(seen),
            "REHEARSAL_GPU": start.gpu.name,
            "REHEARSAL_CAPABILITY": start.gpu.capability,
            "REHEARSAL_OPERATIONS": ",".join(f"{operation}_{at}" for at in range(start.operations)),
            **start.variables(seen),
        }
        end, log = self._rehearsals.run(
            [model, *engine.args, *start.args], environ, start.powerless, patience
        )
        return end, log, (seen,)


class Played:
    """The stand-in, as a process of its own each time."""

    def __init__(self, prefix: Path, folder: Path, buckets: int) -> None:
        self.cache, self._prefix, self._folder, self._buckets = (
            folder / "cache",
            prefix,
            folder,
            buckets,
        )
        self.cache.mkdir()
        self._starts = 0

    def start(
        self, engine: Engine, start: Start, patience: int
    ) -> tuple[str, str, tuple[Path, ...]]:
        """See Side."""
        self._starts += 1
        entries = str(start.operations * self._buckets)
        environ = {
            "HOME": str(self._folder),
            VARIABLE: str(self.cache),
            "ENGINE_GPU": start.gpu.name,
            "ENGINE_ENTRIES": f"{entries},{entries}",
            "ENGINE_SECONDS_PER_ENTRY": "0",
            "ENGINE_START_SECONDS": "0",
            **start.variables(self.cache),
        }
        command = [str(self._prefix / "bin/vllm"), "serve", MODEL, *engine.args, *start.args]
        log_file = self._folder / f"log{self._starts}"
        with ExitStack() as stack:
            read_only = self.cache if start.read_only else None
            running = stack.enter_context(
                started(command, environ, log_file, read_only, start.powerless)
            )
            deadline = time.monotonic() + patience
            while (
                running.process.poll() is None
                and running.health() != 200
                and time.monotonic() < deadline
            ):
                time.sleep(0.01)
            end = "hangs"
            if running.process.poll() is not None:
                end = f"exit {running.process.returncode}"
            elif time.monotonic() < deadline:
                end = "ready"
            return end, running.log, ()


def play(side: Side, engine: Engine, situation: Situation) -> list[Shown]:
    """Does the situation's steps; what each start showed."""
    sight, shown = Sight(side.cache), []
    for step in situation.steps:
        if isinstance(step, Change):
            step.how(side.cache)
            sight.changed()
            continue
        end, log, also = side.start(engine, step, situation.patience)
        shown.append(sight.shown(end, log, also))
    return shown
