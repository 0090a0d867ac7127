from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed import checkpoint as dcp

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.fence import CheckpointId
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint import convert
from dreambooth_ray.training.checkpoint.convert import load_trained_weights, verified_weights
from dreambooth_ray.training.checkpoint.download import (
    STATE,
    CheckpointFiles,
    download_newest_checkpoint,
    download_weight_files,
)
from dreambooth_ray.training.strategy import DirectCheckpointIO

WEIGHTS = {
    "unet.b.weight": torch.arange(6.0).reshape(2, 3),
    "unet.a.weight": torch.arange(4.0),
    "text_encoder.c": torch.ones(3),
}


def state_of(weights: dict[str, torch.Tensor], **more: object) -> dict[str, object]:
    moments = {k: {"exp_avg": torch.zeros_like(w)} for k, w in enumerate(weights.values())}
    return {"state_dict": weights, "optimizer_states": [{"state": moments}], **more}


def assert_same(state: Path, factor: float = 1.0) -> None:
    assert_same_parts(load_trained_weights(state), factor)


def assert_same_parts(parts: Mapping[str, Mapping[str, torch.Tensor]], factor: float = 1.0) -> None:
    assert {part: set(weights) for part, weights in parts.items()} == {
        "unet": {"a.weight", "b.weight"}, "text_encoder": {"c"},
    }  # fmt: skip
    for name, weight in WEIGHTS.items():
        part, _, own_name = name.partition(".")
        assert torch.equal(parts[part][own_name], weight * factor)


def test_weights_are_in_a_file_of_their_own(tmp_path: Path) -> None:
    DirectCheckpointIO().save_checkpoint(state_of(WEIGHTS, global_step=7), tmp_path / STATE)
    assert_same(tmp_path / STATE)
    loaded = DirectCheckpointIO().load_checkpoint(tmp_path / STATE, weights_only=True)
    assert loaded["global_step"] == 7
    assert set(loaded["state_dict"]) == set(WEIGHTS)
    assert torch.equal(loaded["state_dict"]["text_encoder.c"], torch.ones(3))
    # The rest is there for the optimizer alone.
    assert "state_dict" not in torch.load(tmp_path / STATE, weights_only=True)


def test_averaged_weights_go_first(tmp_path: Path) -> None:
    state = state_of(WEIGHTS, average={name: w * 2 for name, w in WEIGHTS.items()})
    DirectCheckpointIO().save_checkpoint(state, tmp_path / STATE)
    assert_same(tmp_path / STATE, 2.0)
    loaded = DirectCheckpointIO().load_checkpoint(tmp_path / STATE, weights_only=True)
    assert torch.equal(loaded["average"]["unet.a.weight"], WEIGHTS["unet.a.weight"] * 2)


@pytest.mark.parametrize("more", [{}, {"average": {n: w * 2 for n, w in WEIGHTS.items()}}])
def test_a_state_in_one_file_is_read_too(tmp_path: Path, more: dict[str, object]) -> None:
    """As earlier versions saved it."""
    torch.save(state_of(WEIGHTS, **more), tmp_path / STATE)
    assert_same(tmp_path / STATE, 2.0 if more else 1.0)
    loaded = DirectCheckpointIO().load_checkpoint(tmp_path / STATE, weights_only=True)
    assert torch.equal(loaded["state_dict"]["text_encoder.c"], torch.ones(3))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_shards_are_put_together_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dcp.save(
        {"state_dict": WEIGHTS, "optimizer_0": {"state": {"exp_avg": torch.zeros(2)}}},
        checkpoint_id=tmp_path / STATE,
        no_dist=True,
    )
    assert not distributed.is_initialized()
    for batch_bytes in (2**28, 1):
        monkeypatch.setattr(convert, "_BATCH_BYTES", batch_bytes)
        assert_same(tmp_path / STATE)


def test_an_unknown_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / STATE).mkdir()
    with pytest.raises(CheckpointError, match="no training state"):
        load_trained_weights(tmp_path / STATE)


def commit(run: Store, local: Path) -> None:
    DirectCheckpointIO().save_checkpoint(state_of(WEIGHTS), local / STATE)
    manifest.commit_artifact(run, paths.checkpoint(3), local, {"step": 3})


def test_of_a_stored_checkpoint_the_weights_alone_are_fetched(tmp_path: Path) -> None:
    run = Store(f"memory://{tmp_path.name}")
    commit(run, tmp_path / "in")
    with verified_weights(download_weight_files(run, CheckpointId(3), tmp_path / "out")) as parts:
        assert_same_parts(parts)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["state_dict.safetensors"]


def test_in_a_folder_of_this_machine_it_is_read_where_it_lies(tmp_path: Path) -> None:
    run = Store(str(tmp_path / "run"))
    commit(run, tmp_path / "in")
    files = download_weight_files(run, CheckpointId(3), tmp_path / "out")
    restored = download_newest_checkpoint(run, tmp_path / "out")
    assert restored is not None
    assert restored.state == files.state
    assert files.state.is_relative_to(tmp_path / "run")
    assert not (tmp_path / "out").exists()
    with verified_weights(files) as parts:
        assert_same_parts(parts)


def change_byte(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def read_all(files: CheckpointFiles) -> None:
    with verified_weights(files) as parts:
        for weights in parts.values():
            dict(weights)


def read_none(files: CheckpointFiles) -> None:
    with verified_weights(files):
        pass


@pytest.mark.parametrize("read", [read_all, read_none])
# In the header's length, a name, an offset, its padding, and the first and last of the numbers.
@pytest.mark.parametrize("offset", [0, 7, 12, 66, 200, -52, -1])
def test_damage_to_the_weights_is_found_where_they_lie(
    tmp_path: Path, offset: int, read: Callable[[CheckpointFiles], None]
) -> None:
    run = Store(str(tmp_path / "run"))
    commit(run, tmp_path / "in")
    files = download_weight_files(run, CheckpointId(3), tmp_path / "out")
    change_byte(files.state.with_name("state_dict.safetensors"), offset)
    files = download_weight_files(run, CheckpointId(3), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"damaged|no safetensors file"):
        read(files)


@pytest.mark.parametrize("uri", ["{}", "memory:/{}"])
@pytest.mark.parametrize("name", [STATE, "state_dict.safetensors"])
def test_a_file_gone_or_cut_off_is_found_whether_it_is_read_or_not(
    tmp_path: Path, uri: str, name: str
) -> None:
    run = Store(uri.format(tmp_path / "run"))
    commit(run, tmp_path / "in")
    file = f"{manifest.find_artifact_folder(run, paths.checkpoint(3))}/{name}"
    run.write(file, run.read(file)[:-1])
    with pytest.raises(CheckpointError, match=f"{name} differs from its manifest"):
        download_weight_files(run, CheckpointId(3), tmp_path / "out")
    run.remove(file)
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        download_weight_files(run, CheckpointId(3), tmp_path / "out")


def test_a_state_that_a_library_reads_is_verified_before(tmp_path: Path) -> None:
    """Of an earlier version, or in shards: weights and optimizer are in the same files."""
    run = Store(str(tmp_path / "run"))
    (tmp_path / "in").mkdir()
    torch.save(state_of(WEIGHTS), tmp_path / "in" / STATE)
    manifest.commit_artifact(run, paths.checkpoint(3), tmp_path / "in", {"step": 3})
    files = download_weight_files(run, CheckpointId(3), tmp_path / "out")
    with verified_weights(files) as parts:
        assert_same_parts(parts)
    change_byte(files.state, -1)
    with pytest.raises(CheckpointError, match=f"{STATE} differs"):
        read_none(files)
