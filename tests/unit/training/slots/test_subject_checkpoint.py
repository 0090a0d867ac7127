"""Subjects go from slots to a trainer of their own and back, from checkpoint to checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.slots.slot_subject import SlotSubject
from dreambooth_ray.training.slots.subject_checkpoint import (
    load_subject_checkpoint,
    save_subject_checkpoint,
)
from dreambooth_ray.training.strategy import DirectCheckpointIO
from tests.unit.training.fitted import Fitted
from tests.unit.training.slots.slotted import LORA, Slotted
from tests.unit.training.slots.test_slot_trainer import assert_close

SETTINGS = (
    "train.steps=4", "train.lr_schedule=linear", "train.ema_decay=0.9", "train.lora.rank=2",
)  # fmt: skip
OTHER = ("seed=4", "train.lora.rank=3", "train.steps=5")


def save(subject: SlotSubject, folder: Path) -> Path:
    save_subject_checkpoint(subject, "unet", folder / "state.ckpt")
    return folder / "state.ckpt"


def load(slotted: Slotted, path: Path) -> Any:
    adapter = slotted.trainer.make_adapter(slotted.trainer.config.train.lora, 0)
    return load_subject_checkpoint(path, "unet", adapter)


def describe(value: Any) -> Any:
    """A state less its numbers."""
    if isinstance(value, dict):
        return {key: describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def test_a_state_is_built_as_lightnings(
    tiny_model: Path, photos: Path, priors: Store, tmp_path: Path
) -> None:
    alone_path = tmp_path / "alone" / "state.ckpt"
    # Weights are beside the file.
    alone_path.parent.mkdir()
    # After its second step.
    Fitted(tiny_model, photos, priors, *LORA, *SETTINGS, save=alone_path)
    slotted = Slotted(tiny_model, photos, priors, 2, *SETTINGS)
    subject = slotted.join("one")
    slotted.step()
    slotted.step()
    states = [
        DirectCheckpointIO().load_checkpoint(path, weights_only=False)
        for path in (alone_path, save(subject, tmp_path))
    ]
    for state in states:
        for key in ("state_dict", "average"):
            state[key] = dict(state[key].items())
    assert describe(states[1]) == describe(states[0])
    assert states[1]["loops"] == states[0]["loops"]
    assert states[1]["lr_schedulers"] == states[0]["lr_schedulers"]
    groups = [state["optimizer_states"][0]["param_groups"] for state in states]
    assert groups[1] == groups[0]
    for name, average in states[0]["average"].items():
        torch.testing.assert_close(states[1]["average"][name], average, rtol=0, atol=2e-6)


def test_a_subject_goes_on_bit_for_bit_at_equal_slots(
    tiny_model: Path, photos: Path, priors: Store, tmp_path: Path
) -> None:
    whole = Slotted(tiny_model, photos, priors, 4, *SETTINGS, rank=3)
    first = whole.join("first")
    whole.join("second", *OTHER)
    whole.step()
    whole.step()
    path = save(first, tmp_path)
    expected = whole.run()
    again = Slotted(tiny_model, photos, priors, 4, *SETTINGS, rank=3)
    # Into another slot than before, and with other company.
    again.join("other", *OTHER)
    again.join("first", state=load(again, path))
    assert again.run()["first"] == expected["first"][2:]


def test_a_run_alone_goes_on_with_what_slots_have_saved_and_back(
    tiny_model: Path, photos: Path, priors: Store, tmp_path: Path
) -> None:
    alone = Fitted(tiny_model, photos, priors, *LORA, *SETTINGS)
    slotted = Slotted(tiny_model, photos, priors, 2, *SETTINGS)
    subject = slotted.join("one")
    slotted.step()
    slotted.step()
    path = save(subject, tmp_path)
    states = DirectCheckpointIO().load_checkpoint(path, weights_only=False)
    # Fitted reads a single file.
    merged = tmp_path / "merged.ckpt"
    for key in ("state_dict", "average"):
        states[key] = dict(states[key].items())
    torch.save(states, merged)
    resumed = Fitted(tiny_model, photos, priors, *LORA, *SETTINGS, resume=merged)
    assert_close(resumed.watch.records, alone.watch.records[2:])
    file = tmp_path / "two.ckpt"
    Fitted(tiny_model, photos, priors, *LORA, *SETTINGS, save=file)
    taken_up = Slotted(tiny_model, photos, priors, 2, *SETTINGS)
    taken_up.join("one", state=load(taken_up, file))
    assert_close(taken_up.run()["one"], alone.watch.records[2:])


def test_a_checkpoint_of_another_adapter_is_refused(
    tiny_model: Path, photos: Path, priors: Store, tmp_path: Path
) -> None:
    slotted = Slotted(tiny_model, photos, priors, 2, "train.lora.rank=2", rank=3)
    path = save(slotted.join("other", "train.lora.rank=3"), tmp_path)
    with pytest.raises(CheckpointError, match="holds other weights"):
        load(slotted, path)
