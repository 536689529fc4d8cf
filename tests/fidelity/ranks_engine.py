"""Engines of several ranks, one after another, after one import of vLLM; started by ranks.py with the interpreter that has vLLM.

usage: ranks_engine.py FOLDER    FOLDER is images/rehearsal

Says "imported". Then reads one JSON line {"words": […], "environ": {…}, "log": "path"} for each engine, and answers with its exit status.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

sys.path.insert(0, sys.argv[1])

from rehearsal import cli, config, warmup
from rehearsal.settings import settings_of


def run(words: list[str], environ: dict[str, str], log: str) -> int:
    """The exit status of a process that is the engine's first rank; all that the ranks say goes to `log`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ.update(environ)
        cli.rehearse(words, settings_of(os.environ))
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
    config.engine_config(
        config.parse([f"{sys.argv[1]}/tiny-model"])
    )  # imports what the first config imports
    warmup.kernel_warmup_module()
    print("imported", file=answers, flush=True)
    for line in sys.stdin:
        print(run(**json.loads(line)), file=answers, flush=True)


main()
