"""Starts an engine as a plain process, and reads what it shows: its log, its files, its /health."""

from __future__ import annotations

import http.client
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from tests.ports import free_port

VARIABLE = "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"
MODEL = "Qwen/Qwen3-8B-FP4"
QUICK = {"ENGINE_SECONDS_PER_ENTRY": "0", "ENGINE_START_SECONDS": "0"}


class Engine:
    """A running engine; what it writes goes to `log_file`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log_file: Path) -> None:
        self.process, self.port, self._log_file = process, port, log_file

    @property
    def log(self) -> str:
        """All that it has said so far."""
        return self._log_file.read_text()

    def health(self) -> int | None:
        """The status of GET /health; None while nothing listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        except ConnectionError:
            return None
        finally:
            connection.close()

    def until_ready(self, seconds: float = 30) -> Engine:
        """Waits for 200; raises AssertionError with the log if it ends or takes too long."""
        deadline = time.monotonic() + seconds
        while self.health() != 200:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log}"
            assert time.monotonic() < deadline, f"not ready after {seconds} s:\n{self.log}"
            time.sleep(0.02)
        return self

    def ended(self, seconds: float = 30) -> int:
        """Waits for its end; the exit status."""
        return self.process.wait(seconds)


@contextmanager
def started(
    command: Sequence[str],
    environ: Mapping[str, str],
    log_file: Path,
    read_only: Path | None = None,
    powerless: bool = False,
) -> Iterator[Engine]:
    """Runs `command --port …` with this environment only.

    `read_only` is a folder that it sees as a read-only mount; `powerless` is root that cannot read what belongs to others.
    """
    port = free_port()
    words = [*command, "--port", str(port)]
    if powerless:
        words = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", *words]
    if read_only is not None:
        script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        words = [
            "unshare",
            "-m" if os.getuid() == 0 else "-rm",
            "sh",
            "-c",
            script,
            str(read_only),
            *words,
        ]
    with log_file.open("wb") as out:
        process = subprocess.Popen(words, env=dict(environ), stdout=out, stderr=subprocess.STDOUT)
        try:
            yield Engine(process, port, log_file)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait(10)


class StandIn:
    """Runs releases of the stand-in over one override folder, `cache`."""

    def __init__(self, engines: Path, folder: Path, stack: ExitStack) -> None:
        self.engines, self.folder, self.cache = engines, folder, folder / "cache"
        self.home = folder / "home"
        self.cache.mkdir()
        self.home.mkdir()
        self._stack, self._number = stack, count()

    def play(self, release: str, *args: str, **environ: str) -> Engine:
        """`vllm serve` with these arguments; `environ` adds to, and an empty value removes from, what is set here."""
        return self._play(None, release, args, environ)

    def play_read_only(self, folder: Path, release: str, *args: str, **environ: str) -> Engine:
        """The same, with `folder` mounted read-only for it."""
        return self._play(folder, release, args, environ)

    def ready(self, release: str, *args: str, **environ: str) -> str:
        """The log of an engine that became ready; it is ended."""
        engine = self.play(release, *args, **environ).until_ready()
        engine.process.terminate()
        assert engine.ended(5) == 0
        return engine.log

    def _play(
        self, read_only: Path | None, release: str, args: tuple[str, ...], environ: dict[str, str]
    ) -> Engine:
        variables = {"HOME": str(self.home), VARIABLE: str(self.cache), **QUICK, **environ}
        command = [str(self.engines / release / "bin/vllm"), "serve", MODEL, *args]
        log_file = self.folder / f"log{next(self._number)}"
        given = {name: text for name, text in variables.items() if text}
        return self._stack.enter_context(started(command, given, log_file, read_only))


def files(root: Path) -> list[str]:
    """All files and empty folders under `root`, a key's 64 hex written as KEY, an environment's 16 as ENV, an entry's 24 as ENTRY."""
    found = [
        str(path.relative_to(root)) + ("/" if path.is_dir() else "")
        for path in sorted(root.rglob("*"))
        if not path.is_dir() or not any(path.iterdir())
    ]
    shapes = (
        (r"\b[0-9a-f]{64}\b", "KEY"),
        (r"\b[0-9a-f]{24}\b", "ENTRY"),
        (r"\b[0-9a-f]{16}\b", "ENV"),
    )
    for shape, name in shapes:
        found = [re.sub(shape, name, path) for path in found]
    return found


def modes(root: Path) -> set[str]:
    """The modes of all files under `root`, in octal."""
    return {oct(stat.S_IMODE(path.lstat().st_mode)) for path in root.rglob("*") if path.is_file()}


def profiles_seen(log: str) -> int:
    """How many profiles the stand-in's first rank has tuned: four tactics each, and the fallback in the managed store."""
    found = re.search(r"^stand-in: profiled (\d+)$", log, re.MULTILINE)
    assert found, f"it does not say what it profiled:\n{log}"
    return int(found[1]) // (5 if "managed autotune cache" in log else 4)
