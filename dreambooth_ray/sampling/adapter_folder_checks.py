"""What a LoRA must not bring where its base model serves other requests as well."""

from pathlib import Path

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models import tokens


def refuse_words_and_schedule(folder: Path) -> None:
    """Refuse learned words and a schedule of its own; raises ConfigError."""
    if tokens.has_words(folder):
        raise ConfigError(
            f"{folder} brings learned words, which one tokenizer can't have for some requests "
            "only; `dreambooth export --format diffusers` makes a model of its own of it"
        )
    if (folder / "scheduler").is_dir():
        raise ConfigError(
            f"{folder} was trained with zero terminal SNR, a schedule that its base model has "
            "not; `dreambooth export --format diffusers` makes a model of its own of it"
        )
