"""`python3 -I agent.pyz check|seal|seed|inspect|prune`: one task in, one report out (wire.py)."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import Callable, Dict, List, Optional

from pretune.agent.check import check
from pretune.agent.context import Context
from pretune.agent.disk import Problem
from pretune.agent.inspect import inspect
from pretune.agent.prune import prune
from pretune.agent.seal import seal
from pretune.agent.seed import seed
from pretune.wire import TERMINATION_LOG, Report

VERBS: Dict[str, Callable[[Context], Report]] = {
    "check": check,
    "seal": seal,
    "seed": seed,
    "inspect": inspect,
    "prune": prune,
}
SUCCESS = {
    "check": ("Checked",),  # a bundle that is there already ends the attempt too: the engine must not start
    "seal": ("Sealed", "NothingToTune"),
    "inspect": ("Inspected",),
    "prune": ("Pruned",),
}
UNEXPECTED = {"check": "SealFailed", "seal": "SealFailed", "seed": "SeedFailed", "prune": "PruneFailed"}


def run(verb: str, context: Context) -> Report:
    """The verb's report, whatever happens: a Problem and any other error become one."""
    try:
        return VERBS[verb](context)
    except Problem as problem:
        return Report(verb, problem.reason, problem.message)
    except Exception as error:  # the last place where it can be told
        traceback.print_exc()
        return Report(verb, UNEXPECTED.get(verb, "InspectFailed"), "%s: %s" % (type(error).__name__, error))


def exit_code(report: Report) -> int:
    """0 to go on; seed always."""
    return 0 if report.by == "seed" or report.reason in SUCCESS[report.by] else 1


def main(argv: Optional[List[str]] = None) -> int:
    """The exit code; the report goes to the termination log. The paths may be named for use by hand and in tests."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    paths = {"--claim": "", "--tactics": "", "--termination-log": TERMINATION_LOG}
    verb = arguments.pop(0) if arguments else ""
    while len(arguments) >= 2 and arguments[0] in paths:
        name, value = arguments[:2]
        paths[name], arguments = value, arguments[2:]
    if verb not in VERBS or arguments:
        print(
            "usage: agent.pyz %s [--claim DIR] [--tactics DIR] [--termination-log FILE]" % "|".join(VERBS),
            file=sys.stderr,
        )
        return 2
    # TERM is an eviction's: clean up, and leave no report, since the attempt did not fail.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.umask(0o022)
    try:
        context = Context.of(os.environ)
    except ValueError as error:
        report = Report(verb, UNEXPECTED.get(verb, "InspectFailed"), str(error))
    else:
        context.claim = paths["--claim"] or context.claim
        context.tactics = paths["--tactics"] or context.tactics
        report = run(verb, context)
    print("pretune %s: %s: %s" % (verb, report.reason, report.message), flush=True)
    _tell(paths["--termination-log"], report)
    return exit_code(report)


def _tell(path: str, report: Report) -> None:
    # Only an answer counts as inspect's report: "no bundle" and "could not look" must not be mixed up.
    answer = report.by != "inspect" or report.reason == "Inspected"
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(report.dump() if answer else "%s: %s" % (report.reason, report.message[:500]))
    except OSError as error:
        print("pretune: no termination message: %s" % error, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
