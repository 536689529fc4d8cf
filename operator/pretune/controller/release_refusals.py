"""What the API server refused to release, as far as this process has seen it.

Lost with the process: after a restart the same patches are refused again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pretune.api.types import Key
from pretune.kube.types import REFUSAL_CODES, ApiError
from pretune.policy.model import Patch, ReleaseRefusal


class ReleaseRefusals:
    """The refusals of each key, by the uid of the held pod."""

    def __init__(self) -> None:
        self._refusals: dict[Key, Mapping[str, ReleaseRefusal]] = {}

    def of(self, key: Key) -> Mapping[str, ReleaseRefusal]:
        """Return the refusals of a key."""
        return self._refusals.get(key, {})

    def record(
        self, key: Key, releases: Iterable[Patch], errors: Mapping[str, Exception], now: float
    ) -> None:
        """Count the refusals among these releases of a key.

        errors: by the action's name. now: Unix seconds, by the API server's clock.

        A timeout counts too: the API server may wait for a webhook that does not answer. A pod that
        is not among the releases is gone, released, or need not be released any more.
        """
        before, after = self.of(key), {}
        # Then some releases were not tried.
        has_stopped = any(not isinstance(error, ApiError) for error in errors.values())
        for release in releases:
            uid, error = release.object["metadata"]["uid"], errors.get(release.name)
            known = before.get(uid, ReleaseRefusal(0, "", now, now))
            if _is_refusal(error):
                message = str(error) or "no answer"
                after[uid] = ReleaseRefusal(known.count + 1, message, known.first_at, now)
            elif known.count and (error is not None or has_stopped):
                after[uid] = known
        self._refusals.pop(key, None)
        if after:
            self._refusals[key] = after


def _is_refusal(error: Exception | None) -> bool:
    if isinstance(error, ApiError):
        return error.code in REFUSAL_CODES
    return isinstance(error, TimeoutError)
