"""Check what the engine wrote, and publish it as a bundle."""

from __future__ import annotations

from pretune.agent.claim.fs import open_root
from pretune.agent.claim.proof_records import has_proof_record
from pretune.agent.claim.publish import publish_bundle
from pretune.agent.claim.store import create_store, explain_claim_errors
from pretune.agent.context import Context
from pretune.agent.engine.stable import ask_engine, judge, look, quiet, same_tactics
from pretune.agent.errors import AgentError
from pretune.api import reasons
from pretune.protocol import Report


def seal(context: Context) -> Report:
    """Sealed, or NothingToTune. Raises AgentError, with nothing published: see reasons.REASONS, "attempts that failed".

    The engine is asked before and after its files are read and staged, and its folder is looked at again: an engine that died or still
    writes is found before the rename, since nothing can be taken back after it. The controller takes the report only when the engine
    did not restart.
    """
    task, log = context.task, context.log
    with open_root(context.tactics) as folder:
        ask_engine(context, "before its files were read")
        seen = quiet(folder, context)
        log("engine: ready, %d files in %d folders" % (len(seen.files), len(seen.folders)))
        found, digests = judge(folder, seen, context)
        log("tactics: %s: %s" % (found.layout, found.message()))

        def still() -> None:
            if not same_tactics(look(folder), seen):
                raise AgentError(
                    reasons.ENGINE_NOT_READY, "the engine is ready and still writes its tactics"
                )
            ask_engine(context, "after its files were read")

        with explain_claim_errors("cannot publish to the claim"):
            with create_store(context.claim, task.subPath, task.cache, context.disk) as store:
                bundle = publish_bundle(store, folder, seen, found, digests, context, still)
                report = bundle.report(
                    "seal", has_proof_record(store, bundle)
                )  # the one that was there already may be
    log("bundle: %s is on the claim, %s" % (bundle.manifest.id, bundle.digest))
    return report
