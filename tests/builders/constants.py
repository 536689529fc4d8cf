"""Names and times that all builders share."""

from __future__ import annotations

from pretune.api.spec import Target
from pretune.api.types import Key
from pretune.config import Settings

NOW = 1_790_000_000.0  # Unix seconds
KEY = Key("inference", "qwen3")
SETTINGS = Settings(
    operator_image="registry/pretune:1",
    priority_class="pretune-tuning",
    operator_pull_secrets=("pull",),
)
AGENT = "pretune-agent-0123456789ab"
ENGINE = "vllm"  # the container's name
DEFAULT = Target()
FINGERPRINT = "f" * 64
