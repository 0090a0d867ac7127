"""Runs of the product that train some steps at a time, behind a StepGate, for themes to time.

They are the runs of `dreambooth train`: Ray Train's worker, Lightning, tracking.
"""

import tempfile
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
from benchmarks.measure import WallAndCpuTime
from benchmarks.step_gate_actor import StepGateActor
from benchmarks.theme import BenchmarkSettings
from benchmarks.timed_run_setup import generate_class_images
from dreambooth_ray.compat.ray_train import Trainer
from dreambooth_ray.config.allocator import ALLOCATOR
from dreambooth_ray.config.load import dump_config, parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.display import QuietDisplay
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.preparation import prepare_run
from dreambooth_ray.runs import open_run
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.photoshoot import write_photographs
from dreambooth_ray.training.restarts import RestartRecorder
from dreambooth_ray.training.worker_job import WorkerJob

ENDLESS = 1_000_000


def make_config(
    folder: Path,
    setting: BenchmarkSettings,
    name: str,
    workers: int,
    *overrides: str,
    num_class_images: int = 8,
) -> Config:
    """A run of the toy recipe without checkpoints, on photographs written to the folder."""
    photos_folder, class_images_folder = folder / "photos", folder / "others"
    if not photos_folder.exists():
        write_photographs(photos_folder, 7, "robot", 5, 256)
        for seed in range(num_class_images):
            write_photographs(class_images_folder / str(seed), 100 + seed, "robot", 1, 256)
            (class_images_folder / str(seed) / "00.png").rename(class_images_folder / f"{seed}.png")
            (class_images_folder / str(seed)).rmdir()
    side_px = _read_model_side_px(setting.model)
    config_overrides = [
        f"run_id={name}", "seed=7", f"model.uri={setting.model}", f"subject.photos={photos_folder}",
        "subject.class_noun=robot",
        f"prior.folder={class_images_folder}", f"prior.count={num_class_images}",
        f"train.resolution={side_px}", f"train.batch_size={workers}", f"train.steps={ENDLESS}",
        f"train.method={'lora' if name.startswith('lora') else 'full'}", "train.lr=1.0e-6",
        f"checkpoint.every={ENDLESS}", f"cluster.workers={workers}", "cluster.max_failures=0",
        f"storage.uri={folder / 'out'}", *overrides,
    ]  # fmt: skip
    return parse_config("", "the benchmark", config_overrides)


def dump_portable_config(config: Config) -> dict[str, Any]:
    """The configuration for a record, without paths of this machine."""
    excluded_keys: Any = {
        "subject": {"photos"},
        "subjects": True,
        "prior": {"folder"},
        "storage": True,
    }
    return config.model_dump(mode="json", exclude=excluded_keys)


def _read_model_side_px(model: str) -> int:
    components = load_components(model_directory(model))
    unet_config: Any = components.unet.config
    return int(unet_config.sample_size) * components.latent_factor


def _make_ray_trainer(
    settings: dict[str, Any], config: Config, storage_path: str, allocator: Mapping[str, str]
) -> Trainer:
    """The trainer of the product's driver. storage_path: of Ray Train's own state."""
    return Trainer(
        gated_worker.train,
        is_local=config.cluster.ray_address is None,
        restarts=RestartRecorder(Store(settings["job"]["run_uri"]), 0),
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=config.cluster.workers, use_gpu=config.cluster.gpus
        ),
        torch_config=TorchConfig(backend="nccl" if config.cluster.gpus else "gloo"),
        run_config=RunConfig(
            name=paths.RAY_TRAIN,
            storage_path=storage_path,
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env={"env_vars": {**allocator, "OMP_NUM_THREADS": "1"}},
        ),
    )


@dataclass(frozen=True)
class GatedRun:
    """A run of the product that waits at its StepGate."""

    gate_actor: Any
    store: Store

    def wait_until_ready(self) -> None:
        """Wait until it has started."""
        ray.get(self.gate_actor.wait_until_ready.remote())

    def run_steps(self, count: int) -> WallAndCpuTime:
        """Let it take so many steps."""
        elapsed: WallAndCpuTime = ray.get(self.gate_actor.run_steps.remote(count))
        return elapsed


@contextmanager
def start_gated_run(config: Config, allocator: Mapping[str, str] = ALLOCATOR) -> Iterator[GatedRun]:
    """Train in the background, as `dreambooth train` does, from turn to turn.

    allocator: environment of the workers that chooses it
    """
    prepared_run = prepare_run(config, QuietDisplay())
    run_store = open_run(config)
    prior_request, prior_store = generate_class_images(prepared_run)
    worker_job = WorkerJob(
        dump_config(config),
        run_store.uri,
        str(prepared_run.directory),
        prior_store.uri,
        prior_request.count,
        prior_request.spec.model_hash,
    )
    gate_actor = ray.remote(num_cpus=0)(StepGateActor).remote()
    training_errors: list[Exception] = []

    def run_trainer() -> None:
        train_loop_settings = {"job": asdict(worker_job), "gate_actor": gate_actor}
        with tempfile.TemporaryDirectory(prefix="dreambooth-ray-train-") as scratch:
            storage_path = run_store.uri if run_store.is_local else scratch
            try:
                _make_ray_trainer(train_loop_settings, config, storage_path, allocator).fit()
            except Exception as error:  # raised by the caller that waits at the gate actor
                training_errors.append(error)
                ray.kill(gate_actor)

    training_thread = threading.Thread(target=run_trainer, name=str(config.run_id), daemon=True)
    training_thread.start()
    try:
        yield GatedRun(gate_actor, run_store)
    except ray.exceptions.RayActorError as error:
        raise training_errors[0] if training_errors else error from error
    finally:  # or the run waits at its gate for ever
        gate_actor.end.remote()
        training_thread.join(60)
