"""Which GPUs this machine has, and how much of their memory a training may use."""

import os
import shutil
import subprocess

# CUDA and its libraries hold some hundred MiB that no allocator counts. Assumed, not measured.
RESERVED_BYTES = 600 * 2**20
_TIMEOUT_S = 30.0


def read_gpu_memory() -> list[int]:
    """Bytes of each GPU that processes of this one may use; empty where there is none.

    The driver's own tool is asked: torch would take memory of the GPU to tell how much there is.
    """
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return []
    query_command = [
        nvidia_smi,
        "--query-gpu=index,uuid,memory.total",
        "--format=csv,noheader,nounits",
    ]
    try:
        result = subprocess.run(
            query_command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in result.stdout.splitlines()]
    visible_devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible_names = (
        None if visible_devices is None else [name.strip() for name in visible_devices.split(",")]
    )
    return [
        int(mebibytes) * 2**20
        for index, uuid, mebibytes in (row for row in rows if len(row) == 3)
        # Some devices do not tell: "[N/A]".
        if mebibytes.isdigit()
        and (
            visible_names is None or index in visible_names or _is_uuid_visible(uuid, visible_names)
        )
    ]


def _is_uuid_visible(uuid: str, names: list[str]) -> bool:
    """Whether one of `names` is the beginning of a device's name, as CUDA reads them."""
    return any(uuid.startswith(name) for name in names if name.startswith("GPU-"))


def usable_bytes(total_bytes: int, *, is_gpu: bool) -> int:
    """What a worker's step may take of a device."""
    return max(0, total_bytes - RESERVED_BYTES) if is_gpu else total_bytes
