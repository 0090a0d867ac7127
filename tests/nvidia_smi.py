"""A stand-in for NVIDIA's tool, which tells of GPUs that a test wants."""

import os
from pathlib import Path

import pytest


def install_nvidia_smi(folder: Path, patch: pytest.MonkeyPatch, *lines: str) -> None:
    """An `nvidia-smi` on PATH that prints `lines`: index, uuid, MiB."""
    folder.mkdir(exist_ok=True)
    tool = folder / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    tool.chmod(0o755)
    patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
