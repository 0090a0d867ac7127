"""How much memory a training step takes, from a model's configuration files alone.

`fake_step` counts weights and activations, once for each model and setting.
"""

import contextlib
import hashlib
import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from platformdirs import user_cache_path

from dreambooth_ray.config.forward_pass_rules import can_be_graphed, needs_base_output
from dreambooth_ray.config.optimizers import TRAITS
from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.model_directory import base_directory
from dreambooth_ray.version import __version__

Strategy = Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"]

# Of 4 bytes of a trained weight, of its gradient and of each of the optimizer's states: which parts
# every worker holds whole. What is not whole is shared by all.
_IS_WHOLE: dict[Strategy, tuple[bool, bool, bool]] = {
    "ddp": (True, True, True),
    "zero1": (True, True, False),
    "zero2": (True, False, False),
    "zero3": (False, False, False),
    "fsdp2": (False, False, False),
}
# On a GPU autocast keeps the inputs of norms in float32, and convolutions take work space. On an
# H100 a step at the size of Stable Diffusion 1.5 (LoRA in bf16, 4 + 4 images) took so much more.
_GPU_ACTIVATIONS = 1.3
# A process holds more than its allocator has given out: pieces between tensors, oneDNN's copies.
_HOST_ACTIVATIONS = 1.5
# Of the section `train`: what is no matter to a count, or comes in afterwards.
_NOT_COUNTED = {
    "steps", "images", "batch_size", "accumulate", "optimizer", "lr", "text_encoder_lr",
    "compile", "lr_schedule", "lr_warmup_steps", "weight_decay", "max_grad_norm", "prompt", "flip",
    "deterministic", "cuda_graphs", "ema_decay", "deepspeed", "buckets", "bucket_step_px",
    "bucket_max_aspect", "crop", "mask_background", "mask_background_target",
}  # fmt: skip
COUNT_KEYS = (
    "trained", "trained_bytes", "trained_unet", "factored", "frozen_unet", "frozen_text",
    "frozen_vae", "with_gradients", "activations",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingFootprint:
    """Peak bytes of one worker during a step.

    states_bytes: weights, optimizer and average of what is trained
    frozen_bytes: the other weights
    activations_bytes: most of what a forward and a backward hold at once, gradients among it
    """

    states_bytes: int
    frozen_bytes: int
    activations_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum."""
        return self.states_bytes + self.frozen_bytes + self.activations_bytes


def read_sharding_strategy(config: Config) -> Strategy:
    """What of a training's states workers share."""
    strategy: Strategy = "fsdp2" if config.train.strategy == "fsdp2" else "ddp"
    if config.train.strategy == "deepspeed":
        zero_strategies: tuple[Strategy, ...] = ("zero1", "zero2", "zero3")
        strategy = zero_strategies[config.train.deepspeed.stage - 1]
    return strategy


def estimate_training_footprint(
    config: Config, directory: Path, strategy: Strategy | None = None
) -> TrainingFootprint:
    """Memory of one worker training `directory` as `config` says, without loading a weight.

    strategy: another than the configuration's
    raises: OSError or ValueError where the directory's configuration files can't be read
    """
    strategy = strategy or read_sharding_strategy(config)
    memory_counts = _load_or_count_memory(config, base_directory(directory))
    # With elastic workers, the smallest number: each holds the most.
    num_workers = config.cluster.span.min
    weights_share, gradients_share, optimizer_share = (
        1.0 if is_whole else 1.0 / num_workers for is_whole in _IS_WHOLE[strategy]
    )
    train_config = config.train
    is_offloaded = (
        config.cluster.gpus
        and train_config.strategy == "deepspeed"
        and train_config.deepspeed.offload
    )
    optimizer_bytes = (
        0.0 if is_offloaded else _count_optimizer_bytes(train_config.optimizer, memory_counts)
    )
    trained_state_bytes = (
        weights_share * memory_counts["trained_bytes"] + optimizer_bytes * optimizer_share
    )
    trained_state_bytes += 4 * memory_counts["trained"] if train_config.ema_decay else 0
    activations_bytes = (
        memory_counts["with_gradients"]
        if _IS_WHOLE[strategy][1]
        else memory_counts["activations"] + int(gradients_share * memory_counts["trained_bytes"])
    )
    if not config.cluster.gpus:
        activations_bytes = int(_HOST_ACTIVATIONS * activations_bytes)
    else:
        activations_bytes += int((_GPU_ACTIVATIONS - 1) * memory_counts["activations"])
        # The graph of the backward writes gradients of its own.
        activations_bytes += memory_counts["trained_bytes"] if can_be_graphed(config) else 0
    return TrainingFootprint(
        states_bytes=int(trained_state_bytes),
        frozen_bytes=_sum_frozen_bytes(config, memory_counts)
        + _count_base_copy_bytes(config, memory_counts, strategy),
        activations_bytes=activations_bytes,
    )


def _count_optimizer_bytes(optimizer: str, counts: dict[str, int]) -> float:
    """Of an optimizer's states, over all workers."""
    optimizer_traits = TRAITS[optimizer]
    factored_bytes = 4.0 * counts["factored"] if optimizer_traits.is_factored else 0.0
    return optimizer_traits.state_bytes * counts["trained"] + factored_bytes


def _sum_frozen_bytes(config: Config, counts: dict[str, int]) -> int:
    """On a GPU, what a step needs; a host holds the others too."""
    if not config.cluster.gpus:
        return counts["frozen_unet"] + counts["frozen_text"] + counts["frozen_vae"]
    is_text_trained = config.train.text_encoder or config.identifier.kind == "learned"
    return counts["frozen_unet"] + (counts["frozen_text"] if is_text_trained else 0)


def _count_base_copy_bytes(config: Config, counts: dict[str, int], strategy: Strategy) -> int:
    """Of the base model beside the trained one, see `models.frozen_copy`."""
    if not needs_base_output(config):
        return 0
    bytes_per_weight = 4 if config.train.precision == "32" else 2
    num_copied_weights = 0 if config.train.method == "lora" else counts["trained_unet"]
    # A whole copy where a strategy shards; what is frozen is in half there already, or in float32.
    return bytes_per_weight * num_copied_weights + (
        0 if strategy == "ddp" else counts["frozen_unet"]
    )


def _load_or_count_memory(config: Config, directory: Path) -> dict[str, int]:
    """A step's counts, from the user's cache if they are there."""
    cache_path = _find_cache_path(config, directory)
    try:
        cached_memory_counts = json.loads(cache_path.read_text())
        return {key: int(cached_memory_counts[key]) for key in COUNT_KEYS}
    except (OSError, ValueError, TypeError, KeyError):
        # Imported only here: it takes seconds.
        from dreambooth_ray.memory.fake_step import count_step  # noqa: PLC0415
    memory_counts = count_step(config, directory, count_worker_batch_images(config))
    with contextlib.suppress(OSError):
        cache_path.parent.mkdir(parents=True, exist_ok=True)
        temporary_path = cache_path.with_suffix(f".{uuid.uuid4().hex}")
        temporary_path.write_text(json.dumps(memory_counts))
        temporary_path.replace(cache_path)
    return memory_counts


def _find_cache_path(config: Config, directory: Path) -> Path:
    """A path that depends on everything the counts depend on."""
    hasher = hashlib.sha256(f"{__version__} {count_worker_batch_images(config)}".encode())
    # A learned word is a row of the text encoder's table.
    has_learned_identifier = config.identifier.kind == "learned"
    learned_words = (
        sorted({config.word(s) for s in config.all_subjects}) if has_learned_identifier else []
    )
    train_settings = config.train.model_dump(mode="json", exclude=_NOT_COUNTED)
    hasher.update(json.dumps([train_settings, config.model.quantization, learned_words]).encode())
    hasher.update(config.identifier.model_dump_json().encode())
    for path in sorted(directory.rglob("*config.json")):
        hasher.update(path.relative_to(directory).as_posix().encode() + path.read_bytes())
    return user_cache_path("dreambooth-ray") / "footprints" / f"{hasher.hexdigest()}.json"


def count_worker_batch_images(config: Config) -> int:
    """Images of both kinds in one worker's batch; a kept output's, as a second forward, again."""
    images_per_step = config.total_images_per_step + (
        config.train.batch_size * config.prior.keeps_output
    )
    return images_per_step // config.cluster.span.max // config.train.accumulate
