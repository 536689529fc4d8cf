"""Check what the engine wrote, and publish it as a bundle."""

from __future__ import annotations

from contextlib import ExitStack

from pretune.agent.claim.fs import open_root
from pretune.agent.claim.proof_records import has_proof_record
from pretune.agent.claim.publish import publish_bundle
from pretune.agent.claim.store import create_store, explain_claim_errors
from pretune.agent.context import Context
from pretune.agent.engine.stable import (
    PartContent,
    ask_engine,
    await_answer,
    is_same,
    judge,
    scan_or_none,
    wait_until_stable,
)
from pretune.agent.errors import AgentError
from pretune.api import reasons
from pretune.engines.base import Part
from pretune.protocol import EMPTY, Report

_UNKNOWN = (
    "the engine wrote nothing, and whether it is ready is unknown: its readiness probe is not an"
    " httpGet, and it does not answer as ready at %s; give it an httpGet readiness probe, and the"
    " cache's annotation pretune.dev/retry another value"
)


def seal(context: Context) -> Report:
    """Return the report Sealed or NothingToTune.

    The engine is asked before and after its files are read and staged, and its folders are
    scanned again: an engine that died or still writes is found before the rename, which cannot be
    undone. The controller takes the report only when the engine did not restart. That nothing was
    written counts only where the engine itself has answered over HTTP: a probe of a port, or a
    program, may pass before the engine is loaded.

    Raises AgentError with nothing published: see api/reasons.py, "attempts that failed".
    """
    context = await_answer(context)
    task, log = context.task, context.log
    with ExitStack() as stack:
        ask_engine(context, "before its files were read")
        contents = [_read_part(part, context, stack) for part in context.engine.parts]
        if task.ready is None and all(each.evidence.layout == EMPTY for each in contents):
            raise AgentError(reasons.READINESS_UNKNOWN, _UNKNOWN % (", ".join(task.health) or "-"))

        def verify_unchanged() -> None:
            for content in contents:
                if not is_same(content.part, scan_or_none(content.folder), content.scan):
                    raise AgentError(
                        reasons.ENGINE_NOT_READY,
                        "the engine is ready and still writes its %s" % content.part.name,
                    )
            ask_engine(context, "after its files were read")

        stack.enter_context(explain_claim_errors("cannot publish to the claim"))
        store = create_store(context.claim, task.subPath, task.cache, context.disk)
        stack.enter_context(store)
        bundle = publish_bundle(store, contents, context, verify_unchanged)
        # A bundle that was there already may have its proof.
        report = bundle.report("seal", has_proof_record(store, bundle))
    log("bundle: %s is on the claim, %s" % (bundle.manifest.id, bundle.digest))
    return report


def _read_part(part: Part, context: Context, stack: ExitStack) -> PartContent:
    folder = stack.enter_context(open_root(context.folder(part)))
    scan = wait_until_stable(part, folder, context)
    context.log("engine: ready, %d files in %d folders" % (len(scan.files), len(scan.folders)))
    content = judge(part, folder, scan, context)
    evidence = content.evidence
    context.log("%s: %s: %s" % (part.name, evidence.layout, evidence.message()))
    return content
