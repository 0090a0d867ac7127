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
    estimate_footprint,
    images_per_worker,
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
    candidates = [
        candidate
        for candidate in _list_candidates(config)
        if not candidate.package or has_package(candidate.package)
    ]
    settings: dict[str, _MemorySetting] = {}
    needed_bytes = estimate_footprint(config, directory).total_bytes
    for candidate in candidates:
        if needed_bytes <= limit_bytes:
            break
        extended = {**settings, candidate.key: candidate}
        changed = _apply(config, extended)
        if changed is None:
            continue
        changed_bytes = estimate_footprint(changed, directory).total_bytes
        if changed_bytes < needed_bytes:
            settings, needed_bytes = extended, changed_bytes
    if needed_bytes > limit_bytes:
        return None
    for key in [key for key in reversed(settings) if key not in _FREE]:
        for reduced in _list_cheaper(settings, key, candidates):
            changed = _apply(config, reduced)
            if changed and estimate_footprint(changed, directory).total_bytes <= limit_bytes:
                settings = reduced
                break
    fitted = _apply(config, settings) or config
    needed_bytes = estimate_footprint(fitted, directory).total_bytes
    return FittingSettings(tuple(c.text for c in settings.values()), fitted, needed_bytes)


def _list_cheaper(
    settings: dict[str, _MemorySetting], key: str, candidates: list[_MemorySetting]
) -> Iterator[dict[str, _MemorySetting]]:
    """Without a key, then with each value of it that comes before the one there."""
    yield {name: candidate for name, candidate in settings.items() if name != key}
    values = [candidate for candidate in candidates if candidate.key == key]
    for cheaper in values[: values.index(settings[key])]:
        yield {**settings, key: cheaper}


def describe_shortage(
    config: Config, directory: Path, footprint: TrainingFootprint, total_bytes: int
) -> str:
    """What a worker needs, what the largest device has, and which settings would fit.

    total_bytes: of the GPU, or of the host where there are no GPUs
    """
    is_gpu = config.cluster.gpus
    parts = (footprint.states_bytes, footprint.frozen_bytes, footprint.activations_bytes)
    states, frozen, activations = (f"{part / _GIB:.1f}" for part in parts)
    reserved = f", {RESERVED_BYTES / _GIB:.1f} of them CUDA's own" if is_gpu else ""
    hint = "; memory.fit=true sets what is installed of these itself" if is_gpu else ""
    return (
        f"a worker needs about {footprint.total_bytes / _GIB:.1f} GiB ({states} trained weights "
        f"with optimizer, {frozen} frozen, {activations} activations), and the largest "
        f"{'GPU' if is_gpu else 'host'} has {total_bytes / _GIB:.1f}{reserved}; "
        + advise(config, directory, usable_bytes(total_bytes, is_gpu=is_gpu), hint)
    )


def advise(config: Config, directory: Path, limit_bytes: int, hint: str = "") -> str:
    """Which settings would fit, cheapest first, in words; `hint` follows them."""
    fitting = find_fitting_settings(config, directory, limit_bytes)
    if fitting is None:
        return "no setting makes it fit; lower train.resolution, or take a larger device"
    return f"it would need {fitting.text}{hint}"


def find_heaviest_key(config: Config, footprint: TrainingFootprint) -> str:
    """The key that saves most."""
    if footprint.activations_bytes > footprint.states_bytes:
        return "train.resolution" if images_per_worker(config) <= 2 else "train.batch_size"
    return "train.method"


def _list_candidates(config: Config) -> Iterator[_MemorySetting]:
    """Each on top of those before; those that the configuration does not allow are passed over."""
    train, quantized = config.train, _MemorySetting("model.quantization", "nf4", "bitsandbytes")
    if config.cluster.gpus:
        if train.precision == "32":
            yield _MemorySetting("train.precision", "bf16-mixed")
        yield _MemorySetting("train.cuda_graphs", False)
        if train.optimizer == "adamw":
            yield _MemorySetting("train.optimizer", "adamw8bit", "bitsandbytes")
    share = train.batch_size // config.cluster.span.max
    for num_parts in range(train.accumulate + 1, share + 1):
        if share % num_parts == 0:
            yield _MemorySetting("train.accumulate", num_parts)
    yield _MemorySetting("train.gradient_checkpointing", True)
    if config.cluster.gpus and config.model.quantization == "none":
        yield quantized
    if train.text_encoder and train.unet:
        yield _MemorySetting("train.text_encoder", False)
    if train.method == "full":
        yield _MemorySetting("train.method", "lora")
        if config.cluster.gpus and config.model.quantization == "none":
            yield quantized


def _apply(config: Config, candidates: dict[str, _MemorySetting]) -> Config | None:
    """The configuration with other values; None where that is not allowed.

    Rates of another method are left to its defaults, as on the command line.
    """
    try:
        return override_config(config, [candidate.text for candidate in candidates.values()])
    except ConfigError:
        return None
