"""What runs in each Ray Train worker."""

import json
import logging
import tempfile
import warnings
from pathlib import Path

import pytorch_lightning as pl
import ray.train
import torch
from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, prepare_trainer
from torch.utils.data import DataLoader

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.priorset import PriorSet
from dreambooth_ray.data.subject import read_configured, split
from dreambooth_ray.diffusion.components import Components, load_components
from dreambooth_ray.diffusion.methods import apply_method
from dreambooth_ray.storage import layout
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training import checkpoint
from dreambooth_ray.training.callbacks import Checkpointing, Samples
from dreambooth_ray.training.corpus import Corpus
from dreambooth_ray.training.halting import Stopping
from dreambooth_ray.training.job import Job
from dreambooth_ray.training.journal import read_metrics
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.stopping import last_step, validation_losses
from dreambooth_ray.training.tracking import Tracking
from dreambooth_ray.training.validation import Probe, Validation


def train_worker(job: Job) -> None:
    """Train from the newest checkpoint, or from the start, to the last step."""
    _quiet()
    torch.set_num_threads(1)
    config = parse_config(job.config, job.run_uri, [])
    run = Store(job.run_uri)
    place = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    parts = load_components(Path(job.model_directory))
    apply_method(config, parts)
    corpus, probe = _make_corpus(job, config, parts, place)
    module = DreamBoothModule(config, parts)
    with tempfile.TemporaryDirectory(prefix="dreambooth-restore-") as folder:
        restored = checkpoint.restore_newest(run, Path(folder))
        corpus.start = restored[0] if restored else 0
        past = [r for r in read_metrics(run) if r["step"] <= corpus.start]
        if corpus.start >= last_step(config, past):
            return
        first = [Validation(config, probe, validation_losses(past))] if probe else []
        trainer = _make_trainer(job, config, run, corpus.start, first)
        trainer.fit(
            module,
            DataLoader(corpus, batch_size=None),
            ckpt_path=str(restored[1]) if restored else None,
            weights_only=False,
        )


def _make_corpus(
    job: Job, config: Config, parts: Components, place: tuple[int, int]
) -> tuple[Corpus, Probe | None]:
    """Encode all pictures, and captions if the text encoder is frozen, on the worker's device."""
    parts.vae.to(ray.train.torch.get_device())
    parts.text_encoder.to(ray.train.torch.get_device())
    halves = [split(config, read_configured(config, s)) for s in config.all_subjects]
    priors = _open_priors(job) if job.num_priors else None
    corpus = Corpus(config, parts, [trained for trained, _ in halves], priors, place)
    kept = [photograph for _, held_out in halves for photograph in held_out]
    probe = Probe(config, parts, kept, priors) if config.validation.every else None
    parts.vae.to("cpu")
    parts.text_encoder.to("cpu")
    return corpus, probe


def _open_priors(job: Job) -> PriorSet:
    run = Store(job.run_uri)

    def failure() -> str | None:
        if not run.exists(layout.PRIOR_FAILURE):
            return None
        return str(json.loads(run.read(layout.PRIOR_FAILURE))["error"])

    return PriorSet(Store(job.priors_uri), job.num_priors, failure)


def _make_trainer(
    job: Job, config: Config, run: Store, start: int, first: list[Validation]
) -> pl.Trainer:
    """first: callbacks whose results the step's record takes up."""
    tracking = Tracking(run, config, start)
    trainer = pl.Trainer(
        max_steps=config.train.steps,
        max_epochs=-1,
        accelerator="gpu" if config.cluster.gpus else "cpu",
        devices="auto",
        strategy=RayDDPStrategy(gradient_as_bucket_view=True),
        plugins=[RayLightningEnvironment()],
        callbacks=[
            *first,
            tracking,
            Samples(config, Path(job.model_directory), tracking),
            Checkpointing(run, config, tracking),
            Stopping(run, config.checkpoint.keep, tracking),
        ],
        accumulate_grad_batches=config.train.accumulate,
        precision=config.train.precision,
        gradient_clip_val=config.train.max_grad_norm,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    prepared: pl.Trainer = prepare_trainer(trainer)
    return prepared


def _quiet() -> None:
    """Silence what Lightning says about loaders and samplers that we mean as they are."""
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
