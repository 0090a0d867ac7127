import json
from pathlib import Path

import pytest
import torch

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage import layout, manifest
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training import checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def commit(run: Store, step: int, tmp_path: Path) -> None:
    folder = tmp_path / f"in-{step}"
    folder.mkdir()
    (folder / checkpoint.STATE).write_text(str(step))
    manifest.commit(run, layout.checkpoint(step), folder, {"step": step})


def damage(run: Store, step: int) -> None:
    pointer = json.loads(run.read(f"{layout.checkpoint(step)}.json"))
    run.write(f"{pointer['folder']}/{checkpoint.STATE}", b"damaged")


def test_a_new_run_has_nothing_to_restore(run: Store, tmp_path: Path) -> None:
    assert checkpoint.restore_newest(run, tmp_path) is None


def test_the_newest_intact_one_is_taken(run: Store, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        commit(run, step, tmp_path)
    damage(run, 30)
    restored = checkpoint.restore_newest(run, tmp_path / "out")
    assert restored is not None
    assert (restored[0], restored[1].read_text()) == (20, "20")


def test_with_none_intact_it_says_so(run: Store, tmp_path: Path) -> None:
    commit(run, 10, tmp_path)
    damage(run, 10)
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        checkpoint.restore_newest(run, tmp_path / "out")


def test_rotation_keeps_the_newest(run: Store, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        commit(run, step, tmp_path)
    checkpoint.rotate(run, keep=2)
    assert checkpoint.committed_steps(run) == [20, 30]
    assert len(run.names(layout.CHECKPOINTS)) == 4


def test_rotation_deletes_nothing_while_the_newest_is_damaged(run: Store, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        commit(run, step, tmp_path)
    damage(run, 30)
    checkpoint.rotate(run, keep=1)
    assert checkpoint.committed_steps(run) == [10, 20, 30]


def test_weights_are_sorted_by_part(tmp_path: Path) -> None:
    one, two = torch.ones(1), torch.zeros(2)
    torch.save({"state_dict": {"unet.a.b": one, "text_encoder.c": two}}, tmp_path / "s")
    parts = checkpoint.trained_weights(tmp_path / "s")
    assert parts["unet"].keys() == {"a.b"}
    assert parts["text_encoder"].keys() == {"c"}
