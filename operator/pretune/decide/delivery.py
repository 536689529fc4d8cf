"""What a consumer that is being made is given: nothing, the bundle read-only, or a copy of it; now, or when it is sealed. Pure."""

from __future__ import annotations

from pretune.api import Object, Refused
from pretune.manifests.pod import Delivery


def delivery(
    namespace: str, cache: Object | None, pod: Object, template: Object | Refused, owner: str, alive: bool, agent: str
) -> Delivery:
    """The answer to one pod of a CREATE request.

    cache: as last seen; None: there is none of that name. template: as its author wrote it (model.Origin.template; the pod itself
    where it has no readable owner kind). owner: the controlling owner's kind, "" for a bare pod. alive: the controller's lease was
    renewed within 15 s. agent: the agent ConfigMap's name.
    """
    raise NotImplementedError
