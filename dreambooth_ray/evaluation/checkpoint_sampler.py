"""Sample images of a training whose workers can't sample: from its checkpoints, by an actor.

Where weights are sharded every worker would have to join each forward. So the process that started
the run follows its checkpoints, as for evaluations.
"""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from dreambooth_ray.config.load import dump_config, parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.evaluation.actor_resources import build_actor_class, has_spare_cluster_device
from dreambooth_ray.evaluation.checkpoint_model import load_checkpoint_model
from dreambooth_ray.models.model_directory import model_hash
from dreambooth_ray.models.model_mirror import locate_model
from dreambooth_ray.models.precision import resolve_device, resolve_sampling_dtype
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.fence import find_checkpoint
from dreambooth_ray.storage.store import Store, use_storage_options
from dreambooth_ray.training.callbacks.samples import make_sample_requests
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.checkpoint.retention import committed_steps

_POLL_LOCAL_S, _POLL_REMOTE_S, _CLOSE_TIMEOUT_S = 0.5, 5.0, 10.0


def is_sample_due(config: Config, step: int) -> bool:
    """Whether a checkpoint is the first at or after a multiple of sample.every. Pure."""
    sample_interval, checkpoint_interval = config.sample.every, config.checkpoint.every
    previous_checkpoint_step = (step - 1) // checkpoint_interval * checkpoint_interval
    return step // sample_interval > previous_checkpoint_step // sample_interval


class CheckpointSampler:
    """Samples the configured prompts with a checkpoint; lives in a Ray actor."""

    def __init__(
        self,
        config: str,
        run_uri: str,
        model: tuple[str, str],
        storage_options: dict[str, Any],
        gpu: bool,
    ) -> None:
        """config: as YAML; model: the base model's directory, and its hash"""
        use_storage_options(run_uri, storage_options)
        torch.set_num_threads(1)
        self._config, self._run = parse_config(config, run_uri, []), Store(run_uri)
        self._directory = locate_model(*model, run_uri)
        self._device = "cuda" if gpu else "cpu"

    def sample(self, step: int) -> None:
        """Sample with the checkpoint of a step, and commit the images.

        raises: CheckpointError if it is gone
        """
        checkpoint_id = find_checkpoint(self._run, step)
        components = load_checkpoint_model(self._config, self._directory, self._run, checkpoint_id)
        dtype = resolve_sampling_dtype(resolve_device(self._device), components.family)
        engine = Engine(components, device=self._device, dtype=dtype)
        sample_outputs = engine.sample(make_sample_requests(self._config))
        with tempfile.TemporaryDirectory(prefix="dreambooth-samples-") as temporary_folder:
            folder = Path(temporary_folder)
            for index, sample_output in enumerate(sample_outputs):
                sample_output.image.save(folder / paths.sample_image_file(index))
            samples_metadata: dict[str, object] = {"kind": "samples", "step": step}
            manifest.commit_artifact(
                self._run, paths.step_samples_artifact(step), folder, samples_metadata
            )


