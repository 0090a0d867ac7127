"""A run under Lightning's own loop, in one process, without Ray."""

import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.data.priorset import PriorSet
from dreambooth_ray.data.subject import read_configured, split
from dreambooth_ray.diffusion.components import load_components
from dreambooth_ray.diffusion.methods import apply_method
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpointing import Checkpointing, Place
from dreambooth_ray.training.corpus import Corpus
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.tracking import Tracking
from dreambooth_ray.training.validation import Probe, Validation

SMALL = ("train.resolution=64", "train.batch_size=2", "prior.count=3", "train.lr=1e-3")


class Watch(pl.Callback):
    """Keeps each step's record and the norm of the gradients it used; saves after step 2."""

    def __init__(self, save: Path | None, notes: bool) -> None:
        self.save, self.notes = save, notes
        self.records: list[dict[str, float]] = []
        self.norms: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch.ends_step:
            if self.notes:
                pl_module.note_step(trainer.global_step)
            self.records.append(pl_module.record)
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if self.save and trainer.global_step == 2:
                trainer.save_checkpoint(self.save)
            self.norms.append(float(torch.cat([g.flatten() for g in grads]).double().norm()))


class Fitted:
    def __init__(
        self,
        model: Path,
        photos: Path,
        priors: Store,
        *overrides: str,
        save: Path | None = None,
        resume: Path | None = None,
        track: Store | None = None,
        keep: bool = False,
    ) -> None:
        """track: where metrics go; keep: checkpoints too."""
        base = f"run_id: one\nsubject: {{photos: {photos}, class_noun: robot}}"
        config = parse_config(base, "x", [*SMALL, *overrides])
        parts = load_components(model)
        apply_method(config, parts)
        trained, kept = split(config, read_configured(config, config.subject))
        class_images = PriorSet(priors, config.prior.count)
        corpus = Corpus(config, parts, [trained], class_images, (0, 1))
        self.probe = Probe(config, parts, kept, class_images)
        validation = [Validation(config, self.probe, [])] if config.validation.every else []
        self.module = DreamBoothModule(config, parts)
        self.watch = Watch(save, notes=track is None)
        if resume:
            corpus.start = torch.load(resume, weights_only=True)["global_step"]
        tracking: list[pl.Callback] = []
        if track:
            tracking.append(notes := Tracking(track, config, corpus.start))
            if keep:
                tracking.append(Checkpointing(track, config, notes, Place(0, 0, 0, 1), {}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.trainer = pl.Trainer(
                max_steps=config.train.steps, max_epochs=-1, accelerator="cpu", logger=False,
                accumulate_grad_batches=config.train.accumulate, precision=config.train.precision,
                gradient_clip_val=config.train.max_grad_norm,
                callbacks=[*validation, *tracking, self.watch],
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            loader = DataLoader(corpus, batch_size=None)
            self.trainer.fit(self.module, loader, ckpt_path=resume, weights_only=False)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {n: p.detach() for n, p in self.module.named_parameters() if p.requires_grad}

    def losses(self) -> list[float]:
        return [r["loss"] for r in self.watch.records]
