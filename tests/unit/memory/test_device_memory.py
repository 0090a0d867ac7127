from pathlib import Path

import pytest

from dreambooth_ray.memory.device_memory import RESERVED_BYTES, list_gpu_total_bytes, usable_bytes
from tests.nvidia_smi import install_nvidia_smi

CARDS = ("0, GPU-aa11, 24576", "1, GPU-bb22, 8192", "2, GPU-cc33, [N/A]")
MIB = 2**20


def test_cards_are_read_from_the_drivers_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nvidia_smi(tmp_path / "bin", monkeypatch, *CARDS)
    assert list_gpu_total_bytes() == [24576 * MIB, 8192 * MIB]


@pytest.mark.parametrize(
    ("visible", "mebibytes"),
    [("1", [8192]), ("GPU-aa", [24576]), ("1,0", [24576, 8192]), ("", []), ("NoDevFiles", [])],
)
def test_cards_that_are_hidden_do_not_count(
    visible: str, mebibytes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nvidia_smi(tmp_path / "bin", monkeypatch, *CARDS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert list_gpu_total_bytes() == [size * MIB for size in mebibytes]


# `nvidia-smi -L` on a card that is cut into instances, after NVIDIA's guide to MIG.
INSTANCES = (
    "GPU 0: A100-SXM4-40GB (UUID: GPU-e86cb44c)",
    "  MIG 3g.20gb     Device  0: (UUID: MIG-c7384736)",
    "  MIG 1g.5gb+me   Device  1: (UUID: MIG-a28ad590)",
)


@pytest.mark.parametrize(
    ("visible", "gigabytes"),
    [("MIG-c7384736", [20]), ("MIG-a28ad590", [5]), ("MIG-c,MIG-a", [20, 5]), ("MIG-0", [])],
)
def test_an_instance_of_a_card_has_the_memory_of_its_profile(
    visible: str, gigabytes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nvidia_smi(tmp_path / "bin", monkeypatch, *INSTANCES)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert list_gpu_total_bytes() == [size * 10**9 for size in gigabytes]


def test_no_tool_and_a_tool_that_fails_are_no_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nvidia_smi(tmp_path / "bin", monkeypatch)
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho no driver\nexit 9\n")
    assert list_gpu_total_bytes() == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_gpu_total_bytes() == []


def test_cudas_own_share_is_left_out() -> None:
    assert usable_bytes(2**33, is_gpu=True) == 2**33 - RESERVED_BYTES
    assert usable_bytes(2**33, is_gpu=False) == 2**33
    assert usable_bytes(1, is_gpu=True) == 0
