"""Whether a model can be trained as configured, by its files alone.

Nothing heavy is imported here, as in `source`.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open

from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.training import TrainConfig
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.source import base_directory

# Of a linear layer's weights and of a convolution's.
_DIMENSIONS = (2, 4)


def check_method(config: Config, directory: Path) -> None:
    """Refuse settings that this model can't be trained with.

    raises: ConfigError
    """
    train, directory = config.train, base_directory(directory)
    if config.loss.zero_terminal_snr:
        settings = json.loads((directory / "scheduler" / "scheduler_config.json").read_text())
        if settings.get("prediction_type") != "v_prediction":
            raise ConfigError(
                "loss.zero_terminal_snr=true needs a model that predicts velocity: at zero SNR "
                "the noise is all there is to see; set it false for this model"
            )
    if train.method == "lora":
        _check_targets(train, directory)
    _check_clip_skip(config, directory)
    if config.identifier.kind == "learned":
        # The only check that needs a library: the files alone do not answer it.
        from transformers import CLIPTokenizer  # noqa: PLC0415

        from dreambooth_ray.models import tokens  # noqa: PLC0415

        tokenizer = CLIPTokenizer.from_pretrained(directory, subfolder="tokenizer")
        tokens.check_words(tokenizer, [config.word(s) for s in config.all_subjects])


def _check_clip_skip(config: Config, directory: Path) -> None:
    settings = json.loads((directory / "text_encoder" / "config.json").read_text())
    num_layers = settings.get("num_hidden_layers", 12)
    for key, params in (("prior", config.prior), ("sample", config.sample)):
        if params.clip_skip >= num_layers:
            raise ConfigError(
                f"{key}.clip_skip={params.clip_skip} leaves nothing of a text encoder of "
                f"{num_layers} layers; set it lower"
            )


def _check_targets(train: TrainConfig, directory: Path) -> None:
    checks = []
    if train.unet:
        checks.append(("target_modules", "unet", train.lora.target_modules))
    if train.text_encoder:
        checks.append(("text_target_modules", "text_encoder", train.lora.text_target_modules))
    for key, part, targets in checks:
        layer_names = set(_list_layers(directory / part))
        missing = [
            t for t in targets if not any(n == t or n.endswith(f".{t}") for n in layer_names)
        ]
        if missing:
            raise ConfigError(
                f"train.lora.{key}: no linear or convolution layer of the model is named "
                f"{', '.join(missing)}; take names that its layers end with"
            )


def _list_layers(folder: Path) -> Iterator[str]:
    """Names of linear layers and convolutions, from the headers of the weight files."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118  not a dictionary
                layer, _, kind = name.rpartition(".")
                if kind != "weight" or layer.endswith("embedding"):
                    continue
                if len(weights.get_slice(name).get_shape()) in _DIMENSIONS:
                    yield layer
