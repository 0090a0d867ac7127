"""Importing large libraries where a process is waited for."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def large_imports() -> Iterator[None]:
    """Nobody looks for garbage inside, nor afterwards among what was there by the end.

    Imports leave next to none, and a quarter of the time that a training worker takes to import
    torch, Lightning and diffusers goes into looking for it. For processes of our own: whatever they
    hold at the end stays.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()
