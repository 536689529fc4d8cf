"""`vllm` on the command line."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import List, NoReturn, Optional

from . import arguments as args
from .faults import NothingToSpoilError, spoil
from .gpus import gpu
from .log import vllm as vllm_log
from .releases import UNKNOWN, played_by
from .server import listen
from .settings import SettingError, Settings, settings_of
from .warmup import WarmUp

PREFIX_NAME = os.path.basename(
    os.path.realpath(sys.prefix)
)  # install.py names each prefix after its release


def main(words: Optional[List[str]] = None) -> None:
    """`vllm serve …` or `vllm --version`; exits with 2 for a wrong command line, as argparse does."""
    words = sys.argv[1:] if words is None else words
    if words in (["--version"], ["-v"]):
        print(_version())
    elif words[:1] == ["serve"]:
        serve(words[1:])
    else:
        sys.exit(
            "usage: vllm [-h] [-v] {serve} ...\nvllm: error: the stand-in knows `serve` and `--version` only"
        )


def serve(words: List[str]) -> None:
    """Starts, warms up, then answers /health until it is ended."""
    try:
        release, asked, settings = (
            played_by(PREFIX_NAME),
            args.parse(words),
            settings_of(os.environ),
        )
        port = asked.number("port", 8000)
        warm_up = WarmUp(release, asked, settings, gpu(settings.gpu), os.environ)
    except (args.ArgumentsError, SettingError) as error:
        print(f"vllm serve: error: {error}", file=sys.stderr)
        sys.exit(2)
    _end_on_term(settings)
    api = vllm_log("APIServer")
    api.info(
        f"stand-in for vLLM {release.vllm} (pretune's images/engine): loads no model, tunes nothing, writes the files that vLLM writes"
    )
    api.info(f"vLLM API server version {_version()}, model {asked.model}")
    try:
        _start(warm_up, settings)
    except Exception as error:
        vllm_log("EngineCore").error("EngineCore failed to start.", exc_info=True)
        raise RuntimeError(
            "Engine core initialization failed. See root cause above. Failed core proc(s): {}"
        ) from error
    if settings.fault == "never-ready":
        _wait_for_ever()
    server = listen(
        asked.text("host", "0.0.0.0"),
        port,
        _version(),
        asked.text("served-model-name", asked.model),
    )
    api.info(f"Starting vLLM server on http://{asked.text('host', '0.0.0.0')}:{port}")
    if settings.fault == "exit-after-ready":
        threading.Timer(settings.fault_after, _die).start()
    api.info("Application startup complete.")
    server.serve_forever()


def _start(warm_up: WarmUp, settings: Settings) -> None:
    if settings.fault == "crash-at-start":
        raise RuntimeError("CUDA driver initialization failed, you might not have a CUDA gpu.")
    time.sleep(settings.start_seconds)
    warm_up.run()
    for rank, profiled in enumerate(warm_up.profiled):
        print(f"stand-in: {f'rank {rank}: ' if rank else ''}profiled {profiled}", flush=True)
    try:
        spoil(settings.fault, warm_up.written)
    except NothingToSpoilError as error:
        print(f"vllm serve: error: {error}", file=sys.stderr)
        sys.exit(2)


def _version() -> str:
    """The prefix's own package metadata say the same; to read them would take half of the time of a start."""
    return "dev" if PREFIX_NAME == UNKNOWN else played_by(PREFIX_NAME).vllm


def _end_on_term(settings: Settings) -> None:
    """The first process of a container has no default action for SIGTERM: without a handler it would live on."""

    def end(number: int, frame: Optional[FrameType]) -> None:
        vllm_log("APIServer").info("Shutting down")
        sys.stdout.flush()
        os._exit(0)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if settings.fault == "hang-on-term" else end)
    signal.signal(signal.SIGINT, end)


def _die() -> None:
    vllm_log("EngineCore").error(
        "EngineCore encountered a fatal error: CUDA error: an illegal memory access was encountered"
    )
    sys.stdout.flush()
    os._exit(1)


def _wait_for_ever() -> NoReturn:
    while True:
        time.sleep(3600)
