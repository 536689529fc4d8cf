"""Times: as the Kubernetes API writes them, and in Unix seconds."""

from __future__ import annotations

from datetime import UTC, datetime


def format_timestamp(unix_seconds: float) -> str:
    """Return a time as the API writes it: RFC 3339, UTC, whole seconds."""
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> float:
    """Return a time of the API, with or without fractions of a second, in Unix seconds."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
