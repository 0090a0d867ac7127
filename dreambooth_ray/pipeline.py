"""The whole flow on one screen: photographs to a bundle.

    photos -> Subject -> PriorSet -> Checkpoint -> Bundle

Each stage is skipped when its committed result is there, so to resume is to run again.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dreambooth_ray.config.load import dump_config, parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.subject import identifier_warning, read_subject
from dreambooth_ray.diffusion.components import check_resolution, model_directory, model_hash
from dreambooth_ray.diffusion.methods import check_method
from dreambooth_ray.errors import CheckpointError, ConfigError
from dreambooth_ray.export.bundle import export_bundle
from dreambooth_ray.priors.plan import PriorSpec
from dreambooth_ray.priors.pool import make_priors
from dreambooth_ray.storage import layout
from dreambooth_ray.storage.manifest import MANIFEST
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training import driver
from dreambooth_ray.training.checkpoint import committed_steps
from dreambooth_ray.training.job import Job


class Display(Protocol):
    """Where progress is shown."""

    def say(self, text: str) -> None:
        """One line for the person."""

    def priors(self, done: int, total: int) -> None:
        """Class images so far."""

    def training(self, run: Store, config: Config, work: Callable[[], None]) -> None:
        """Do `work`, showing the run's metrics meanwhile."""


@dataclass(frozen=True)
class Prepared:
    """A configuration whose inputs have all been looked at and found usable."""

    config: Config
    directory: Path


def prepare(config: Config, display: Display) -> Prepared:
    """Refuse bad input before any work: photographs, model, resolution, storage.

    raises: ConfigError, DataError, StorageError
    """
    directory = model_directory(config.model.uri)
    check_resolution(directory, config.train.resolution)
    check_method(config, directory)
    read_subject(Path(config.subject.photos), config.instance_prompt, config.train.resolution)
    warning = identifier_warning(config.subject.identifier, config.subject.class_noun)
    if warning:
        display.say(f"warning: {warning}")
    Store(config.storage.uri).check_writable()
    return Prepared(config, directory)


def open_run(config: Config) -> Store:
    """The run's folder, with its configuration stored; an existing run must have the same.

    raises: ConfigError if run_id names a run of another configuration
    """
    run_id = config.run_id or _new_run_id(config)
    photos = str(Path(config.subject.photos).resolve())
    resolved = config.model_copy(
        update={"run_id": run_id, "subject": config.subject.model_copy(update={"photos": photos})}
    )
    run = Store(config.storage.uri).sub(layout.run(run_id))
    if run.create(layout.CONFIG, dump_config(resolved).encode()):
        return run
    stored = read_run_config(run)
    if _identity(stored) != _identity(resolved):
        raise ConfigError(
            f"run_id={run_id!r} is a run with another configuration ({run.uri}/{layout.CONFIG}); "
            "choose another run_id, or resume that run as it is"
        )
    return run


def read_run_config(run: Store) -> Config:
    """The configuration a run was started with; raises CheckpointError if there is none."""
    try:
        text = run.read(layout.CONFIG).decode()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{run.uri} is not a run: it has no {layout.CONFIG}; give the URI that "
            "`dreambooth train` printed"
        ) from error
    return parse_config(text, f"{run.uri}/{layout.CONFIG}", [])


def draw_priors(prepared: Prepared, display: Display) -> Store:
    """Draw the class images that are missing; returns their store."""
    config = prepared.config
    spec = PriorSpec(
        model_hash=model_hash(prepared.directory),
        prompt=config.class_prompt,
        num_inference_steps=config.prior.num_inference_steps,
        guidance_scale=config.prior.guidance_scale,
        size_px=config.train.resolution,
        seed=config.seed,
        chunk_size=config.prior.batch_size,
    )
    return make_priors(
        spec,
        config.prior.count,
        prepared.directory,
        Store(config.storage.uri),
        config.prior.actors,
        config.cluster.gpus,
        display.priors,
    )


def train(prepared: Prepared, run: Store, display: Display) -> None:
    """Class images, training, bundle: from wherever the run stands to its end."""
    config = prepared.config
    if committed_steps(run)[-1:] != [config.train.steps]:
        priors = draw_priors(prepared, display)
        job = Job(
            config=dump_config(config),
            run_uri=run.uri,
            model_directory=str(prepared.directory),
            photos=str(Path(config.subject.photos).resolve()),
            priors_uri=priors.uri,
        )
        display.training(run, config, lambda: driver.train(job, config.cluster, run))
    export_bundle(config, prepared.directory, run)


def is_finished(run: Store) -> bool:
    """Whether a run has its bundle, committed."""
    return run.exists(f"{layout.BUNDLE}/{MANIFEST}")


def _identity(config: Config) -> dict[str, object]:
    """What makes two configurations the same run: all but where it runs."""
    return config.model_dump(exclude={"cluster", "storage"})


def _new_run_id(config: Config) -> str:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    digest = hashlib.sha256(f"{dump_config(config)}{time.time_ns()}".encode()).hexdigest()[:6]
    noun = "".join(c if c.isalnum() else "-" for c in config.subject.class_noun.lower())
    return f"{noun}-{stamp}-{digest}"
