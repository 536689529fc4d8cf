"""GPU products by the name that the driver gives them."""

from __future__ import annotations

from typing import NamedTuple


class Gpu(NamedTuple):
    """`name` as `torch.cuda.get_device_name` says it, `capability` as ten times the compute capability (90 for 9.0)."""

    name: str
    capability: int

    @property
    def arch(self) -> str:
        """The last folder of the default root: FlashInfer's name of the architectures that it compiles for."""
        return f"{self.capability}a" if self.capability >= 90 else str(self.capability)

    @property
    def tunes(self) -> bool:
        """vLLM warms FlashInfer up from compute capability 9.0 on."""
        return self.capability >= 90


_CAPABILITY = (  # the first part of a product's name that fits decides
    ("A100", 80),
    ("A30", 80),
    ("A10", 86),
    ("L40", 89),
    ("L4", 89),
    ("T4", 75),
    ("GB300", 103),
    ("B300", 103),
    ("GB200", 100),
    ("B200", 100),
    ("RTX PRO 6000", 120),
)


def gpu(name: str) -> Gpu:
    """The product of this name; one that is not listed counts as Hopper (9.0)."""
    return Gpu(name, next((capability for part, capability in _CAPABILITY if part in name), 90))
