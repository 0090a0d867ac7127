"""What runs in each Ray Train worker."""

import gc
import json
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
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
from dreambooth_ray.memory.out_of_memory import explain_out_of_memory
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.model_mirror import locate_model
from dreambooth_ray.models.precision import cast_untrainable_encoders, choose_device
from dreambooth_ray.models.trainable_params import apply_method
from dreambooth_ray.models.weight_cache import set_cache_limit
from dreambooth_ray.storage import fence, paths
from dreambooth_ray.storage.store import Store, use_options
from dreambooth_ray.training.callbacks.loggers import Loggers
from dreambooth_ray.training.callbacks.samples import PromptSampler
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.callbacks.step_sequence import StepSequence
from dreambooth_ray.training.callbacks.validation import Validation, ValidationSet
from dreambooth_ray.training.checkpoint import restore
from dreambooth_ray.training.checkpoint.download import BaseModel
from dreambooth_ray.training.checkpoint.kept_checkpoint import KeptCheckpoint
from dreambooth_ray.training.checkpoint.save import (
    CheckpointSaver,
    find_worker_rank,
)
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.datasets import make_datasets
from dreambooth_ray.training.early_stopping import validation_losses
from dreambooth_ray.training.metrics_log import FAILURES, SKIPPED, read_metrics
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.nan_guard import NanGuard
from dreambooth_ray.training.preemption import PreemptionWatcher
from dreambooth_ray.training.restarts import read_restarts
from dreambooth_ray.training.run_state import read_run_state
from dreambooth_ray.training.step_evaluator import MakeStepEvaluator
from dreambooth_ray.training.strategy import count_threads, make_strategy, precision_flag
from dreambooth_ray.training.worker_job import WorkerJob


def train_worker(
    job: WorkerJob,
    extra_callbacks: Sequence[Callback] = (),
    on_trained: Callable[[WorkerJob, KeptCheckpoint | None], None] = lambda *_: None,
    make_evaluator: MakeStepEvaluator | None = None,
) -> None:
    """Train from the newest checkpoint, or from the start, to the last step.

    extra_callbacks: callbacks beside the product's own
    on_trained: called on the first worker once training has come to an end and is committed, with
        the last checkpoint where its files are still here
    make_evaluator: of what evaluates weights between steps, on the first worker
    raises: CapacityError, with what would fit, if it runs out of memory
    """
    silence_lightning()
    use_options(job.run_uri, job.storage_options)
    config = parse_config(job.config, job.run_uri, [])
    set_cache_limit(config.storage.model_cache_gb)
    model_directory = locate_model(job.model_directory, job.model_hash, job.run_uri)
    job = replace(job, model_directory=str(model_directory))
    with explain_out_of_memory(config, Path(job.model_directory)):
        local_checkpoint = _train(job, config, extra_callbacks, make_evaluator)
    # The model and its optimizer, which refer to each other in circles: what comes needs the room.
    gc.collect()
    try:
        if ray.train.get_context().get_world_rank() == 0:
            on_trained(job, local_checkpoint)
    finally:
        if local_checkpoint is not None:
            local_checkpoint.scratch.remove()


def _train(
    job: WorkerJob,
    config: Config,
    extra_callbacks: Sequence[Callback],
    make_evaluator: MakeStepEvaluator | None,
) -> KeptCheckpoint | None:
    run = Store(job.run_uri)
    context = ray.train.get_context()
    num_cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(count_threads(config, num_cores, context.get_local_world_size()))
    world_size = context.get_world_size()
    module, dataset, validation_set = _load_module_and_datasets(
        job, config, (context.get_world_rank(), world_size)
    )
    worker_rank = find_worker_rank(context)
    base_model = BaseModel(Path(job.model_directory), job.model_hash)
    with restore.restored_checkpoint(run, config, base_model, worker_rank) as restored_checkpoint:
        dataset.start = restored_checkpoint.step if restored_checkpoint else 0
        dataset.accumulate = config.count_accumulation_parts(world_size)
        past_metrics = [r for r in read_metrics(run, job.lease) if r["step"] <= dataset.start]
        if dataset.start >= read_run_state(run, config).last_step:
            return None
        validation = (
            Validation(config, validation_set, validation_losses(past_metrics))
            if validation_set
            else None
        )
        step_sequence = _make_step_sequence(job, config, run, dataset, past_metrics, validation)
        if make_evaluator is not None and worker_rank.rank == 0:
            step_sequence.evaluator = make_evaluator(job, config, dataset.start)
        step_sequence.on_loaded = restored_checkpoint.release if restored_checkpoint else None
        strategy = make_strategy(
            config,
            world_size,
            universal=bool(restored_checkpoint and restored_checkpoint.is_universal),
        )
        trainer = _make_trainer(config, dataset, strategy, [*extra_callbacks, step_sequence])
        loader = DataLoader(dataset, batch_size=None, pin_memory=config.cluster.gpus)
        try:
            checkpoint_path = str(restored_checkpoint.state) if restored_checkpoint else None
            trainer.fit(module, loader, ckpt_path=checkpoint_path, weights_only=False)
        except BaseException:
            step_sequence.abandon()
            raise
        step_sequence.finish(trainer)
        return step_sequence.kept_checkpoint


