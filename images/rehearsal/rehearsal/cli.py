"""`vllm serve …`, as far as the warm-up, then /health."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from .log import say
from .settings import Settings, prepare, settings_of


def main(words: Sequence[str] | None = None) -> None:
    """Exits with 2 for wrong arguments; a failed warm-up ends it with its traceback and 1."""
    words = sys.argv[1:] if words is None else words
    if not words or words[0] != "serve":
        print(
            "usage: vllm serve MODEL [options]   (the rehearsal knows no other command)",
            file=sys.stderr,
        )
        sys.exit(2)
    for number in (
        signal.SIGTERM,
        signal.SIGINT,
    ):  # the first process of a container has no default action
        signal.signal(number, lambda number, frame: os._exit(0))
    serve(words[1:], settings_of(os.environ))


def serve(words: Sequence[str], settings: Settings) -> None:
    """Imports vLLM, makes its config, warms up, listens for ever. Raises what vLLM raises."""
    began = time.monotonic()
    load(settings)
    asked = rehearse(words, settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    say(f"warm after {time.monotonic() - began:.1f} s, {peak} MiB at most")
    from .server import listen

    listener = listen(asked.host or "0.0.0.0", asked.port)
    say(f"listening on port {asked.port}")
    listener.serve_forever()


def load(settings: Settings) -> None:
    """Imports vLLM and FlashInfer, which takes most of the time, with a device that is not there."""
    prepare()
    faulthandler.register(signal.SIGUSR1)  # says on stderr where each thread of each rank stands
    from .device import pretend

    pretend(settings)
    import flashinfer
    import vllm

    say(
        f"vLLM {vllm.__version__} and FlashInfer {flashinfer.__version__} on the CPU; toy kernels, no model"
    )


def rehearse(words: Sequence[str], settings: Settings) -> Any:
    """Warms up as `vllm serve` with these arguments would; returns them, parsed."""
    from . import config, warmup

    asked = config.parse(words)
    made = config.engine_config(asked)
    say(f"pretending {settings.gpu}")
    warmup.warm_up(made, settings)
    return asked
