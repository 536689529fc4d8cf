"""Many rehearsals after one import of vLLM, which takes 12 of a rehearsal's 13 seconds.

usage: many_rehearsals.py FOLDER    FOLDER is images/rehearsal; started with the interpreter that has vLLM

Each line read is a JSON object, done in a process of its own, and answered with one JSON line:
{"words": […], "environ": {…}, "log": "path", "patience": seconds, "powerless": bool}    the exit status; -14 if patience ended
{"words": […], "environ": {…}, "key": true}    the name of the folder that vLLM makes for this configuration, or what it raised
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, sys.argv[1])

from rehearsal import cli, config, device, warmup
from rehearsal.settings import Settings, settings_of

_CAPSET, _CAPABILITY_VERSION = 126, 0x20080522  # x86-64; linux/capability.h


def forked(work: Callable[[], None], patience: int = 0) -> int:
    """The exit status of a process that does this; it is ended by SIGALRM after `patience` seconds."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        signal.alarm(patience)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def rehearse(words: list[str], environ: dict[str, str], log: str, powerless: bool) -> None:
    """One rehearsal; all that it says goes to `log`. Raises what vLLM raises."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if powerless:
        give_up_capabilities()
    _as_told(environ)
    cli.rehearse(words, settings_of(os.environ))


def key(words: list[str], environ: dict[str, str]) -> str:
    """What vLLM calls this configuration's folder. Raises what vLLM raises."""
    with tempfile.TemporaryDirectory() as folder:
        _as_told({**environ, "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR": folder})
        made = config.engine_config(config.parse(words))
        helpers = importlib.import_module("vllm.model_executor.warmup.flashinfer_autotune_cache")
        file: Path = helpers.resolve_flashinfer_autotune_file(SimpleNamespace(vllm_config=made))
        return file.parent.name


def _as_told(environ: dict[str, str]) -> None:
    os.environ.update(environ)
    settings = settings_of(os.environ)
    device.torch_sees(settings)
    _see_in_torch(settings)
    _see_in_vllm(settings)


def _see_in_torch(settings: Settings) -> None:
    """The GPU's name as torch's compiler asks for it: from 0.27 to 0.29 it is in vLLM's key. It remembers the answer."""
    if _asks_torch_for_the_gpu():
        import torch
        from torch._inductor.codecache import CacheBase

        cuda: Any = torch.cuda
        cuda.get_device_properties = lambda device=None: SimpleNamespace(name=settings.gpu)
        CacheBase.get_system.cache_clear()


def _asks_torch_for_the_gpu() -> bool:
    return tuple(int(part) for part in version("vllm").split(".")[:2]) < (0, 30)


def _see_in_vllm(settings: Settings) -> None:
    """vLLM's modules hold the platform that was there when they were imported: it is changed, not replaced."""
    from vllm.platforms import current_platform
    from vllm.platforms.interface import DeviceCapability

    answers = {
        "get_device_capability": DeviceCapability(*settings.capability),
        "get_device_name": settings.gpu,
        "get_device_total_memory": settings.memory_gib << 30,
    }
    for name, answer in answers.items():
        setattr(
            type(current_platform),
            name,
            classmethod(lambda cls, *args, answer=answer, **kwargs: answer),
        )


def give_up_capabilities() -> None:
    """Root that cannot read what belongs to others: as an engine whose uid is another than that of the files."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    none = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).syscall(_CAPSET, ctypes.byref(header), ctypes.byref(none)):
        raise OSError(ctypes.get_errno(), "capset")


def answer(request: dict[str, Any]) -> Any:
    """See the module's text."""
    words, environ = request["words"], request["environ"]
    if "log" in request:
        log, powerless = request["log"], request["powerless"]
        return forked(lambda: rehearse(words, environ, log, powerless), request["patience"])
    reading, writing = os.pipe()
    with os.fdopen(reading) as said:
        status = forked(lambda: _written(writing, key(words, environ)))
        os.close(writing)
        return said.read() if status == 0 else None


def _written(handle: int, text: str) -> None:
    os.write(handle, text.encode())


def main() -> None:
    """Answers go to what was stdout at the start; all else that is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    cli.load(settings_of(os.environ))
    config.engine_config(
        config.parse([f"{sys.argv[1]}/tiny-model"])
    )  # imports what the first config imports
    warmup.kernel_warmup_module()
    importlib.import_module("vllm.model_executor.kernels.linear")  # imported by the first warm-up
    importlib.import_module("flashinfer.autotuner")
    tuner = sys.modules.get("flashinfer.autotuner.autotuner") or sys.modules["flashinfer.autotuner"]
    tuner._collect_metadata()  # looks for libraries, once in a process
    if _asks_torch_for_the_gpu():
        importlib.import_module("torch._inductor.codecache")
    gc.collect()
    gc.freeze()  # or each child would copy all that it looks through
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


main()
