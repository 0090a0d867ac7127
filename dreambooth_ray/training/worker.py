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
from dreambooth_ray.models.precision import cast_untrainable_encoders, choose_fitting_device
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.models.weight_cache import set_model_cache_limit
from dreambooth_ray.storage import fence, paths
from dreambooth_ray.storage.store import Store, use_storage_options
from dreambooth_ray.training.callbacks.loggers import Loggers
from dreambooth_ray.training.callbacks.samples import TrainingImageSampler
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.callbacks.training_step_callback import TrainingStepCallback
from dreambooth_ray.training.callbacks.validation import Validation, ValidationSet
from dreambooth_ray.training.checkpoint import restore
from dreambooth_ray.training.checkpoint.download import BaseModel
from dreambooth_ray.training.checkpoint.last_local_checkpoint import LastLocalCheckpoint
from dreambooth_ray.training.checkpoint.save import (
    CheckpointSaver,
    find_worker_rank,
)
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.datasets import make_datasets
from dreambooth_ray.training.early_stopping import list_validation_losses
from dreambooth_ray.training.metrics_log import FAILURES, SKIPPED, read_metrics
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.nan_guard import NanGuard
from dreambooth_ray.training.preemption import PreemptionWatcher
from dreambooth_ray.training.restarts import read_restarts
from dreambooth_ray.training.run_state import read_run_state
from dreambooth_ray.training.step_evaluator import MakeStepEvaluator
from dreambooth_ray.training.strategy import (
    count_threads,
    make_strategy,
    precision_flag,
    set_num_threads,
)
from dreambooth_ray.training.worker_job import WorkerJob


def train_worker(
    job: WorkerJob,
    extra_callbacks: Sequence[Callback] = (),
    on_trained: Callable[[WorkerJob, LastLocalCheckpoint | None], None] = lambda *_: None,
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
    use_storage_options(job.run_uri, job.storage_options)
    config = parse_config(job.config, job.run_uri, [])
    set_model_cache_limit(config.storage.model_cache_gb)
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
) -> LastLocalCheckpoint | None:
    run_store = Store(job.run_uri)
    train_context = ray.train.get_context()
    num_cores = len(os.sched_getaffinity(0))
    set_num_threads(count_threads(config, num_cores, train_context.get_local_world_size()))
    world_size = train_context.get_world_size()
    training_module, dataset, validation_set = _load_module_and_datasets(
        job, config, (train_context.get_world_rank(), world_size)
    )
    worker_rank = find_worker_rank(train_context)
    base_model = BaseModel(Path(job.model_directory), job.model_hash)
    with restore.restored_checkpoint(
        run_store, config, base_model, worker_rank
    ) as restored_checkpoint:
        dataset.start = restored_checkpoint.step if restored_checkpoint else 0
        dataset.accumulate = config.count_accumulation_parts(world_size)
        past_metrics = [r for r in read_metrics(run_store, job.lease) if r["step"] <= dataset.start]
        if dataset.start >= read_run_state(run_store, config).last_step:
            return None
        validation = (
            Validation(config, validation_set, list_validation_losses(past_metrics))
            if validation_set
            else None
        )
        step_callback = _make_step_callback(
            job, config, run_store, dataset, past_metrics, validation
        )
        if make_evaluator is not None and worker_rank.rank == 0:
            step_callback.evaluator = make_evaluator(job, config, dataset.start)
        step_callback.on_loaded = restored_checkpoint.release if restored_checkpoint else None
        strategy = make_strategy(
            config,
            world_size,
            universal=bool(restored_checkpoint and restored_checkpoint.is_universal),
        )
        trainer = _make_trainer(config, dataset, strategy, [*extra_callbacks, step_callback])
        data_loader = DataLoader(dataset, batch_size=None, pin_memory=config.cluster.gpus)
        try:
            checkpoint_path = str(restored_checkpoint.state) if restored_checkpoint else None
            trainer.fit(training_module, data_loader, ckpt_path=checkpoint_path, weights_only=False)
        except BaseException:
            step_callback.abandon()
            raise
        step_callback.finish(trainer)
        return step_callback.kept_checkpoint


