"""A look at everything that a run needs, before anything is started.

Nothing heavy is imported here: a person who mistyped something waits for no torch and no Ray.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dreambooth_ray.config.learning_rates import check_rates
from dreambooth_ray.config.prior import PriorConfig
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.photographs import describe_unread, find_photographs
from dreambooth_ray.data.preserved_captions import check_preserved_captions
from dreambooth_ray.data.remote_images import photographs_folder
from dreambooth_ray.data.run_inputs import RunInputs, digest_files, record_photographs
from dreambooth_ray.data.subject import (
    identifier_warning,
    read_configured_subject,
    split_photographs,
)
from dreambooth_ray.models.model_checks import check_method
from dreambooth_ray.models.source import check_resolution, model_directory
from dreambooth_ray.priors.class_folder import MAX_PHOTOGRAPHS
from dreambooth_ray.storage.store import Store, use_options
from dreambooth_ray.training.required_packages import check_packages


class Display(Protocol):
    """Where progress is shown."""

    def say(self, text: str) -> None:
        """One line for the person."""

    def show_priors(self, num_done: int, total: int) -> None:
        """Class images so far."""

    def show_training(self, run: Store, config: Config, work: Callable[[], None]) -> None:
        """Do `work`, showing the run's metrics meanwhile."""


@dataclass(frozen=True)
class PreparedRun:
    """A configuration whose inputs have all been looked at and found usable."""

    config: Config
    directory: Path
    inputs: RunInputs | None = None


def prepare_run(config: Config, display: Display) -> PreparedRun:
    """Refuse bad input before any work: photographs, model, resolution, storage.

    raises: ConfigError, DataError, StorageError
    """
    use_options(config.storage.uri, config.storage.options)
    directory = model_directory(config.model.uri)
    check_resolution(directory, config.train.resolution)
    check_method(config, directory)
    check_packages(config)
    for rate_warning in check_rates(config):
        display.say(f"warning: {rate_warning}")
    records = []
    for subject in config.all_subjects:
        photographs = read_configured_subject(config, subject)
        split_photographs(config, photographs)
        check_preserved_captions(config, subject, photographs)
        records.append(record_photographs(photographs, config.instance_prompts(subject)))
        if unread := describe_unread(photographs_folder(subject.photos)):
            display.say(f"warning: subject.photos={subject.photos!r}: {unread}")
        warning = identifier_warning(config.word(subject), subject.class_noun)
        if warning:
            display.say(f"warning: {warning}")
    if config.choice.rule == "best":
        from dreambooth_ray.evaluation.checkpoint_evaluator import check_choice  # noqa: PLC0415  loads torch

        check_choice(config, directory)
    Store(config.storage.uri).check_writable()
    inputs = RunInputs(tuple(records), _digest_class_images(config.prior), directory)
    return PreparedRun(config, directory, inputs)


def _digest_class_images(prior: PriorConfig) -> str:
    if not (prior.folder and prior.count):
        return ""
    return digest_files(find_photographs(Path(prior.folder), MAX_PHOTOGRAPHS, key="prior.folder"))
