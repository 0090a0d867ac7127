"""Whether a directory holds what families with a UNet and CLIP's text encoders load.

Configurations and the headers of weights are read, no tensor is loaded; nothing heavy is imported.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.config_values import find_bad_value
from dreambooth_ray.models.family import ModelFamily, TextEncoderPart
from dreambooth_ray.models.part_configs import (
    CONFIG_FILES,
    SAMPLE_SIZE,
    read_json,
    read_part_config,
)
from dreambooth_ray.models.pipeline_checks import check_parts, describe_directory, read_shapes
from dreambooth_ray.models.weight_shapes import find_mismatch

Configs = dict[str, dict[str, Any]]
_COPY_AGAIN = "copy it again, or take a model that diffusers has written"


def read_configs(directory: Path, family: ModelFamily) -> Configs:
    """Of all networks by part, with defaults, once their values are known to be usable.

    raises: ConfigError naming the file
    """
    check_parts(directory, family)
    configs = {part.name: read_part_config(directory, part.name) for part in family.networks}
    scheduler = read_part_config(directory, "scheduler")
    for part, config in {**configs, "scheduler": scheduler}.items():
        if problem := find_bad_value(part, config):
            path = directory / part / CONFIG_FILES[part]
            raise ConfigError(f"{path}: {problem}; {_COPY_AGAIN}")
    return configs


def check_widths(directory: Path, family: ModelFamily, configs: Configs) -> None:
    """Whether the UNet takes what the text encoders and the VAE give.

    raises: ConfigError
    """
    folder, unet = directory / "unet", configs["unet"]
    names = [part.name for part in family.text_encoders]
    width, hidden = unet["cross_attention_dim"], sum(configs[n]["hidden_size"] for n in names)
    if width != hidden:
        raise ConfigError(
            f"{folder} takes text embeddings of width {width}, and {'/ and '.join(names)}/ "
            f"{'gives' if len(names) == 1 else 'give'} {hidden}; the parts are of different models"
        )
    channels, latent_channels = unet["in_channels"], configs["vae"]["latent_channels"]
    # As they are, or with a mask and the masked image's latents behind them.
    if channels not in (latent_channels, 2 * latent_channels + 1):
        raise ConfigError(
            f"{folder} takes {channels} channels, and vae/ gives {latent_channels}; "
            f"{describe_directory(family)}, one that images are generated from"
        )


def check_files(directory: Path, family: ModelFamily, configs: Configs) -> None:
    """Scheduler, tokenizers and weights, by their configurations.

    raises: ConfigError naming the file
    """
    _check_scheduler(directory, describe_directory(family))
    for part in family.text_encoders:
        _check_tokenizer(directory, part, configs[part.name])
    for network in family.networks:
        shapes = read_shapes(directory, network)
        if problem := find_mismatch(network.name, configs[network.name], shapes):
            raise ConfigError(
                f"{directory / network.name}: {problem}; the files are of different models"
            )


def choose_sampled_alone(family: ModelFamily, directory: Path) -> ModelFamily:
    """The family, without methods to train it by where its UNet sees a masked image."""
    num_channels = _read_config(directory, "unet").get("in_channels")
    num_latent_channels = _read_config(directory, "vae").get("latent_channels")
    if num_channels == num_latent_channels:
        return family
    return replace(
        family,
        methods=(),
        instead=f"an inpainting model, its UNet takes {num_channels} channels: images can be "
        "generated with it, and it can't be trained; take the model that it was made from",
    )


def _read_config(directory: Path, part: str) -> dict[str, Any]:
    """Empty where it can't be read, which the directory's check says better."""
    try:
        return read_part_config(directory, part)
    except ConfigError:
        return {}


def read_default_side(directory: Path) -> int:
    """Of the square images that it was trained on, by the UNet's sample_size; pixels."""
    sample_size = read_part_config(directory, "unet")["sample_size"] or SAMPLE_SIZE
    blocks = read_part_config(directory, "vae")["block_out_channels"]
    return int(sample_size * 2 ** (len(blocks) - 1))


def read_size_multiple(directory: Path) -> int:
    """The UNet halves latents at every block but the last."""
    vae, unet = read_part_config(directory, "vae"), read_part_config(directory, "unet")
    blocks = len(vae["block_out_channels"]) + len(unet["block_out_channels"]) - 2
    return int(2**blocks)


def _check_scheduler(directory: Path, what: str) -> None:
    scheduler = read_part_config(directory, "scheduler")
    name, kind = str(scheduler.get("_class_name", "")), scheduler["prediction_type"]
    if "Flow" in name or "EDM" in name:
        raise ConfigError(f"{directory / 'scheduler'} is a {name}; {what}")
    if kind not in ("epsilon", "v_prediction"):
        raise ConfigError(
            f"{directory / 'scheduler'} says prediction_type={kind!r}; epsilon and v_prediction "
            "can be trained and sampled"
        )


def _check_tokenizer(directory: Path, part: TextEncoderPart, text_encoder: dict[str, Any]) -> None:
    folder = directory / part.tokenizer
    if (folder / "tokenizer.json").is_file():
        words = read_json(folder / "tokenizer.json").get("model", {}).get("vocab", {})
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        words = read_json(folder / "vocab.json")
        _check_merges(folder / "merges.txt", words)
    else:
        raise ConfigError(
            f"{folder} has neither tokenizer.json nor vocab.json and merges.txt; copy it again"
        )
    if not words or max(words.values()) >= text_encoder["vocab_size"]:
        raise ConfigError(
            f"{folder} knows {len(words)} words and {part.name}/ {text_encoder['vocab_size']}; "
            "the parts are of different models"
        )
    _check_special_tokens(folder, words)


def _check_special_tokens(folder: Path, words: Mapping[str, int]) -> None:
    """A begin or an end that is no word would get a number that the text encoder has no row for.

    What the second file says goes before what the first does.
    """
    config: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            config |= read_json(folder / name)
    if problem := find_bad_value("tokenizer", config):
        raise ConfigError(f"{folder}: {problem}; {_COPY_AGAIN}")
    for key in ("bos_token", "eos_token", "pad_token"):
        token = config.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if text is not None and text not in words:
            raise ConfigError(
                f"{folder}: {key}={text!r} is no word of the tokenizer; {_COPY_AGAIN}"
            )


def _check_merges(path: Path, words: dict[str, int]) -> None:
    """Each word longer than a letter is made by a merge, and each merge makes a word.

    A file that was cut off would be read without a word, and prompts split otherwise.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    merged = {line.replace(" ", "") for line in lines[1:] if line.strip()}
    long_words = {w for w in words if len(w.removesuffix("</w>")) > 1 and w[0] != "<"}
    if differing := sorted((long_words - merged) | (merged - words.keys())):
        raise ConfigError(
            f"{path} and vocab.json differ in {len(differing)} words, {differing[0]!r} for one; "
            "copy both again"
        )