def _load_module_and_datasets(
    job: WorkerJob, config: Config, rank_and_world_size: tuple[int, int]
) -> tuple[DreamBoothModule, TrainingDataset, ValidationSet | None]:
    """What is trained, and what on; the VAE and frozen text encoders are in memory no longer."""
    components = load_components(Path(job.model_directory))
    apply_method(config, components, quantizes=True)
    dataset, validation_set = _make_dataset(job, config, components, rank_and_world_size)
    return DreamBoothModule(config, components), dataset, validation_set


def _make_dataset(
    job: WorkerJob, config: Config, components: Components, rank_and_world_size: tuple[int, int]
) -> tuple[TrainingDataset, ValidationSet | None]:
    """Encode all images, and captions if the text encoder is frozen, on the worker's device."""
    cast_untrainable_encoders(components, config.train.precision)
    encoder_networks = (components.vae, *components.text_encoders.values())
    for network in encoder_networks:
        network.to(choose_device(network, ray.train.torch.get_device()))
    prior_set = open_priors(job) if job.num_priors else None
    train_and_validation_sets = make_datasets(config, components, prior_set, rank_and_world_size)
    for network in encoder_networks:
        network.to("cpu")
    return train_and_validation_sets


def open_priors(job: WorkerJob) -> PriorSet:
    """The class images of a job, which may still be generated."""
    run, failure_file = Store(job.run_uri), fence.numbered(paths.PRIOR_FAILURE, job.lease)

    def read_prior_failure() -> str | None:
        try:
            return str(json.loads(run.read(failure_file))["error"])
        except FileNotFoundError:
            return None

    return PriorSet(Store(job.priors_uri), job.num_priors, read_prior_failure)


def _make_step_sequence(
    job: WorkerJob,
    config: Config,
    run: Store,
    dataset: TrainingDataset,
    past_records: list[dict[str, Any]],
    validation: Validation | None,
) -> StepSequence:
    """past_records: the metrics up to the step that training goes on from"""
    context = ray.train.get_context()
    worker_rank = find_worker_rank(context)
    last_record = past_records[-1] if past_records else {}
    num_side_work_failures = int(last_record.get(FAILURES, 0))
    side_work = SideWork(run, num_side_work_failures, is_first=worker_rank.rank == 0)
    loggers = Loggers(run, config, dataset.start, side_work)
    manifest_fields: dict[str, object] = {
        "strategy": config.train.strategy,
        "world_size": context.get_world_size(),
        "model_hash": job.model_hash,
        "lease": job.lease,
    }
    return StepSequence(
        run,
        dataset,
        side_work=side_work,
        loggers=loggers,
        guard=NanGuard(dataset, config.train.precision, int(last_record.get(SKIPPED, 0))),
        saver=CheckpointSaver(
            run,
            config,
            side_work,
            worker_rank,
            manifest_fields,
            loggers.upload_logs,
            lease=job.lease,
        ),
        validation=validation,
        preemption=PreemptionWatcher(),
        sampler=PromptSampler(config, Path(job.model_directory))
        if config.train.holds_unsharded_weights
        else None,
        num_restarts=len(read_restarts(run)),
        lease=job.lease,
    )


def _make_trainer(
    config: Config, dataset: TrainingDataset, strategy: Strategy, callbacks: list[Callback]
) -> pl.Trainer:
    return pl.Trainer(
        max_steps=config.train.steps,
        max_epochs=-1,
        accelerator="gpu" if config.cluster.gpus else "cpu",
        devices="auto",
        strategy=strategy,
        plugins=[RayLightningEnvironment()],
        callbacks=callbacks,
        accumulate_grad_batches=dataset.accumulate,
        precision=precision_flag(config),
        deterministic="warn" if config.train.deterministic else False,
        gradient_clip_val=config.train.max_grad_norm,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def silence_lightning() -> None:
    """Silence what Lightning says about loaders and samplers that we mean as they are."""
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
