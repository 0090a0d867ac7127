"""Learning rates that go with what is trained: a rate for whole weights moves no adapter."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dreambooth_ray.config.optimizers import TRAITS
from dreambooth_ray.errors import ConfigError

if TYPE_CHECKING:
    from dreambooth_ray.config.schema import Config

# Of train.lr where it is not given: of all weights, by DreamBooth's authors; of keys and values, by
# Custom Diffusion's; of adapters, by diffusers' DreamBooth script.
DEFAULT_RATES = {"full": 5e-6, "kv": 1e-5, "lora": 1e-4}
# Prodigy finds the rate, and takes a factor on it.
PRODIGY_FACTOR = 1.0
_MIN_ADAPTER_RATE = 1e-5
_MIN_WORD_RATE = 1e-4


def default_rate(train: Mapping[str, Any]) -> float:
    """train.lr for the other keys of the section."""
    if train.get("optimizer") == "prodigy":
        return PRODIGY_FACTOR
    traits = TRAITS.get(str(train.get("optimizer")), TRAITS["adamw"])
    rate = DEFAULT_RATES.get(str(train.get("method", "full")), DEFAULT_RATES["full"])
    # As people write it: 5e-6 / 5 is 1.0000000000000002e-06.
    return float(f"{rate / traits.rate_divisor:.6g}")


def find_part_rates(config: "Config") -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each part that is trained.

    Learned words are not decayed: their length has a meaning.
    """
    train = config.train
    rates_by_part = {}
    if train.unet:
        rates_by_part["unet"] = (train.lr, train.weight_decay)
    if config.identifier.kind == "learned":
        rates_by_part["words"] = (config.identifier.lr or train.lr, 0.0)
    if train.text_encoder:
        rates_by_part["text_encoder"] = (train.text_encoder_lr or train.lr, train.weight_decay)
    return rates_by_part


def check_rates(config: "Config") -> list[str]:
    """Warnings about rates at which nothing would be learnt, each naming its key."""
    train, warnings = config.train, []
    if train.optimizer == "prodigy":
        return []
    rate_divisor = TRAITS[train.optimizer].rate_divisor
    if train.method == "lora" and train.lr < _MIN_ADAPTER_RATE / rate_divisor:
        warnings.append(
            f"train.lr={train.lr:g} is a rate for all weights: adapters (train.method=lora) learn "
            f"next to nothing at it; {DEFAULT_RATES['lora'] / rate_divisor:g} is usual"
        )
    if rate_divisor > 1 and train.lr >= DEFAULT_RATES[train.method]:
        warnings.append(
            f"train.lr={train.lr:g} is a rate for AdamW: train.optimizer={train.optimizer} moves "
            f"every weight by the whole of it; {DEFAULT_RATES[train.method] / rate_divisor:g} is "
            "usual"
        )
    word_rate = config.identifier.lr or train.lr
    trains_word_alone = not (train.unet or train.text_encoder)
    min_word_rate = _MIN_WORD_RATE / rate_divisor
    if config.identifier.kind == "learned" and trains_word_alone and word_rate < min_word_rate:
        warnings.append(
            f"identifier.lr={word_rate:g} moves a learned word that is trained alone next to "
            "nowhere; 5e-4 to 5e-3 is usual"
        )
    return warnings


def refuse_prodigy_range_test(config: "Config") -> None:
    """raises: ConfigError where a ramp of train.lr tells nothing"""
    if config.train.optimizer == "prodigy":
        raise ConfigError(
            "train.optimizer=prodigy finds its rate itself, and train.lr is a factor on it; "
            "a ramp tells nothing there: leave train.lr at 1"
        )
