"""A run under Lightning's own loop, in one process, without Ray."""

import json
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.data.subject import read_photographs_for_subject_config, split_photographs
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.callbacks.loggers import Loggers
from dreambooth_ray.training.callbacks.samples import TrainingImageSampler
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.callbacks.training_step_callback import TrainingStepCallback
from dreambooth_ray.training.callbacks.validation import Validation, ValidationSet
from dreambooth_ray.training.checkpoint.save import CheckpointSaver, WorkerRank
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.nan_guard import NanGuard
from dreambooth_ray.training.preemption import PreemptionWatcher
from dreambooth_ray.training.step_evaluator import StepEvaluator
from dreambooth_ray.training.strategy import make_strategy, precision_flag

SMALL = ("train.resolution=64", "train.batch_size=2", "prior.count=3", "train.lr=1e-3")


class Watch(pl.Callback):
    """Keeps each step's record and the norm of the gradients it used; saves after step 2."""

    def __init__(
        self, save: Path | None, sequence: TrainingStepCallback, on_end: Callable[[], object]
    ) -> None:
        self.save, self.sequence, self.on_end = save, sequence, on_end
        self.records: list[dict[str, float]] = []
        self.norms: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch.ends_step:
            self.records.append(self.sequence.metrics)
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if self.save and trainer.global_step == 2:
                trainer.save_checkpoint(self.save)
            self.norms.append(float(torch.nn.utils.get_total_norm([g.double() for g in grads])))

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.on_end()


def make_sequence(
    run: Store,
    dataset: TrainingDataset,
    config: Config,
    validation: Validation | None,
    keep: bool,
    read_every: int | None,
    preemption: PreemptionWatcher | None,
    sampler: TrainingImageSampler | None,
) -> TrainingStepCallback:
    """keep: whether checkpoints are saved."""
    side_work = SideWork(run)
    saver = CheckpointSaver(run, config, side_work, WorkerRank(0, 0, 0, 1), {}) if keep else None
    return TrainingStepCallback(
        run,
        dataset,
        side_work=side_work,
        loggers=Loggers(run, config, dataset.start, side_work),
        guard=NanGuard(dataset, config.train.precision),
        saver=saver,
        validation=validation,
        preemption=preemption,
        sampler=sampler,
        read_every=read_every,
    )


def strategy_settings(config: Config) -> dict[str, Any]:
    """Of one worker, this process; ddp of one is nothing."""
    if config.train.strategy == "ddp":
        return {}
    return {"strategy": make_strategy(config, 1, universal=False)}


def fit(
    module: DreamBoothModule,
    dataset: TrainingDataset,
    sequence: TrainingStepCallback,
    watch: Watch,
    resume: Path | None,
) -> pl.Trainer:
    """The trainer that has trained the module."""
    config, train = module.config, module.config.train
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_steps=train.steps, max_epochs=-1, accelerator="cpu", logger=False,
            accumulate_grad_batches=train.accumulate, precision=precision_flag(config),
            **strategy_settings(config),
            gradient_clip_val=train.max_grad_norm, callbacks=[sequence, watch],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        loader = DataLoader(dataset, batch_size=None)
        try:
            trainer.fit(module, loader, ckpt_path=resume, weights_only=False)
        except BaseException:
            sequence.abandon()
            raise
    return trainer


class Fitted:
    def __init__(
        self,
        model: Path,
        photos: Path,
        priors: Store | None,
        *overrides: str,
        save: Path | None = None,
        resume: Path | None = None,
        track: Store | None = None,
        keep: bool = False,
        read_every: int | None = None,
        preemption: PreemptionWatcher | None = None,
        on_train_end: Callable[[], object] = lambda: None,
        make_evaluator: Callable[[Config], StepEvaluator] | None = None,
    ) -> None:
        """track: where metrics go; keep: checkpoints too; make_evaluator: it samples too."""
        base = f"run_id: one\nsubject: {{photos: {photos}, class_noun: robot}}"
        config = parse_config(base, "x", [*SMALL, *overrides])
        components = load_components(model)
        apply_train_method(config, components)
        trained, held_out = split_photographs(
            config, read_photographs_for_subject_config(config, config.subject)
        )
        class_images = (
            PriorSet(priors, config.prior.num_images)
            if priors and config.prior.num_images
            else None
        )
        dataset = TrainingDataset(config, components, [trained], class_images, (0, 1))
        looked_at = held_out if held_out or class_images else trained
        self.validation_set = ValidationSet(config, components, looked_at, class_images)
        validation = (
            Validation(config, self.validation_set, []) if config.validation.every else None
        )
        self.module = DreamBoothModule(config, components)
        if resume:
            progress = resume / "meta.pt" if resume.is_dir() else resume
            dataset.start = torch.load(progress, weights_only=True)["global_step"]
        run = track or Store(f"memory://fitted-{uuid.uuid4().hex}")
        if resume and track is None:
            lines = (json.dumps({"step": step}) + "\n" for step in range(1, dataset.start + 1))
            run.write(paths.METRICS, "".join(lines).encode())
        self.sequence = make_sequence(
            run, dataset, config, validation, keep, read_every, preemption,
            TrainingImageSampler(config, model) if make_evaluator else None,
        )  # fmt: skip
        self.sequence.evaluator = make_evaluator(config) if make_evaluator else None
        self.watch = Watch(save, self.sequence, on_train_end)
        self.trainer = fit(self.module, dataset, self.sequence, self.watch, resume)
        self.sequence.finish(self.trainer)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {n: p.detach() for n, p in self.module.named_parameters() if p.requires_grad}

    def losses(self) -> list[float]:
        return [r["loss"] for r in self.watch.records]
