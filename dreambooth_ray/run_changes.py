"""What may change of a run that is trained in part: each key is taken up, or refused with a reason.

Pure: what is stored is read elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dreambooth_ray.config.learning_rate_rules import find_part_rates
from dreambooth_ray.config.schema import Config

_OTHER_WEIGHTS = "its checkpoints hold the weights that were trained so far, and no others"
_OTHER_STATE = "its checkpoints hold the state of the optimizer that was used so far"
_OTHER_SHARDS = "its checkpoints hold weights and optimizer as they were sharded so far"
_OTHER_COUNT = "steps and images are counted by it, those that are done among them"
FIXED_KEYS = {
    "train.method": _OTHER_WEIGHTS,
    "train.unet": _OTHER_WEIGHTS,
    "train.text_encoder": _OTHER_WEIGHTS,
    "train.lora.rank": _OTHER_WEIGHTS,
    "train.lora.dora": _OTHER_WEIGHTS,
    "train.lora.kind": _OTHER_WEIGHTS,
    "train.lora.lokr_factor": _OTHER_WEIGHTS,
    "train.lora.rank_pattern": _OTHER_WEIGHTS,
    "train.lora.target_modules": _OTHER_WEIGHTS,
    "train.lora.text_target_modules": _OTHER_WEIGHTS,
    "identifier.kind": _OTHER_WEIGHTS,
    "train.optimizer": _OTHER_STATE,
    "train.weight_dtype": _OTHER_STATE,
    "train.strategy": _OTHER_SHARDS,
    "train.deepspeed.stage": _OTHER_SHARDS,
    "train.deepspeed.offload": _OTHER_SHARDS,
    "train.batch_size": _OTHER_COUNT,
}
# A key for each pattern.
_RANKS = "train.lora.rank_pattern."
_RATES = (
    "train.lora.loraplus_lr_ratio",
    "train.lr",
    "train.text_encoder_lr",
    "identifier.lr",
    "train.weight_decay",
)
_STEPS = ("train.steps", "train.images")
# What matters without a further step: names, places, and which checkpoint the bundle is made of.
MODEL_KEYS = ("model.uri", "model.vae", "model.text_encoder", "model.prediction_type")
_AT_END = ("subject.name", "subject.photos", *MODEL_KEYS, "choice.", *_STEPS)
_INSTEAD = "leave it, or train it as a new run with another run_id"


@dataclass(frozen=True)
class ConfigChange:
    """A leaf that two configurations differ in."""

    key: str
    stored: Any
    current: Any

    def __str__(self) -> str:
        return f"{self.key} was {self.stored!r} and is {self.current!r}"


def find_config_changes(stored: Any, current: Any, key: str = "") -> list[ConfigChange]:
    """Each leaf that two dumped configurations differ in."""
    if isinstance(stored, dict) and isinstance(current, dict):
        return [
            change
            for key_part in sorted(stored.keys() | current.keys())
            for change in find_config_changes(
                stored.get(key_part),
                current.get(key_part),
                f"{key}.{key_part}" if key else key_part,
            )
        ]
    return [] if stored == current else [ConfigChange(key, stored, current)]


def find_resume_obstacles(
    stored: Config,
    current: Config,
    changes: Sequence[ConfigChange],
    data_differences: Sequence[str],
    committed_step: int,
    last_step: int,
) -> list[str]:
    """Why a run can't go on with `current`, each with key, reason and remedy; none if it can.

    committed_step: of the newest checkpoint, 1 or more; last_step: where the run would end now
    """
    if last_step < committed_step:
        return [
            f"train.steps={last_step}: the run is at step {committed_step} already; give "
            f"{committed_step} to end it there, more to go on, or another run_id"
        ]
    resume_obstacles = [
        f"{change}: {refusal_reason}; {_INSTEAD}"
        for change in changes
        if (refusal_reason := _find_refusal_reason(change, stored, current))
    ]
    if not resume_obstacles and _find_rate_groups(stored) != _find_rate_groups(current):
        rate_keys = [change.key for change in changes if change.key in _RATES]
        resume_obstacles.append(
            f"{', '.join(rate_keys)}: rates that were one are several now, or the other way round, "
            f"and {_OTHER_STATE}; {_INSTEAD}"
        )
    if not resume_obstacles and last_step == committed_step:
        resume_obstacles = _find_idle_changes(current, changes, data_differences, last_step)
    return resume_obstacles


def _find_idle_changes(
    current: Config,
    changes: Sequence[ConfigChange],
    data_differences: Sequence[str],
    last_step: int,
) -> list[str]:
    """Changes that nothing would come of, as the run takes no further step."""
    has_ended_early = current.train.steps > last_step
    idle_changes = [str(c) for c in changes if has_ended_early or not _matters_at_end(c.key)]
    idle_changes += data_differences
    if not idle_changes:
        return []
    remedy_text = (
        "unset validation.patience or raise it" if has_ended_early else "raise train.steps"
    )
    return [
        f"{'; '.join(idle_changes)}: the run is at its end, step {last_step}, and nothing would "
        f"come of it; {remedy_text} as well, or choose another run_id"
    ]


def _matters_at_end(key: str) -> bool:
    return key.startswith(_AT_END)


def _find_refusal_reason(change: ConfigChange, stored: Config, current: Config) -> str:
    """Why a key of a run that is trained in part can't change so; "" where it can."""
    train_config = current.train
    is_unused_setting = (
        (change.key.startswith("train.deepspeed.") and train_config.strategy != "deepspeed")
        or (change.key.startswith("train.lora.") and train_config.method != "lora")
        or (change.key == "train.lora.target_modules" and not train_config.unet)
        or (change.key == "train.lora.text_target_modules" and not train_config.text_encoder)
    )
    if is_unused_setting:
        return ""
    uses_class_images = [bool(config.prior.num_images) for config in (stored, current)]
    if change.key in ("prior.count", "prior.kind") and uses_class_images[0] != uses_class_images[1]:
        return _OTHER_COUNT
    if change.key == "train.precision" and train_config.strategy == "deepspeed":
        return _OTHER_SHARDS
    num_words = [len(config.all_subjects) for config in (stored, current)]
    has_learned_words = current.identifier.kind == "learned"
    if change.key == "subjects" and has_learned_words and num_words[0] != num_words[1]:
        return _OTHER_WEIGHTS
    if change.key.startswith(_RANKS):
        return _OTHER_WEIGHTS
    return FIXED_KEYS.get(change.key, "")


def _find_rate_groups(config: Config) -> list[int]:
    """For each part that is trained, the first that has the same rate and decay."""
    part_rates = list(find_part_rates(config).values())
    uses_loraplus = (
        config.train.method == "lora" and config.train.lora.loraplus_lr_ratio is not None
    )
    return [part_rates.index(rate) for rate in part_rates] + [len(part_rates)] * uses_loraplus
