"""Many rehearsals after one import of vLLM, which takes 12 of a rehearsal's 13 seconds.

usage: many_rehearsals.py FOLDER    FOLDER is images/rehearsal; started with the interpreter that has vLLM

Reads one JSON line {"words": […], "environ": {…}, "log": "path"} for each, runs it in a process of its own, answers with its exit status.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback

sys.path.insert(0, sys.argv[1])

from rehearsal import cli, config, device, warmup
from rehearsal.settings import settings_of


def run(words: list[str], environ: dict[str, str], log: str) -> int:
    """The exit status of a process that rehearses; all that it says goes to `log`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ.update(environ)
        settings = settings_of(os.environ)
        device.torch_sees(settings)
        cli.rehearse(words, settings)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Answers go to what was stdout at the start; all else that is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    cli.load(settings_of(os.environ))
    config.engine_config(config.parse([f"{sys.argv[1]}/tiny-model"]))  # imports what the first config imports
    warmup.kernel_warmup_module()
    importlib.import_module("vllm.model_executor.kernels.linear")  # imported by the first warm-up
    importlib.import_module(
        "flashinfer.autotuner.autotuner"
    )._collect_metadata()  # looks for libraries, once in a process
    for line in sys.stdin:
        print(run(**json.loads(line)), file=answers, flush=True)


main()
