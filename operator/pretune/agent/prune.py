"""Remove bundles that nobody needs any more, and their proofs. Runs as the uid, gid and groups that wrote them."""

from __future__ import annotations

from pretune.agent.claim.fs import Problem
from pretune.agent.claim.proof_records import sweep_proofs
from pretune.agent.claim.store import discard, is_id, make_store, on_claim, open_store, sweep
from pretune.agent.context import Context
from pretune.protocol import Report


def prune(context: Context) -> Report:
    """Pruned; a bundle that is not there is fine. Raises Problem, OSError.

    A bundle is renamed out of sight first: a pod that starts meanwhile finds it whole, or not at all.
    """
    task = context.task
    for name in task.ids:
        if not is_id(name):
            raise Problem("UnsafePath", "%r is no bundle's id" % name)
    there = open_store(context.claim, task.subPath, task.cache)
    if there is None:  # and none is made
        return Report("prune", "Pruned", "the claim has no folder of %s" % task.cache)
    there.close()
    with on_claim("cannot remove bundles"):
        with make_store(context.claim, task.subPath, task.cache, context.disk) as store:
            gone = [name for name in task.ids if store.bundles.lstat(name) is not None]
            for name in gone:
                discard(store, store.bundles, name, context.disk)
                context.say("removed: %s" % name)
            context.disk.fsync(store.bundles.fd)
            sweep_proofs(store, context.disk)  # after their bundles: what is proven is there
            sweep(store, context.pod, "", context.disk)
    return Report("prune", "Pruned", "%d removed" % len(gone))
