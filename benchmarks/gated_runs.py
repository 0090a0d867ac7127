"""Runs of the product that go step by step when they are told to, for themes to time.

They are what `dreambooth train` makes: Ray Train's worker, Lightning, tracking.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig

from benchmarks import gated_worker
from benchmarks.class_images import draw_class_images
from benchmarks.measure import Spent
from benchmarks.step_gate_actor import StepGateActor
from benchmarks.theme import Setting
from dreambooth_ray.config.allocator import ALLOCATOR
from dreambooth_ray.config.load import dump_config, parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.source import model_directory
from dreambooth_ray.preparation import prepare
from dreambooth_ray.runs import open_run
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.photoshoot import write_photographs
from dreambooth_ray.training.restarts import RestartRecorder
from dreambooth_ray.training.trainer import Trainer
from dreambooth_ray.training.worker_job import WorkerJob

ENDLESS = 1_000_000


class Silent:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def priors(self, done: int, total: int) -> None:
        """Nothing."""

    def training(self, run: Store, config: Config, work: Any) -> None:
        """Work alone."""
        work()


def make_config(folder: Path, setting: Setting, name: str, workers: int, *more: str) -> Config:
    """A run of the toy recipe without checkpoints, on images that are drawn into the folder."""
    photos, others = folder / "photos", folder / "others"
    if not photos.exists():
        write_photographs(photos, 7, "robot", 5, 256)
        for seed in range(8):
            write_photographs(others / str(seed), 100 + seed, "robot", 1, 256)
            (others / str(seed) / "00.png").rename(others / f"{seed}.png")
            (others / str(seed)).rmdir()
    side = _side_px(setting.model)
    keys = [
        f"run_id={name}", "seed=7", f"model.uri={setting.model}", f"subject.photos={photos}",
        "subject.class_noun=robot", f"prior.folder={others}", "prior.count=8",
        f"train.resolution={side}", f"train.batch_size={workers}", f"train.steps={ENDLESS}",
        f"train.method={'lora' if name.startswith('lora') else 'full'}", "train.lr=1.0e-6",
        f"checkpoint.every={ENDLESS}", f"cluster.workers={workers}", "cluster.max_failures=0",
        f"storage.uri={folder / 'out'}", *more,
    ]  # fmt: skip
    return parse_config("", "the benchmark", keys)


def about(config: Config) -> dict[str, Any]:
    """The configuration for a record: without what is only of this machine."""
    places: Any = {"subject": {"photos"}, "subjects": True, "prior": {"folder"}, "storage": True}
    return config.model_dump(mode="json", exclude=places)


def _side_px(model: str) -> int:
    parts = load_components(model_directory(model))
    settings: Any = parts.unet.config
    return int(settings.sample_size) * parts.latent_factor


def _trainer(
    settings: dict[str, Any], config: Config, run: Store, allocator: Mapping[str, str]
) -> Trainer:
    """As the product's driver makes it, on CPUs."""
    return Trainer(
        gated_worker.train,
        cluster=config.cluster,
        restarts=RestartRecorder(run, 0),
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=config.cluster.workers),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(
            name=paths.RAY_TRAIN,
            storage_path=run.uri,
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env={"env_vars": {**allocator, "OMP_NUM_THREADS": "1"}},
        ),
    )


@dataclass(frozen=True)
class Run:
    """A run of the product that waits at its turnstile."""

    turnstile: Any
    store: Store

    def ready(self) -> None:
        """Wait until it has started."""
        ray.get(self.turnstile.ready.remote())

    def steps(self, count: int) -> Spent:
        """Let it take so many steps."""
        spent: Spent = ray.get(self.turnstile.turn.remote(count))
        return spent


@contextmanager
def running(config: Config, allocator: Mapping[str, str] = ALLOCATOR) -> Iterator[Run]:
    """Train in the background, as `dreambooth train` does, from turn to turn.

    allocator: environment of the workers that chooses it
    """
    prepared = prepare(config, Silent())
    run = open_run(config)
    order, priors = draw_class_images(prepared)
    job = WorkerJob(
        dump_config(config),
        run.uri,
        str(prepared.directory),
        priors.uri,
        order.count,
        order.spec.model_hash,
    )
    turnstile = ray.remote(num_cpus=0)(StepGateActor).remote()
    failure: list[Exception] = []

    def work() -> None:
        settings = {"job": asdict(job), "turnstile": turnstile}
        try:
            _trainer(settings, config, run, allocator).fit()
        except Exception as error:  # told to who waits at the turnstile
            failure.append(error)
            ray.kill(turnstile)

    thread = threading.Thread(target=work, name=str(config.run_id), daemon=True)
    thread.start()
    try:
        yield Run(turnstile, run)
    except ray.exceptions.RayActorError as error:
        raise failure[0] if failure else error from error
    turnstile.end.remote()
    thread.join(60)
