"""What a device can tell of itself: time, memory, waits of the host."""

import gc
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Dense products a second, by the makers' data sheets (SXM): bfloat16, and float32 in TF32.
_PEAK_FLOPS = {"H100": (989e12, 494e12), "H200": (989e12, 494e12), "A100": (312e12, 156e12)}
_WAIT = re.compile("called a synchronizing CUDA operation")


def wait_for_device(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Give back what nobody holds, and start to count the peak anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def reset_peak(device: torch.device) -> None:
    """Count the peak anew: what was needed only to make a model is not a step's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def read_peak(device: torch.device) -> dict[str, int | None]:
    """The most bytes that were in use, and that torch held, since `reset_peak` or `free_memory`."""
    if device.type != "cuda":
        return {"allocated_bytes": None, "reserved_bytes": None}
    return {
        "allocated_bytes": torch.cuda.max_memory_allocated(device),
        "reserved_bytes": torch.cuda.max_memory_reserved(device),
    }


def time_work(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds a call, the mean of `repeats`, from a quiet device to a quiet device."""
    wait_for_device(device)
    start_s = time.perf_counter()
    for _ in range(repeats):
        work()
    wait_for_device(device)
    return (time.perf_counter() - start_s) / repeats


def compute_utilisation(flops: int, seconds: float, is_half: bool) -> float | None:
    """Share of the device's peak that `flops` in so many seconds are; None if it isn't known."""
    if not torch.cuda.is_available():
        return None
    gpu_name = torch.cuda.get_device_name()
    peak_flops = next((p for known, p in _PEAK_FLOPS.items() if known in gpu_name), None)
    return (
        None if peak_flops is None else round(flops / seconds / peak_flops[0 if is_half else 1], 4)
    )


@contextmanager
def count_host_waits(device: torch.device) -> Iterator[Counter[str]]:
    """Counts operations in which the host waits for the device, by the line that called them."""
    waits_by_line: Counter[str] = Counter()
    if device.type != "cuda":
        yield waits_by_line
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught_warnings:
            warnings.simplefilter("always")
            yield waits_by_line
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for caught_warning in caught_warnings:
        if _WAIT.search(str(caught_warning.message)):
            waits_by_line[
                "/".join(caught_warning.filename.split("/")[-3:]) + f":{caught_warning.lineno}"
            ] += 1


def measure_or_record_error(
    case: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """A case's record; one that fails is a record of its error, and the others go on."""
    start_s = time.perf_counter()
    try:
        record = {**case, **measure()}
    except Exception as error:  # said in the record
        error_lines = str(error).strip().splitlines() or [""]
        record = {**case, "error": f"{type(error).__name__}: {error_lines[0][:300]}"}
    return {**record, "took_s": round(time.perf_counter() - start_s, 1)}
