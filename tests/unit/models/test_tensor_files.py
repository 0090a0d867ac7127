import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.models.tensor_files import (
    TensorSource,
    VerifiedTensors,
    choose_tensor_sources,
    open_tensors,
    write_tensors,
)

TENSORS = {
    "b.weight": torch.arange(12.0).reshape(3, 4),
    "a.weight": torch.arange(6.0).reshape(2, 3).half(),
    "c.ids": torch.arange(5),
    "d": torch.tensor(7.0).bfloat16(),
    "ä": torch.zeros(0, 3),
    "e": torch.ones(3, dtype=torch.bool),
    "f": torch.ones(3, dtype=torch.float64),
    "g": torch.ones(3, dtype=torch.int32),
    "h": torch.ones(3, dtype=torch.uint8),
}  # fmt: skip


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_file_is_byte_for_byte_safetensors_own(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    save_file(TENSORS, tmp_path / "theirs", metadata=metadata)
    write_tensors(tmp_path / "ours", choose_tensor_sources(TENSORS), metadata)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_what_is_written_is_read_back_one_by_one(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", choose_tensor_sources(TENSORS))
    tensors = open_tensors(tmp_path / "file")
    assert set(tensors) == set(TENSORS)
    assert len(tensors) == len(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)
    with pytest.raises(KeyError):
        tensors["none"]


def test_a_file_is_hashed_as_its_tensors_are_read(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", choose_tensor_sources(TENSORS), {"format": "pt"})
    digest = hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    tensors = VerifiedTensors(tmp_path / "file", digest)
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():  # in another order than the file's
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    tensors.verify()
    tensors.close()


def test_tensors_come_from_the_first_mapping_that_has_them(tmp_path: Path) -> None:
    shapes = {name: torch.zeros(2) for name in "abc"}
    first, second = {"a": torch.ones(2)}, {"a": torch.zeros(2), "b": torch.full((2,), 5.0)}
    sources = choose_tensor_sources(shapes, first, second)
    halves = {name: source.as_type(torch.float16) for name, source in sources.items()}
    write_tensors(tmp_path / "file", halves)
    loaded = load_file(tmp_path / "file")
    assert {n: (t.dtype, t.tolist()) for n, t in loaded.items()} == {
        "a": (torch.float16, [1, 1]), "b": (torch.float16, [5, 5]), "c": (torch.float16, [0, 0]),
    }  # fmt: skip


def test_tensors_that_are_not_contiguous_are_written_as_they_are_seen(tmp_path: Path) -> None:
    image = torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    write_tensors(tmp_path / "file", {"a": TensorSource.of(image), "t": TensorSource.of(image.mT)})
    loaded = load_file(tmp_path / "file")
    assert torch.equal(loaded["a"], image)
    assert torch.equal(loaded["t"], image.mT)


def test_another_shape_is_refused(tmp_path: Path) -> None:
    sources = choose_tensor_sources({"a": torch.zeros(2)}, {"a": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"a has the shape \(3,\)"):
        write_tensors(tmp_path / "file", sources)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no such thing")
    with pytest.raises(CheckpointError, match="no safetensors file"):
        open_tensors(tmp_path / "file")
