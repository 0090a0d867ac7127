"""Which settings would make a training step fit, cheapest first."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from dreambooth_ray.config.schema import Config
from dreambooth_ray.memory.training_memory import Strategy, estimate_footprint


def find_fitting_settings(
    config: Config, directory: Path, limit_bytes: int, strategy: Strategy = "ddp"
) -> tuple[list[str], int] | None:
    """Settings that together make a worker's step fit into `limit_bytes`, and what it takes then.

    They are tried in the order of what they cost: nothing, time, then what is learnt.
    returns: None where even all of them do not
    """
    settings: list[str] = []
    needed_bytes = estimate_footprint(config, directory, strategy).total_bytes
    for key, value in _list_candidates(config):
        changed = _change(config, key, value)
        if changed is None:
            continue
        changed_bytes = estimate_footprint(changed, directory, strategy).total_bytes
        if changed_bytes >= needed_bytes:
            continue
        config, needed_bytes = changed, changed_bytes
        settings.append(f"{key}={str(value).lower()}")
        if needed_bytes <= limit_bytes:
            return settings, needed_bytes
    return None


def _list_candidates(config: Config) -> Iterator[tuple[str, object]]:
    """(key, value), each on top of those before."""
    train = config.train
    if config.cluster.gpus:
        if train.precision == "32":
            yield "train.precision", "bf16-mixed"
        yield "train.cuda_graphs", False
        if train.optimizer == "adamw":
            yield "train.optimizer", "adamw8bit"
    share = train.batch_size // config.cluster.span.max
    if train.accumulate < share:
        yield "train.accumulate", share
    yield "train.gradient_checkpointing", True
    if train.text_encoder and train.method == "full":
        yield "train.text_encoder", False
    if train.method == "full":
        yield "train.method", "lora"


def _change(config: Config, key: str, value: object) -> Config | None:
    """The configuration with one value changed; None where that is not allowed."""
    values = config.model_dump(mode="json")
    section, name = key.split(".")
    values[section][name] = value
    try:
        return Config.model_validate(values)
    except ValidationError:
        return None
