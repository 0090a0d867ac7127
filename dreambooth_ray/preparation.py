"""A look at everything that a run needs, before anything is started.

Nothing heavy is imported here: a person who mistyped something waits for no torch and no Ray.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from dreambooth_ray.config.idle_settings import find_idle_settings
from dreambooth_ray.config.learning_rate_rules import check_rates
from dreambooth_ray.config.prior import PriorConfig
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.class_shapes import list_class_shapes
from dreambooth_ray.data.image_shapes import ImageShape
from dreambooth_ray.data.photographs import describe_unread, find_photographs
from dreambooth_ray.data.remote_images import fetch_photographs_folder
from dreambooth_ray.data.run_inputs import (
    PhotographRecord,
    RunInputs,
    digest_files,
    read_model_pins,
    record_photographs,
)
from dreambooth_ray.data.subject import Photograph, describe_enlarged_photographs, split_photographs
from dreambooth_ray.data.subject_doubts import read_checked_photographs
from dreambooth_ray.errors import CapacityError
from dreambooth_ray.memory.device_memory import list_gpu_total_bytes, usable_bytes
from dreambooth_ray.memory.memory_advice import (
    describe_shortage,
    find_fitting_settings,
    find_heaviest_key,
    is_installed,
)
from dreambooth_ray.memory.training_memory import estimate_training_footprint
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_checks import check_training_settings
from dreambooth_ray.models.model_defaults import fill_model_defaults
from dreambooth_ray.models.model_directory import (
    base_directory,
    check_image_sizes,
    model_directory,
    model_outline,
)
from dreambooth_ray.models.model_mirror import share_model
from dreambooth_ray.models.model_source import (
    find_packaged_model,
    make_absolute,
    parse_source,
    pin_source,
)
from dreambooth_ray.models.prompt_limits import check_prompts
from dreambooth_ray.models.weight_cache import set_model_cache_limit
from dreambooth_ray.priors.own_class_photographs import MAX_PHOTOGRAPHS
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store, use_storage_options
from dreambooth_ray.training.required_packages import check_packages


class Display(Protocol):
    """Where progress is shown."""

    def say(self, text: str) -> None:
        """One line for the person."""

    def show_prior_progress(self, num_done: int, total: int) -> None:
        """Class images so far."""

    def show_training_progress(self, run: Store, config: Config, work: Callable[[], None]) -> None:
        """Do `work`, showing the run's metrics meanwhile."""


@dataclass(frozen=True)
class PreparedRun:
    """A configuration whose inputs have all been looked at and found usable.

    class_shapes: of class images, in turns; none where all are squares of one size
    """

    config: Config
    directory: Path
    inputs: RunInputs | None = None
    class_shapes: tuple[ImageShape, ...] = ()


def prepare_run(config: Config, display: Display) -> PreparedRun:
    """Refuse bad input before any work: photographs, model, resolution, storage.

    raises: ConfigError, DataError, StorageError
    """
    use_storage_options(config.storage.uri, config.storage.options)
    set_model_cache_limit(config.storage.model_cache_gb)
    model_source = _pin_model(config)
    outline_folder = model_outline(model_source)
    check_image_sizes(outline_folder, config.train)
    check_training_settings(config, outline_folder)
    base_model_folder = base_directory(outline_folder)
    config = fill_model_defaults(config, find_family(base_model_folder))
    check_prompts(base_model_folder, (("prior.prompt", prompt) for prompt in config.class_prompts))
    check_prompts(
        base_model_folder, (("sample.prompts", prompt) for prompt in config.sample_prompts)
    )
    check_packages(config)
    for warning_text in (*check_rates(config), *find_idle_settings(config)):
        display.say(f"warning: {warning_text}")
    photograph_records, trained_photographs = _check_subjects(config, base_model_folder, display)
    class_shapes = list_class_shapes(config, trained_photographs)
    if config.choice.rule == "best":
        from dreambooth_ray.evaluation.checkpoint_evaluator import check_choice_protocol  # noqa: PLC0415  loads torch

        check_choice_protocol(config, outline_folder)
    Store(config.storage.uri).check_writable()
    class_images_digest = _digest_class_images(config.prior)
    # Last: what can be refused is, before anything large is fetched.
    model_folder = _fetch_model(config, model_source)
    absolute_source = make_absolute(config.model.source)
    pins = (
        {absolute_source: make_absolute(model_source)}
        if model_source not in (absolute_source, config.model.source)
        else {}
    )
    run_inputs = RunInputs(tuple(photograph_records), class_images_digest, model_folder, pins)
    return PreparedRun(config, model_folder, run_inputs, class_shapes)


