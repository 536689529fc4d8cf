"""Check what the engine wrote, and publish it as a bundle."""

from __future__ import annotations

from pretune.agent.claim.fs import Problem, open_root
from pretune.agent.claim.proof_records import proven
from pretune.agent.claim.publish import put
from pretune.agent.claim.store import make_store, on_claim
from pretune.agent.context import Context
from pretune.agent.engine.stable import ask_engine, judge, look, quiet, same_tactics
from pretune.protocol import Report


def seal(context: Context) -> Report:
    """Sealed, or NothingToTune. Raises Problem, with nothing published: see reasons.REASONS, "attempts that failed".

    The engine is asked before and after its files are read and staged, and its folder is looked at again: an engine that died or still
    writes is found before the rename, since nothing can be taken back after it. The controller takes the report only when the engine
    did not restart.
    """
    task, say = context.task, context.say
    with open_root(context.tactics) as folder:
        ask_engine(context, "before its files were read")
        seen = quiet(folder, context)
        say("engine: ready, %d files in %d folders" % (len(seen.files), len(seen.folders)))
        found, digests = judge(folder, seen, context)
        say("tactics: %s: %s" % (found.layout, found.message()))

        def still() -> None:
            if not same_tactics(look(folder), seen):
                raise Problem("EngineNotReady", "the engine is ready and still writes its tactics")
            ask_engine(context, "after its files were read")

        with on_claim("cannot publish to the claim"):
            with make_store(context.claim, task.subPath, task.cache, context.disk) as store:
                bundle = put(store, folder, seen, found, digests, context, still)
                report = bundle.report(
                    "seal", proven(store, bundle)
                )  # the one that was there already may be
    say("bundle: %s is on the claim, %s" % (bundle.manifest.id, bundle.digest))
    return report
