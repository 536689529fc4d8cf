"""`python3 -I -S agent.pyz check|seal|seed|prove|import|inspect|prune`: one task in, one report out (protocol.py)."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from typing import List, Optional

from pretune.agent.claim.fs import Problem
from pretune.agent.context import Context
from pretune.protocol import TERMINATION_LOG, TOO_SLOW, Report

VERBS = ("check", "seal", "seed", "prove", "import", "inspect", "prune")
MODULES = {
    "import": "import_folder"
}  # each verb in its module, which alone is loaded: seed is in every pod
SUCCESS = {
    "check": (
        "Checked",
    ),  # a bundle that is there already ends the attempt too: the engine must not start
    "seal": ("Sealed", "NothingToTune"),
    "prove": ("Proven",),
    "import": ("Sealed",),
    "inspect": ("Inspected",),
    "prune": ("Pruned",),
}
UNEXPECTED = {
    "check": "SealFailed",
    "seal": "SealFailed",
    "seed": "SeedFailed",
    "prove": "ProofFailed",
    "import": "ImportRefused",
    "prune": "PruneFailed",
}


def run(verb: str, context: Context) -> Report:
    """The verb's report, whatever happens: a Problem and any other error become one."""
    try:
        name = MODULES.get(verb, verb)
        report: Report = getattr(importlib.import_module("pretune.agent.%s" % name), name)(context)
        return report
    except Problem as problem:
        return Report(verb, problem.reason, problem.message)
    except Exception as error:  # the last place where it can be told
        traceback.print_exc()
        return Report(
            verb, UNEXPECTED.get(verb, "InspectFailed"), "%s: %s" % (type(error).__name__, error)
        )


def exit_code(report: Report) -> int:
    """0 to go on; seed always, but for TOO_SLOW."""
    if report.by == "seed":
        return TOO_SLOW if report.reason == "TooSlow" else 0
    return 0 if report.reason in SUCCESS[report.by] else 1


def main(argv: Optional[List[str]] = None) -> int:
    """The exit code; the report goes to the termination log. The options are there for use by hand and in tests."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = {
        "--claim": "",
        "--tactics": "",
        "--source": "",
        "--proc": "",
        "--termination-log": TERMINATION_LOG,
        "--limit": "",
    }
    verb = arguments.pop(0) if arguments else ""
    while len(arguments) >= 2 and arguments[0] in options:
        name, value = arguments[:2]
        options[name], arguments = value, arguments[2:]
    if verb not in VERBS or arguments:
        print(
            "usage: agent.pyz %s [--claim DIR] [--tactics DIR] [--source DIR] [--proc DIR] [--termination-log FILE]"
            " [--limit SECONDS]" % "|".join(VERBS),
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
        context.claim = options["--claim"] or context.claim
        context.tactics = options["--tactics"] or context.tactics
        context.source = options["--source"] or context.source
        context.proc = options["--proc"] or context.proc
        context.limit = float(options["--limit"] or context.limit)
        report = run(verb, context)
    print("pretune %s: %s: %s" % (verb, report.reason, report.message), flush=True)
    _tell(options["--termination-log"], report)
    return exit_code(report)


def _tell(path: str, report: Report) -> None:
    # Only an answer counts as inspect's report: "no bundle" and "could not look" must not be mixed up.
    answer = report.by != "inspect" or report.reason == "Inspected"
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(
                report.dump() if answer else "%s: %s" % (report.reason, report.message[:500])
            )
    except OSError as error:
        print("pretune: no termination message: %s" % error, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
