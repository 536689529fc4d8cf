"""Delete bundles that are not needed any more, and their proof records.

It runs as the uid, gid and groups that wrote them.
"""

from __future__ import annotations

from pretune.agent.claim.bundles import is_bundle_id
from pretune.agent.claim.proof_records import remove_orphaned_proof_records
from pretune.agent.claim.staging import delete_atomically, remove_stale_staging
from pretune.agent.claim.store import create_store, explain_claim_errors, open_store
from pretune.agent.context import Context
from pretune.agent.errors import AgentError
from pretune.api import reasons
from pretune.protocol import PRUNED, Report


def prune(context: Context) -> Report:
    """Return the report Pruned; a bundle that is not there is fine. Raises AgentError, OSError.

    A pod that starts meanwhile finds a bundle whole, or not at all.
    """
    task, disk = context.task, context.disk
    for bundle_id in task.ids:
        if not is_bundle_id(bundle_id):
            raise AgentError(reasons.UNSAFE_PATH, "%r is not a bundle's id" % bundle_id)
    existing = open_store(context.claim, task.subPath, task.cache)
    if existing is None:  # and none is made
        return Report("prune", PRUNED, "the claim has no folder of %s" % task.cache)
    existing.close()
    with explain_claim_errors("cannot delete bundles"):
        with create_store(context.claim, task.subPath, task.cache, disk) as store:
            deleted = [name for name in task.ids if store.bundles.lstat(name) is not None]
            for name in deleted:
                delete_atomically(store, store.bundles, name, disk)
                context.log("deleted: %s" % name)
            disk.fsync(store.bundles.fd)
            # After their bundles: where there is a record, its bundle is there.
            remove_orphaned_proof_records(store, disk)
            remove_stale_staging(store, context.pod_uid, "", disk)
    return Report("prune", PRUNED, "%d deleted" % len(deleted))