def _check_subjects(
    config: Config, base: Path, display: Display
) -> tuple[list[tuple[PhotographRecord, ...]], list[Photograph]]:
    """Look at the photographs and captions of all subjects, and say what is doubtful.

    base: the base model's directory
    returns: the records of each subject's photographs, and all that are trained on
    raises: ConfigError, DataError
    """
    photograph_records, trained_photographs = [], list[Photograph]()
    for subject in config.all_subjects:
        photographs, photo_warnings = read_checked_photographs(config, subject)
        trained_photographs += split_photographs(config, photographs)[0]
        check_prompts(base, ((str(p.path), caption) for p in photographs for caption in p.captions))
        photograph_records.append(record_photographs(photographs, config.instance_prompts(subject)))
        warning_prefix = f"subject.photos={subject.photos!r}: "
        for config_key, warning_text in photo_warnings:
            display.say(
                f"warning: {warning_prefix if config_key == 'subject.photos' else ''}{warning_text}"
            )
        if unread_files_warning := describe_unread(fetch_photographs_folder(subject.photos)):
            display.say(f"warning: {warning_prefix}{unread_files_warning}")
    if not config.train.has_one_shape:
        for enlarged_warning in describe_enlarged_photographs(trained_photographs):
            display.say(f"warning: {enlarged_warning}")
    return photograph_records, trained_photographs


def _fetch_model(config: Config, source: str) -> Path:
    """Where the model lies here; on a cluster it is put into the storage for hosts that lack it."""
    storage = Store(config.storage.uri)
    # A folder as storage is one that all hosts see, and so are directories then.
    is_on_shared_folder = storage.is_local and parse_source(source).is_directory
    if config.cluster.ray_address is None or is_on_shared_folder or find_packaged_model(source):
        return model_directory(source)
    return share_model(source, "model.uri", storage)


def _pin_model(config: Config) -> str:
    """The configured model; where it is of the hub, at the commits that the run began with."""
    absolute_source = make_absolute(config.model.source)
    pins: dict[str, str] = {}
    if config.run_id is not None:
        pins = read_model_pins(Store(config.storage.uri).sub(paths.run(config.run_id)))
    return pins.get(absolute_source) or pin_source(config.model.source, "model.uri")


def _digest_class_images(prior: PriorConfig) -> str:
    if not (prior.folder and prior.num_images):
        return ""
    return digest_files(find_photographs(Path(prior.folder), MAX_PHOTOGRAPHS, key="prior.folder"))


def fit_into_memory(prepared: PreparedRun, say: Callable[[str], None]) -> PreparedRun:
    """Refuse a training whose step would not fit into this machine's GPUs, as far as they tell.

    say: gets a line for the person
    returns: as it was; with memory.fit, with the settings that make it fit
    raises: CapacityError, with the settings that would fit, unless memory.fit is set
    """
    config, model_folder = prepared.config, prepared.directory
    if not config.cluster.gpus:
        return prepared
    is_local_cluster = config.cluster.ray_address is None
    # A worker may get any of them.
    gpu_memory_bytes = min(list_gpu_total_bytes(), default=0) if is_local_cluster else 0
    if not gpu_memory_bytes:
        if config.memory.fit:
            say(
                "warning: memory.fit=true changes nothing: "
                f"{_explain_unknown_memory(is_local_cluster)}"
            )
        return prepared
    training_footprint = estimate_training_footprint(config, model_folder)
    memory_limit_bytes = usable_bytes(gpu_memory_bytes, is_gpu=True)
    if training_footprint.total_bytes <= memory_limit_bytes:
        return prepared
    if config.memory.fit:
        fitting_settings = find_fitting_settings(
            config, model_folder, memory_limit_bytes, is_installed
        )
        if fitting_settings is not None:
            say(f"memory.fit: a worker takes about {fitting_settings.text}")
            return replace(prepared, config=fitting_settings.config)
    shortage_text = describe_shortage(config, model_folder, training_footprint, gpu_memory_bytes)
    raise CapacityError(f"{find_heaviest_key(config, training_footprint)}: {shortage_text}")


def _explain_unknown_memory(is_local_cluster: bool) -> str:
    if is_local_cluster:
        return "nvidia-smi tells of no GPU here"
    return (
        "the GPUs are a cluster's; `dreambooth submit --cluster` fits a run to those that are "
        "there when it is submitted"
    )
