"""One LoRA step in this process, ours and the plain loop's, for what it costs in memory."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from benchmarks.gated_runs import make_config
from benchmarks.plain_loop import PlainLoop
from benchmarks.theme import BenchmarkSettings
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.subject import read_photographs_for_subject_config
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.module import DreamBoothModule


def _make_config(model: Path, *overrides: str) -> Config:
    folder = Path(tempfile.mkdtemp(prefix="dreambooth-bench-"))
    setting = BenchmarkSettings(model=str(model), profile="smoke")
    config = make_config(folder, setting, "lora", 1, "train.steps=1", *overrides)
    for photograph_path in sorted(Path(config.subject.photos).iterdir())[2:]:
        photograph_path.unlink()
    return config


def make_our_step(model: Path) -> Callable[[], object]:
    """The product's module over its dataset, by Lightning in this process.

    Two photographs stand for the pair: class images would come from a pool of actors.
    """
    config = _make_config(model, "train.batch_size=2", "prior.count=0", "prior.folder=null")
    components = load_components(model)
    apply_train_method(config, components)
    photographs = read_photographs_for_subject_config(config, config.subject)
    dataset = TrainingDataset(config, components, [photographs], None, (0, 1))
    module = DreamBoothModule(config, components)
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        gradient_clip_val=config.train.max_grad_norm,
    )  # fmt: skip
    return lambda: trainer.fit(module, DataLoader(dataset, batch_size=None))


def make_their_step(model: Path) -> Callable[[], object]:
    """The plain loop's."""
    peer_loop = PlainLoop(_make_config(model), str(model))
    return lambda: peer_loop.run_steps(1)
