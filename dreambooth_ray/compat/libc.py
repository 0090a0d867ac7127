"""glibc's allocator, beside what Python knows of it."""

import ctypes


def release_freed_memory() -> bool:
    """Give memory that was freed back to the system; whether this C library can.

    It keeps much of it for later, as long as the process lives: with tensors of tens of megabytes
    that is as much as a model's text encoder.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return malloc_trim is not None and bool(malloc_trim(0) in (0, 1))
