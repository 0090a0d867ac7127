"""Which settings would make a training step fit, cheapest first."""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dreambooth_ray.config.load import override_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.memory.device_memory import RESERVED_BYTES, usable_bytes
from dreambooth_ray.memory.training_memory import (
    TrainingFootprint,
    count_worker_batch_images,
    estimate_training_footprint,
)

_GIB = 2**30
# Cost nothing, so they stay.
_FREE = ("train.precision",)


@dataclass(frozen=True)
class FittingSettings:
    """settings: "key=value", cheapest first; config: with them; needed_bytes: of a worker then."""

    settings: tuple[str, ...]
    config: Config
    needed_bytes: int

    @property
    def text(self) -> str:
        """Them and what is needed, in words."""
        return f"{self.needed_bytes / _GIB:.1f} GiB with {', '.join(self.settings)}"


@dataclass(frozen=True)
class _MemorySetting:
    """A setting that saves memory. package: that it needs, if any."""

    key: str
    value: object
    package: str = ""

    @property
    def text(self) -> str:
        return f"{self.key}={str(self.value).lower()}"


def is_installed(package: str) -> bool:
    """Whether a package can be imported here."""
    return importlib.util.find_spec(package) is not None


def find_fitting_settings(
    config: Config,
    directory: Path,
    limit_bytes: int,
    has_package: Callable[[str], bool] = lambda package: True,
) -> FittingSettings | None:
    """Settings that together make a worker's step fit into `limit_bytes`.

    They are tried in the order of what they cost: nothing, time, then what is learnt; what turns
    out not to be needed is left out again.
    has_package: whether a setting that needs the package may be taken
    returns: None where even all of them do not fit
    """
    candidate_settings = [
        candidate_setting
        for candidate_setting in _list_memory_settings(config)
        if not candidate_setting.package or has_package(candidate_setting.package)
    ]
    chosen_settings: dict[str, _MemorySetting] = {}
    needed_bytes = estimate_training_footprint(config, directory).total_bytes
    for candidate_setting in candidate_settings:
        if needed_bytes <= limit_bytes:
            break
        extended_settings = {**chosen_settings, candidate_setting.key: candidate_setting}
        changed_config = _apply_settings(config, extended_settings)
        if changed_config is None:
            continue
        changed_bytes = estimate_training_footprint(changed_config, directory).total_bytes
        if changed_bytes < needed_bytes:
            chosen_settings, needed_bytes = extended_settings, changed_bytes
    if needed_bytes > limit_bytes:
        return None
    for setting_key in [
        setting_key for setting_key in reversed(chosen_settings) if setting_key not in _FREE
    ]:
        for reduced_settings in _list_relaxed_settings(
            chosen_settings, setting_key, candidate_settings
        ):
            changed_config = _apply_settings(config, reduced_settings)
            if (
                changed_config
                and estimate_training_footprint(changed_config, directory).total_bytes
                <= limit_bytes
            ):
                chosen_settings = reduced_settings
                break
    fitted_config = _apply_settings(config, chosen_settings) or config
    needed_bytes = estimate_training_footprint(fitted_config, directory).total_bytes
    return FittingSettings(
        tuple(c.text for c in chosen_settings.values()), fitted_config, needed_bytes
    )


def _list_relaxed_settings(
    settings: dict[str, _MemorySetting], key: str, candidate_settings: list[_MemorySetting]
) -> Iterator[dict[str, _MemorySetting]]:
    """Without a key, then with each value of it that comes before the one there."""
    yield {name: candidate_setting for name, candidate_setting in settings.items() if name != key}
    settings_of_key = [
        candidate_setting
        for candidate_setting in candidate_settings
        if candidate_setting.key == key
    ]
    for cheaper_setting in settings_of_key[: settings_of_key.index(settings[key])]:
        yield {**settings, key: cheaper_setting}


def describe_shortage(
    config: Config, directory: Path, footprint: TrainingFootprint, total_bytes: int
) -> str:
    """What a worker needs, what the largest device has, and which settings would fit.

    total_bytes: of the GPU, or of the host where there are no GPUs
    """
    is_gpu = config.cluster.gpus
    part_bytes = (footprint.states_bytes, footprint.frozen_bytes, footprint.activations_bytes)
    states_gib, frozen_gib, activations_gib = (f"{part / _GIB:.1f}" for part in part_bytes)
    reserved_text = f", {RESERVED_BYTES / _GIB:.1f} of them CUDA's own" if is_gpu else ""
    fit_hint = "; memory.fit=true sets what is installed of these itself" if is_gpu else ""
    return (
        f"a worker needs about {footprint.total_bytes / _GIB:.1f} GiB ({states_gib} trained "
        f"weights with optimizer, {frozen_gib} frozen, {activations_gib} activations), and the "
        f"largest {'GPU' if is_gpu else 'host'} has {total_bytes / _GIB:.1f}{reserved_text}; "
        + describe_fitting_settings(
            config, directory, usable_bytes(total_bytes, is_gpu=is_gpu), fit_hint
        )
    )


def describe_fitting_settings(
    config: Config, directory: Path, limit_bytes: int, hint: str = ""
) -> str:
    """Which settings would fit, cheapest first, in words; `hint` follows them."""
    fitting_settings = find_fitting_settings(config, directory, limit_bytes)
    if fitting_settings is None:
        return "no setting makes it fit; lower train.resolution, or take a larger device"
    return f"it would need {fitting_settings.text}{hint}"


def find_heaviest_key(config: Config, footprint: TrainingFootprint) -> str:
    """The key that saves most."""
    if footprint.activations_bytes > footprint.states_bytes:
        return "train.resolution" if count_worker_batch_images(config) <= 2 else "train.batch_size"
    return "train.method"


def _list_memory_settings(config: Config) -> Iterator[_MemorySetting]:
    """Each on top of those before; those that the configuration does not allow are passed over."""
    train_config = config.train
    quantization_setting = _MemorySetting("model.quantization", "nf4", "bitsandbytes")
    if config.cluster.gpus:
        if train_config.precision == "32":
            yield _MemorySetting("train.precision", "bf16-mixed")
        yield _MemorySetting("train.cuda_graphs", False)
        if train_config.optimizer == "adamw":
            yield _MemorySetting("train.optimizer", "adamw8bit", "bitsandbytes")
    worker_batch_size = train_config.batch_size // config.cluster.span.max
    for accumulation_steps in range(train_config.accumulate + 1, worker_batch_size + 1):
        if worker_batch_size % accumulation_steps == 0:
            yield _MemorySetting("train.accumulate", accumulation_steps)
    yield _MemorySetting("train.gradient_checkpointing", True)
    if config.cluster.gpus and config.model.quantization == "none":
        yield quantization_setting
    if train_config.text_encoder and train_config.unet:
        yield _MemorySetting("train.text_encoder", False)
    if train_config.method == "full":
        yield _MemorySetting("train.method", "lora")
        if config.cluster.gpus and config.model.quantization == "none":
            yield quantization_setting


def _apply_settings(config: Config, candidates: dict[str, _MemorySetting]) -> Config | None:
    """The configuration with other values; None where that is not allowed.

    Rates of another method are left to its defaults, as on the command line.
    """
    try:
        return override_config(config, [candidate.text for candidate in candidates.values()])
    except ConfigError:
        return None