def _load_module_and_datasets(
    job: WorkerJob, config: Config, rank_and_world_size: tuple[int, int]
) -> tuple[DreamBoothModule, TrainingDataset, ValidationSet | None]:
    """What is trained, and what on; the VAE and frozen text encoders are in memory no longer."""
    components = load_components(Path(job.model_directory))
    apply_train_method(config, components, quantizes=True)
    dataset, validation_set = _make_datasets(job, config, components, rank_and_world_size)
    return DreamBoothModule(config, components), dataset, validation_set


def _make_datasets(
    job: WorkerJob, config: Config, components: Components, rank_and_world_size: tuple[int, int]
) -> tuple[TrainingDataset, ValidationSet | None]:
    """Encode all images, and captions if the text encoder is frozen, on the worker's device."""
    cast_untrainable_encoders(components, config.train.precision)
    encoder_networks = (components.vae, *components.text_encoders.values())
    for encoder_network in encoder_networks:
        encoder_network.to(choose_fitting_device(encoder_network, ray.train.torch.get_device()))
    prior_set = open_priors(job) if job.num_priors else None
    train_and_validation_sets = make_datasets(config, components, prior_set, rank_and_world_size)
    for encoder_network in encoder_networks:
        encoder_network.to("cpu")
    return train_and_validation_sets


_CLASS_IMAGE_GONE = (
    "all were made, and one is gone since: another run, `dreambooth gc` or a person has removed "
    "it; start the run again, and it is made anew"
)


def open_priors(job: WorkerJob) -> PriorSet:
    """The class images of a job, which may still be generated; under no lease all have been."""
    run_store, prior_end_file = (
        Store(job.run_uri),
        fence.file_name_with_lease(paths.PRIOR_END, job.lease),
    )

    def read_prior_generation_failure() -> str | None:
        try:
            generation_end = json.loads(run_store.read(prior_end_file)) if job.lease else {}
        except FileNotFoundError:
            return None
        return str(generation_end.get("error") or _CLASS_IMAGE_GONE)

    return PriorSet(Store(job.priors_uri), job.num_priors, read_prior_generation_failure)


def _make_step_callback(
    job: WorkerJob,
    config: Config,
    run_store: Store,
    dataset: TrainingDataset,
    past_records: list[dict[str, Any]],
    validation: Validation | None,
) -> TrainingStepCallback:
    """past_records: the metrics up to the step that training goes on from"""
    train_context = ray.train.get_context()
    worker_rank = find_worker_rank(train_context)
    last_metrics_record = past_records[-1] if past_records else {}
    num_side_work_failures = int(last_metrics_record.get(FAILURES, 0))
    side_work = SideWork(run_store, num_side_work_failures, is_first=worker_rank.rank == 0)
    loggers = Loggers(run_store, config, dataset.start, side_work)
    checkpoint_manifest_fields: dict[str, object] = {
        "strategy": config.train.strategy,
        "world_size": train_context.get_world_size(),
        "model_hash": job.model_hash,
        "lease": job.lease,
    }
    return TrainingStepCallback(
        run_store,
        dataset,
        side_work=side_work,
        loggers=loggers,
        guard=NanGuard(dataset, config.train.precision, int(last_metrics_record.get(SKIPPED, 0))),
        saver=CheckpointSaver(
            run_store,
            config,
            side_work,
            worker_rank,
            checkpoint_manifest_fields,
            loggers.upload_logs,
            lease=job.lease,
        ),
        validation=validation,
        preemption=PreemptionWatcher(),
        sampler=TrainingImageSampler(config, Path(job.model_directory))
        if config.train.holds_unsharded_weights
        else None,
        num_restarts=len(read_restarts(run_store)),
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
