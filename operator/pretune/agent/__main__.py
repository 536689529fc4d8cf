"""`python3 -I -S agent.py check|seal|seed|prove|import|inspect|prune`: one task, one report.

See protocol.Task and protocol.Report.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from typing import Dict, List, NamedTuple, Optional, Tuple

from pretune.agent.context import Context
from pretune.agent.errors import AgentError
from pretune.api import reasons
from pretune.protocol import (
    CHECKED,
    CLAIM_TOO_SLOW,
    INSPECT_FAILED,
    INSPECTED,
    PROVEN,
    PRUNE_FAILED,
    PRUNED,
    SEED_FAILED,
    TERMINATION_LOG,
    TOO_SLOW_EXIT_CODE,
    Report,
)


class Verb(NamedTuple):
    """What the agent can be asked to do."""

    module: str  # below pretune.agent; its function has the same name. No other is loaded.
    success: Tuple[str, ...]  # reasons of reports with exit code 0
    unexpected: str  # the reason for an error that is not an AgentError


VERBS: Dict[str, Verb] = {
    # A bundle that is there already ends the attempt too: the engine must not start.
    "check": Verb("check", (CHECKED,), reasons.SEAL_FAILED),
    "seal": Verb("seal", (reasons.SEALED, reasons.NOTHING_TO_TUNE), reasons.SEAL_FAILED),
    "seed": Verb("seed", (), SEED_FAILED),
    "prove": Verb("prove", (PROVEN,), reasons.PROOF_FAILED),
    "import": Verb("import_folder", (reasons.SEALED,), reasons.IMPORT_REFUSED),
    "inspect": Verb("inspect", (INSPECTED,), INSPECT_FAILED),
    "prune": Verb("prune", (PRUNED,), PRUNE_FAILED),
}
OPTIONS = ("--claim", "--parts", "--source", "--proc", "--termination-log", "--limit")
USAGE = (
    "usage: agent.py %s [--claim DIR] [--parts DIR] [--source DIR] [--proc DIR]"
    " [--termination-log FILE] [--limit SECONDS]"
) % "|".join(VERBS)


def run(verb: str, context: Context) -> Report:
    """Return the verb's report; an AgentError and any other error become one."""
    module = VERBS[verb].module
    try:
        act = getattr(importlib.import_module("pretune.agent.%s" % module), module)
        report: Report = act(context)
        return report
    except AgentError as error:
        return Report(verb, error.reason, error.message)
    except Exception as error:  # the last place that can report it
        traceback.print_exc()
        return Report(verb, VERBS[verb].unexpected, "%s: %s" % (type(error).__name__, error))


def exit_code(report: Report) -> int:
    """Return 0 where the pod goes on. After seed it always does: its script ends with 0."""
    if report.by == "seed":
        return TOO_SLOW_EXIT_CODE if report.reason == CLAIM_TOO_SLOW else 0
    return 0 if report.reason in VERBS[report.by].success else 1


def main(argv: Optional[List[str]] = None) -> int:
    """Return the exit code, with the report in the termination log; 2 for wrong arguments.

    The options are for use by hand and in tests.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options: Dict[str, str] = {}
    verb = arguments.pop(0) if arguments else ""
    while len(arguments) >= 2 and arguments[0] in OPTIONS:
        name, value = arguments[:2]
        options[name], arguments = value, arguments[2:]
    if verb not in VERBS or arguments:
        print(USAGE, file=sys.stderr)
        return 2
    # TERM is an eviction's: clean up, and leave no report, since the attempt did not fail.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.umask(0o022)
    try:
        context = Context.from_environment(os.environ)
    except ValueError as error:
        report = Report(verb, VERBS[verb].unexpected, str(error))
    else:
        context.claim = options.get("--claim") or context.claim
        context.parts = options.get("--parts") or context.parts
        context.source = options.get("--source") or context.source
        context.proc = options.get("--proc") or context.proc
        context.limit_seconds = float(options.get("--limit") or context.limit_seconds)
        report = run(verb, context)
    print("pretune %s: %s: %s" % (verb, report.reason, report.message), flush=True)
    _write_termination_message(options.get("--termination-log") or TERMINATION_LOG, report)
    return exit_code(report)


def _write_termination_message(path: str, report: Report) -> None:
    # Inspect's report counts as one only with an answer: "no bundle" is not "could not look".
    is_answer = report.by != "inspect" or report.reason == INSPECTED
    text = report.dump() if is_answer else "%s: %s" % (report.reason, report.message[:500])
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        print("pretune: no termination message: %s" % error, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
