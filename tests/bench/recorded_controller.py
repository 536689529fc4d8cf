"""The controller, unchanged, in a process that also writes down when its runs start and end.

    python -m tests.bench.recorded_controller FILE

FILE gets a line for each run: {"key", "began", "ended"}, in seconds since the process's start.
With PROFILE=FILE the process is profiled (cProfile) until SIGTERM.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import os
import sys
from pathlib import Path
from typing import Any

from pretune.__main__ import configure_logs
from pretune.config import ControllerSettings
from pretune.controller import main as controller
from pretune.controller import workqueue

from tests.bench.process import since_start


def main() -> None:
    settings = ControllerSettings.from_environment()
    configure_logs(settings.logging_level)
    with Path(sys.argv[1]).open("w", buffering=1) as out:
        _record_runs(out)
        profile = cProfile.Profile() if os.environ.get("PROFILE") else None
        if profile:
            profile.enable()
        try:
            asyncio.run(controller.run(settings))
        finally:
            if profile:
                profile.disable()
                profile.dump_stats(os.environ["PROFILE"])


def _record_runs(out: Any) -> None:
    """Replace the queue's method that runs a key by one that also writes a line."""
    original = workqueue.Queue._run_key

    async def run(queue: workqueue.Queue, key: Any, entry: Any) -> None:
        began = since_start()
        await original(queue, key, entry)
        out.write(json.dumps({"key": str(key), "began": began, "ended": since_start()}) + "\n")

    workqueue.Queue._run_key = run  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    main()
