"""Which GPUs this machine has, and how much of their memory a training may use."""

import os
import re
import shutil
import subprocess

# CUDA and its libraries hold some hundred MiB that no allocator counts. Assumed, not measured.
RESERVED_BYTES = 600 * 2**20
_TIMEOUT_S = 30.0
# A line of `nvidia-smi -L`: "  MIG 3g.20gb     Device  0: (UUID: MIG-c7384736-...)".
_GPU_INSTANCE = re.compile(r"MIG \d+g\.(\d+)gb\S*\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)")


def list_gpu_total_bytes() -> list[int]:
    """Bytes of each GPU that processes of this one may use; empty where there is none.

    The driver's own tool is asked: torch would take memory of the GPU to tell how much there is.
    """
    visible_devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible_gpu_names = (
        None if visible_devices is None else [name.strip() for name in visible_devices.split(",")]
    )
    mig_instance_names = [name for name in visible_gpu_names or [] if name.startswith("MIG-")]
    if mig_instance_names:
        return _read_instance_memory(mig_instance_names)
    nvidia_smi_output = _run_nvidia_smi(
        "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"
    )
    gpu_rows = [
        [cell.strip() for cell in line.split(",")] for line in nvidia_smi_output.splitlines()
    ]
    return [
        int(mebibytes) * 2**20
        for index, uuid, mebibytes in (row for row in gpu_rows if len(row) == 3)
        # Some devices do not tell: "[N/A]".
        if mebibytes.isdigit()
        and (
            visible_gpu_names is None
            or index in visible_gpu_names
            or _is_uuid_visible(uuid, visible_gpu_names)
        )
    ]


def _run_nvidia_smi(*options: str) -> str:
    """What it prints; nothing where there is none, or it fails."""
    nvidia_smi_path = shutil.which("nvidia-smi")
    if nvidia_smi_path is None:
        return ""
    try:
        return subprocess.run(
            [nvidia_smi_path, *options],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _read_instance_memory(mig_instance_names: list[str]) -> list[int]:
    """Of parts of a GPU (MIG): their profile names GB, `3g.20gb`, and they have no less."""
    return [
        int(gigabytes) * 10**9
        for gigabytes, uuid in _GPU_INSTANCE.findall(_run_nvidia_smi("-L"))
        if any(uuid.startswith(name) for name in mig_instance_names)
    ]


def _is_uuid_visible(uuid: str, names: list[str]) -> bool:
    """Whether one of `names` is the beginning of a device's name, as CUDA reads them."""
    return any(uuid.startswith(name) for name in names if name.startswith("GPU-"))


def usable_bytes(total_bytes: int, *, is_gpu: bool) -> int:
    """What a worker's step may take of a device."""
    return max(0, total_bytes - RESERVED_BYTES) if is_gpu else total_bytes
