"""What Lightning writes into a checkpoint, by a training of its own."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dreambooth_ray.compat.lightning_state import (
    build_lightning_checkpoint,
    read_trainer_loop_states,
    set_batch_progress,
)


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(steps: int, parts: int) -> pl.Trainer:
    return pl.Trainer(
        max_steps=steps, accumulate_grad_batches=parts, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


class Recount(pl.Callback):
    """Counts batches as another number of parts a step does."""

    first_batch: int | None = None

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        set_batch_progress(checkpoint, int(checkpoint["global_step"]) * 2)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.first_batch = batch_idx if self.first_batch is None else self.first_batch


@pytest.mark.filterwarnings("ignore:You're resuming")
def test_a_training_goes_on_from_the_batches_that_are_set(tmp_path: Path) -> None:
    loader = DataLoader(torch.ones(40, 1), batch_size=1)
    first = make_trainer(3, 1)
    first.fit(Module(), loader)
    first.save_checkpoint(tmp_path / "state")
    second, recount = make_trainer(4, 2), Recount()
    second.callbacks.append(recount)  # type: ignore[attr-defined]
    second.fit(Module(), loader, ckpt_path=str(tmp_path / "state"), weights_only=False)
    assert recount.first_batch == 6, "Lightning: the loop's counters are elsewhere"
    assert second.global_step == 4


class SaveSecondStep(pl.Callback):
    """Saves as our own callback does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.path)


def test_a_checkpoint_is_made_as_lightning_makes_it(tmp_path: Path) -> None:
    loader = DataLoader(torch.ones(4, 1), batch_size=1)
    trainer = make_trainer(4, 1)
    trainer.callbacks.append(SaveSecondStep(tmp_path / "state"))  # type: ignore[attr-defined]
    trainer.fit(Module(), loader)
    saved = torch.load(tmp_path / "state", weights_only=False)
    optimizer, version = saved["optimizer_states"][0], saved["pytorch-lightning_version"]
    made = build_lightning_checkpoint(
        read_trainer_loop_states(make_trainer(4, 1)), 2, optimizer, {}, version
    )
    del saved["state_dict"], saved["lr_schedulers"], made["lr_schedulers"]
    # There is no scheduler here, and it counts its steps.
    for state in (made, saved):
        del state["loops"]["fit_loop"]["epoch_loop.scheduler_progress"]
    assert made == saved, "Lightning: a checkpoint has other counters"
