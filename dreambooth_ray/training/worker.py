"""What runs in each Ray Train worker."""

import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import ray.train
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import Strategy
from ray.train.lightning import RayLightningEnvironment
from torch.utils.data import DataLoader

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.data.subject import read_configured, split
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.trainable_params import apply_method
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store, use_options
from dreambooth_ray.training.callbacks.loggers import Loggers
from dreambooth_ray.training.callbacks.samples import Samples
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.callbacks.step_sequence import StepSequence
from dreambooth_ray.training.callbacks.validation import Probe, Validation
from dreambooth_ray.training.checkpoint import restore
from dreambooth_ray.training.checkpoint.save import CheckpointSaver, find_worker_rank
from dreambooth_ray.training.checkpoint_selection import read_end
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.early_stopping import last_step, validation_losses
from dreambooth_ray.training.metrics_log import FAILURES, read_metrics
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.restarts import read_restarts
from dreambooth_ray.training.strategy import make_strategy
from dreambooth_ray.training.worker_job import WorkerJob


def train_worker(job: WorkerJob, watchers: Sequence[Callback] = ()) -> None:
    """Train from the newest checkpoint, or from the start, to the last step.

    watchers: callbacks beside the product's own
    """
    _quiet()
    torch.set_num_threads(1)
    use_options(job.run_uri, job.storage_options)
    config = parse_config(job.config, job.run_uri, [])
    run = Store(job.run_uri)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    parts = load_components(Path(job.model_directory))
    apply_method(config, parts)
    corpus, probe = _make_corpus(job, config, parts, (rank, world))
    module = DreamBoothModule(config, parts)
    place = find_worker_rank(context)
    with restore.restored(run, config, job.model_hash, place) as found:
        corpus.start = found.step if found else 0
        corpus.accumulate = config.parts(world)
        past = [r for r in read_metrics(run) if r["step"] <= corpus.start]
        if corpus.start >= last_step(config, past, read_end(run)):
            return
        validation = Validation(config, probe, validation_losses(past)) if probe else None
        sequence = _make_sequence(job, config, run, corpus, past, validation)
        strategy = make_strategy(config, world, universal=bool(found and found.is_universal))
        trainer = _make_trainer(config, corpus, strategy, [*watchers, sequence])
        loader = DataLoader(corpus, batch_size=None)
        try:
            state = str(found.state) if found else None
            trainer.fit(module, loader, ckpt_path=state, weights_only=False)
        except BaseException:
            sequence.abandon()
            raise
        sequence.finish(trainer)


def _make_corpus(
    job: WorkerJob, config: Config, parts: Components, place: tuple[int, int]
) -> tuple[TrainingDataset, Probe | None]:
    """Encode all images, and captions if the text encoder is frozen, on the worker's device."""
    parts.vae.to(ray.train.torch.get_device())
    parts.text_encoder.to(ray.train.torch.get_device())
    halves = [split(config, read_configured(config, s)) for s in config.all_subjects]
    priors = _open_priors(job) if job.num_priors else None
    corpus = TrainingDataset(config, parts, [trained for trained, _ in halves], priors, place)
    kept = [photograph for _, held_out in halves for photograph in held_out]
    probe = Probe(config, parts, kept, priors) if config.validation.every else None
    parts.vae.to("cpu")
    parts.text_encoder.to("cpu")
    return corpus, probe


def _open_priors(job: WorkerJob) -> PriorSet:
    run = Store(job.run_uri)

    def failure() -> str | None:
        if not run.exists(paths.PRIOR_FAILURE):
            return None
        return str(json.loads(run.read(paths.PRIOR_FAILURE))["error"])

    return PriorSet(Store(job.priors_uri), job.num_priors, failure)


def _make_sequence(
    job: WorkerJob,
    config: Config,
    run: Store,
    corpus: TrainingDataset,
    past: list[dict[str, Any]],
    validation: Validation | None,
) -> StepSequence:
    """past: the metrics up to the step that training goes on from"""
    context = ray.train.get_context()
    place = find_worker_rank(context)
    failures = int(past[-1].get(FAILURES, 0)) if past else 0
    side_work = SideWork(run, failures, is_first=place.rank == 0)
    loggers = Loggers(run, config, corpus.start, side_work)
    about: dict[str, object] = {
        "strategy": config.train.strategy,
        "world_size": context.get_world_size(),
        "model_hash": job.model_hash,
    }
    return StepSequence(
        run,
        corpus,
        side_work=side_work,
        loggers=loggers,
        checkpointing=CheckpointSaver(run, config, side_work, place, about, loggers.mirror),
        validation=validation,
        samples=Samples(config, Path(job.model_directory)),
        num_restarts=len(read_restarts(run)),
    )


def _make_trainer(
    config: Config, corpus: TrainingDataset, strategy: Strategy, callbacks: list[Callback]
) -> pl.Trainer:
    return pl.Trainer(
        max_steps=config.train.steps,
        max_epochs=-1,
        accelerator="gpu" if config.cluster.gpus else "cpu",
        devices="auto",
        strategy=strategy,
        plugins=[RayLightningEnvironment()],
        callbacks=callbacks,
        accumulate_grad_batches=corpus.accumulate,
        precision=config.train.precision,
        gradient_clip_val=config.train.max_grad_norm,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _quiet() -> None:
    """Silence what Lightning says about loaders and samplers that we mean as they are."""
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
