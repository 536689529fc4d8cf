"""A CUDA device that is not there: vLLM and torch are told of one, nothing is ever run on it."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

from .settings import Settings

COUNT = 8
_EXTENSIONS = ("vllm._C", "vllm._C_stable_libtorch", "vllm._moe_C", "vllm._moe_C_stable_libtorch")
_PACKAGES = (
    "vllm.vllm_flash_attn",
    "vllm.vllm_flash_attn.flash_attn_interface",
    "flashinfer.comm.fd_exchange",  # GPUs' memory between ranks; 0.6.16's cannot be imported by Python 3.11
)
_OPERATORS = ("_C", "_moe_C", "_C_cache_ops", "_vllm_fa3_C", "_vllm_fa2_C")


class Hollow(types.ModuleType):
    """A module all of whose functions do nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []  # a package: its modules may be imported too

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing


class Operator:
    """An operator with all its overloads, which does nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def __getattr__(self, name: str) -> Operator:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def pretend(settings: Settings) -> None:
    """Makes vLLM see `settings.gpu`. To be called before anything of vllm is imported."""
    for name in _EXTENSIONS:
        sys.modules.setdefault(name, types.ModuleType(name))
    for name in _PACKAGES:
        sys.modules.setdefault(name, Hollow(name))
    importlib.import_module(
        "flashinfer.autotuner"
    )  # looks for a device while it is imported, and must find none
    torch_sees(settings)
    _platform(settings)
    importlib.import_module(
        "vllm._custom_ops"
    )  # registers what the real extensions have, and must still see that they have nothing
    _operators()


def torch_sees(settings: Settings) -> None:
    """The device that FlashInfer finds through torch; may be called again for another one."""
    import torch

    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count = lambda: COUNT
    cuda.current_device = lambda: 0
    cuda.get_device_name = lambda device=None: settings.gpu
    cuda.get_device_capability = lambda device=None: (
        settings.capability
    )  # cuDNN's version is known only with one
    properties = _properties(settings)
    cuda.get_device_properties = lambda device=None: (
        properties
    )  # torch's own key of a system has the product's name
    cuda.is_current_stream_capturing = lambda: False
    cuda.empty_cache = _nothing
    cuda.synchronize = _nothing
    accelerator: Any = torch.accelerator
    accelerator.is_available = lambda: True
    accelerator.device_count = lambda: COUNT


def _properties(settings: Settings) -> types.SimpleNamespace:
    major, minor = settings.capability
    return types.SimpleNamespace(
        name=settings.gpu,
        major=major,
        minor=minor,
        total_memory=settings.memory_gib << 30,
        multi_processor_count=132,
        warp_size=32,
        is_integrated=False,
    )


def _platform(settings: Settings) -> None:
    import vllm.platforms
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    def answer(value: Any) -> Any:
        return classmethod(lambda cls, *args, **kwargs: value)

    answers = {
        "get_device_capability": DeviceCapability(*settings.capability),
        "get_device_name": settings.gpu,
        "get_device_uuid": "GPU-rehearsal",
        "get_device_total_memory": settings.memory_gib << 30,
        "get_cuda_driver_version": 13000,
        "is_fully_connected": True,
        "device_count": COUNT,
        "num_compute_units": 132,
        "log_warnings": None,
        # Of the ranks, only what the warm-up does with gloo is wanted: no NCCL.
        "get_device_communicator_cls": "vllm.distributed.device_communicators.base_device_communicator.DeviceCommunicatorBase",
    }
    platform = type(
        "RehearsalPlatform",
        (CudaPlatformBase,),
        {name: answer(value) for name, value in answers.items()},
    )
    vllm.platforms._current_platform = platform()


def _operators() -> None:
    """Operators of vLLM's C extensions exist and do nothing: some are looked up while modules are imported."""
    from torch import _ops

    namespace: Any = _ops._OpNamespace
    found = namespace.__getattr__

    def look_up(self: Any, name: str) -> Any:
        try:
            return found(self, name)
        except AttributeError:
            if self.name not in _OPERATORS or name.startswith("__"):
                raise
            return Operator()

    namespace.__getattr__ = look_up
