"""Whether a model can be trained as configured, by its files alone.

Nothing heavy is imported here, as in `model_directory`.
"""

from collections.abc import Iterator
from pathlib import Path

from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.training import TrainConfig
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.family import ModelFamily, find_family
from dreambooth_ray.models.family_support import check_support
from dreambooth_ray.models.model_directory import base_directory
from dreambooth_ray.models.part_configs import read_part_config
from dreambooth_ray.models.weight_files import find_weights

# Of a linear layer's weights and of a convolution's.
_DIMENSIONS = (2, 4)


def check_method(config: Config, directory: Path) -> None:
    """Refuse settings that this model can't be trained with.

    raises: ConfigError
    """
    train, directory = config.train, base_directory(directory)
    family = find_family(directory)
    check_support(config, family)
    prediction_type = read_part_config(directory, "scheduler")["prediction_type"]
    if config.loss.zero_terminal_snr and prediction_type != "v_prediction":
        raise ConfigError(
            "loss.zero_terminal_snr=true needs a model that predicts velocity: at zero SNR "
            "the noise is all there is to see; set it false for this model"
        )
    if train.method == "lora":
        _check_targets(train, family, directory)
    if family.can("clip_skip"):
        _check_clip_skip(config, family, directory)
    if config.identifier.kind == "learned":
        # The only check that needs a library: the files alone do not answer it.
        from transformers import CLIPTokenizer  # noqa: PLC0415

        from dreambooth_ray.models import tokens  # noqa: PLC0415

        for part in family.trainable_text_encoders:
            tokenizer = CLIPTokenizer.from_pretrained(directory, subfolder=part.tokenizer)
            tokens.check_words(tokenizer, [config.word(s) for s in config.all_subjects])


def _check_clip_skip(config: Config, family: ModelFamily, directory: Path) -> None:
    configs = [read_part_config(directory, part.name) for part in family.text_encoders]
    num_layers = min(encoder["num_hidden_layers"] for encoder in configs)
    for key, params in (("prior", config.prior), ("sample", config.sample)):
        if params.clip_skip + family.layers_left_out >= num_layers:
            raise ConfigError(
                f"{key}.clip_skip={params.clip_skip} leaves nothing of a text encoder of "
                f"{num_layers} layers; set it lower"
            )


def _check_targets(train: TrainConfig, family: ModelFamily, directory: Path) -> None:
    lora = train.lora
    checks = []
    if train.unet:
        targets = lora.target_modules or family.lora_targets
        checks.append(("target_modules", family.denoiser.name, targets))
    if train.text_encoder:
        targets = lora.text_target_modules or family.text_lora_targets
        checks += [
            ("text_target_modules", part.name, targets) for part in family.trainable_text_encoders
        ]
    for key, part, targets in checks:
        layer_names = set(_list_layers(directory / part, part))
        missing = [
            t for t in targets if not any(n == t or n.endswith(f".{t}") for n in layer_names)
        ]
        if missing:
            raise ConfigError(
                f"train.lora.{key}: no linear or convolution layer of the model is named "
                f"{', '.join(missing)}; take names that its layers end with"
            )


def _list_layers(folder: Path, part: str) -> Iterator[str]:
    """Names of linear layers and convolutions, from the headers of the weight files."""
    for name, shape in find_weights(folder, part).read_shapes().items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and not layer.endswith("embedding") and len(shape) in _DIMENSIONS:
            yield layer
