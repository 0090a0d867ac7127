"""Whether a model can be trained as configured, by its files alone.

Nothing heavy is imported here, as in `model_directory`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dreambooth_ray.config.adapters import LoraConfig, matches_pattern
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


def check_training_settings(config: Config, directory: Path) -> None:
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

        for text_encoder in family.trainable_text_encoders:
            tokenizer = CLIPTokenizer.from_pretrained(directory, subfolder=text_encoder.tokenizer)
            tokens.check_words(tokenizer, [config.word(s) for s in config.all_subjects])


def _check_clip_skip(config: Config, family: ModelFamily, directory: Path) -> None:
    encoder_configs = [read_part_config(directory, part.name) for part in family.text_encoders]
    min_encoder_layers = min(
        encoder_config["num_hidden_layers"] for encoder_config in encoder_configs
    )
    for config_section, sampling_params in (("prior", config.prior), ("sample", config.sample)):
        if sampling_params.clip_skip + family.layers_left_out >= min_encoder_layers:
            raise ConfigError(
                f"{config_section}.clip_skip={sampling_params.clip_skip} leaves nothing of a text "
                f"encoder of {min_encoder_layers} layers; set it lower"
            )


def _check_targets(train: TrainConfig, family: ModelFamily, directory: Path) -> None:
    lora = train.lora
    target_checks = []
    if train.unet:
        targets = lora.target_modules or family.lora_targets
        target_checks.append(("target_modules", family.denoiser.name, targets))
    if train.text_encoder:
        targets = lora.text_target_modules or family.text_lora_targets
        target_checks += [
            ("text_target_modules", part.name, targets) for part in family.trainable_text_encoders
        ]
    adapted_shapes: dict[str, Sequence[int]] = {}
    for setting_key, part, targets in target_checks:
        layer_shapes = dict(_list_layer_shapes(directory / part, part))
        missing_targets = [
            t for t in targets if not any(_matches_target(layer, t) for layer in layer_shapes)
        ]
        if missing_targets:
            raise ConfigError(
                f"train.lora.{setting_key}: no linear or convolution layer of the model is named "
                f"{', '.join(missing_targets)}; take names that its layers end with"
            )
        adapted_shapes |= {
            layer: shape
            for layer, shape in layer_shapes.items()
            if any(_matches_target(layer, target) for target in targets)
        }
    _check_ranks(lora, adapted_shapes, family.narrow_layers)


def _matches_target(layer: str, target: str) -> bool:
    return layer == target or layer.endswith(f".{target}")


def _check_ranks(
    lora: LoraConfig, shapes: Mapping[str, Sequence[int]], narrow_layers: Sequence[str]
) -> None:
    """raises: ConfigError for a pattern without a layer, and for a rank above a layer's width

    narrow_layers: of the family, which may have the rank of all
    """
    for key, layer_patterns in (("rank", lora.rank_pattern), ("alpha", lora.alpha_pattern)):
        for layer_pattern in layer_patterns:
            if not any(matches_pattern(layer_pattern, layer) for layer in shapes):
                raise ConfigError(
                    f"train.lora.{key}_pattern: {layer_pattern!r} matches no adapted layer, as "
                    f"{next(iter(shapes))}; take what names of adapted layers end with"
                )
    for layer, shape in shapes.items():
        matching_pattern = next((p for p in lora.rank_pattern if matches_pattern(p, layer)), None)
        rank = lora.rank if matching_pattern is None else lora.rank_pattern[matching_pattern]
        layer_width = min(shape[0], math.prod(shape[1:]))
        may_exceed_width = matching_pattern is None and any(
            _matches_target(layer, narrow_layer) for narrow_layer in narrow_layers
        )
        if rank > layer_width and not may_exceed_width:
            key = "rank" if matching_pattern is None else f"rank_pattern.{matching_pattern}"
            raise ConfigError(
                f"train.lora.{key}={rank} is above {layer_width}, the width of {layer}; take at "
                f"most {layer_width}, or give that layer a rank of its own by "
                "train.lora.rank_pattern"
            )


def _list_layer_shapes(folder: Path, part: str) -> Iterator[tuple[str, Sequence[int]]]:
    """Linear layers and convolutions and the shapes of their weights, from the files' headers."""
    for tensor_name, shape in find_weights(folder, part).read_shapes().items():
        layer_name, _, tensor_kind = tensor_name.rpartition(".")
        if (
            tensor_kind == "weight"
            and not layer_name.endswith("embedding")
            and len(shape) in _DIMENSIONS
        ):
            yield layer_name, shape
