"""Times of the Kubernetes API and Unix seconds."""

from __future__ import annotations

from datetime import UTC, datetime


def stamp(now: float) -> str:
    """Unix seconds as the API writes times: RFC 3339, UTC, whole seconds."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(text: str) -> float:
    """A time of the API (with or without fractions) in Unix seconds."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