class SampleFollower:
    """Samples every checkpoint that is due, in a thread; its failures end nothing."""

    def __init__(self, config: Config, run: Store, directory: Path) -> None:
        """config: with photographs that every host can read"""
        self._config, self._run, self._directory = config, run, directory
        self._training_ended = threading.Event()
        self._failed_steps: set[int] = set()
        self._actor: Any = None
        self._side_work = SideWork(run)
        self._thread = threading.Thread(target=self._follow, name="samples", daemon=True)

    def start(self) -> None:
        """Follow from now on."""
        self._thread.start()

    def close(self, has_failed: bool) -> None:
        """Sample what is left, unless the training failed."""
        self._training_ended.set()
        if not has_failed:
            self._thread.join()
        self._end_actor()
        self._side_work.close(_CLOSE_TIMEOUT_S)

    def _follow(self) -> None:
        while True:
            # Read before the list: what is committed afterwards is seen next time.
            has_ended = self._training_ended.is_set()
            if self._side_work.run("looking for checkpoints to sample", self._sample_next, False):
                continue
            if has_ended:
                return
            self._training_ended.wait(_POLL_LOCAL_S if self._run.is_local else _POLL_REMOTE_S)

    def _sample_next(self) -> bool:
        """Sample the oldest checkpoint that is due; False if there is none."""
        sampled_steps = paths.parse_sampled_steps(self._run.names(paths.SAMPLES))
        sampled_or_failed_steps = {*sampled_steps, *self._failed_steps}
        steps_to_sample = [s for s in committed_steps(self._run) if is_sample_due(self._config, s)]
        unsampled_steps = [step for step in steps_to_sample if step not in sampled_or_failed_steps]
        if not unsampled_steps:
            return False
        try:
            self._sample_checkpoint(unsampled_steps[0])
        except Exception as error:
            self._failed_steps.add(unsampled_steps[0])
            # Checkpoints may come faster than samples: one that rotation removed is passed over.
            if unsampled_steps[0] in committed_steps(self._run):
                self._side_work.note_failure(
                    f"sampling of the checkpoint of step {unsampled_steps[0]}", error
                )
        return True

    def _sample_checkpoint(self, step: int) -> None:
        config = self._config
        uses_gpu = config.cluster.gpus and has_spare_cluster_device(
            config.cluster, ray.cluster_resources()
        )
        if self._actor is None:
            # No core is asked for: the few images are worth no wait of either side.
            self._actor = build_actor_class(CheckpointSampler, uses_gpu, num_cpus=0).remote(
                dump_config(config), self._run.uri,
                (str(self._directory), model_hash(self._directory)),
                dict(config.storage.options), uses_gpu,
            )  # fmt: skip
        try:
            ray.get(self._actor.sample.remote(step))
        except ray.exceptions.RayTaskError as error:
            raise getattr(error, "cause", error) from None
        finally:
            if uses_gpu:  # the workers may come to wait for it
                self._end_actor()
        if "tensorboard" in config.tracking.loggers:
            self._side_work.run("showing samples", lambda: self._log_to_tensorboard(step), None)

    def _end_actor(self) -> None:
        sampling_actor, self._actor = self._actor, None
        if sampling_actor is not None:
            ray.kill(sampling_actor)

    def _log_to_tensorboard(self, step: int) -> None:
        with tempfile.TemporaryDirectory(prefix="dreambooth-samples-") as temporary_folder:
            is_local = self._run.is_local
            events_folder, samples_folder = (
                Path(temporary_folder) / n for n in ("events", "samples")
            )
            folder = self._run.local_path(paths.TENSORBOARD) if is_local else events_folder
            manifest.download_artifact(self._run, paths.step_samples_artifact(step), samples_folder)
            with SummaryWriter(str(folder), filename_suffix=f".samples-{step}") as writer:
                for index, prompt in enumerate(self._config.sample_prompts):
                    image = _read_image_array(samples_folder / paths.sample_image_file(index))
                    writer.add_image(f"samples/{prompt}", image, step, dataformats="HWC")
            for path in [] if is_local else folder.iterdir():
                self._run.upload(path, f"{paths.TENSORBOARD}/{path.name}")


def _read_image_array(path: Path) -> np.ndarray:
    """(H, W, 3) uint8"""
    with Image.open(path) as image:
        return np.asarray(image)


@contextmanager
def sample_checkpoints_during_training(
    config: Config, run: Store, directory: Path
) -> Iterator[None]:
    """Sample checkpoints while the block trains.

    config: with photographs that every host can read
    """
    sample_follower = SampleFollower(config, run, directory)
    sample_follower.start()
    has_failed = True
    try:
        yield
        has_failed = False
    finally:
        with suppress(CheckpointError):
            sample_follower.close(has_failed)
