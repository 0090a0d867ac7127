"""Under which circumstances a number came about."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import dreambooth_ray

PACKAGES = (
    "torch", "diffusers", "transformers", "peft", "accelerate", "ray", "pytorch-lightning", "numpy",
)  # fmt: skip
VARIABLES = (
    "OMP_NUM_THREADS", "LD_PRELOAD", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_",
    "CUDA_VISIBLE_DEVICES",
)  # fmt: skip


def read_conditions() -> dict[str, Any]:
    """Versions, machine, threads, load and commit of this moment."""
    return {
        "versions": {"python": platform.python_version(), **_read_versions()},
        "device": read_device_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": read_load_average(),
        "environment": read_environment_variables(),
        **read_commit(),
    }


def read_load_average() -> list[float]:
    """Of the last 1, 5 and 15 minutes."""
    return [round(x, 2) for x in os.getloadavg()]


def read_environment_variables() -> dict[str, str]:
    """What is set of VARIABLES; of a library its name, not where this machine has it."""
    variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    if "LD_PRELOAD" in variables:
        variables["LD_PRELOAD"] = Path(variables["LD_PRELOAD"]).name
    return variables


def read_device_name() -> str:
    """The GPU's name, or the processor's."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    try:
        cpuinfo_lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    cpu_names = [
        line.partition(":")[2].strip() for line in cpuinfo_lines if line.startswith("model name")
    ]
    return cpu_names[0] if cpu_names else platform.machine()


def read_commit() -> dict[str, Any]:
    """The source's commit and whether it was changed since; the version alone outside git."""
    source_version: dict[str, Any] = {"version": dreambooth_ray.__version__}
    package_folder = Path(__file__).parent
    try:
        commit_hash = _run_git(package_folder, "rev-parse", "HEAD")
        source_version |= {
            "commit": commit_hash,
            "changed": bool(_run_git(package_folder, "status", "--porcelain", "-uno")),
        }
    except (OSError, subprocess.CalledProcessError):
        pass
    return source_version


def _run_git(folder: Path, *words: str) -> str:
    completed_process = subprocess.run(
        ["git", "-C", str(folder), *words], check=True, capture_output=True, text=True
    )
    return completed_process.stdout.strip()


def _read_versions() -> dict[str, str]:
    versions = {}
    for package_name in PACKAGES:
        try:
            versions[package_name] = version(package_name)
        except PackageNotFoundError:
            continue
    return versions
