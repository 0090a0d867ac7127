from pathlib import Path

import pytest
import torch

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import CapacityError
from dreambooth_ray.memory.out_of_memory import explain_out_of_memory, is_out_of_memory

CONFIG = parse_config("subject: {photos: p, class_noun: robot}", "x",
                      ["train.resolution=64", "cluster.gpus=true"])  # fmt: skip


def test_torchs_words_for_no_memory_are_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_out_of_memory_says_what_would_fit(tiny_model: Path) -> None:
    with (
        pytest.raises(CapacityError, match=r"ran out of memory \(CUDA out of memory. Tried") as e,
        explain_out_of_memory(CONFIG, tiny_model),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee more")
    message = str(e.value)
    assert "GiB were predicted; it would need" in message
    assert "with train.precision=bf16-mixed" in message
    assert "\n" not in message


def test_other_errors_pass(tiny_model: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(CONFIG, tiny_model):
        raise RuntimeError("shapes differ")
