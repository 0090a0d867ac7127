"""Whether a directory holds what the loaders of Stable Diffusion 1.x and 2.x need.

Configurations and the headers of weights are read, no tensor is loaded; nothing heavy is imported.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.config_values import find_bad_value
from dreambooth_ray.models.part_configs import CONFIG_FILES, read_json, read_part_config
from dreambooth_ray.models.weight_files import find_weights
from dreambooth_ray.models.weight_shapes import find_mismatch

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
INDEX = "model_index.json"
# All of them are made of the same five parts.
PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionInpaintPipelineLegacy",
)
_COPY_AGAIN = "copy it again, or take a model that diffusers has written"
_WHAT = "it must be a Stable Diffusion 1.x or 2.x directory in diffusers format"


def check_directory(directory: Path) -> None:
    """Read every file that loading depends on.

    raises: ConfigError naming the file and what to do
    """
    if (directory / INDEX).is_file():
        _check_pipeline(read_json(directory / INDEX))
    for part in PARTS:
        if not (directory / part).is_dir():
            raise ConfigError(f"it has no {part}/ in it; {_WHAT}, with {', '.join(PARTS)}")
    configs = {part: read_part_config(directory, part) for part in ("unet", "vae", "text_encoder")}
    _check_classes(directory, configs)
    for part, config in {**configs, "scheduler": read_part_config(directory, "scheduler")}.items():
        if problem := find_bad_value(part, config):
            raise ConfigError(f"{directory / part / CONFIG_FILES[part]}: {problem}; {_COPY_AGAIN}")
    _check_unet(directory, configs)
    _check_scheduler(directory)
    _check_tokenizer(directory, configs["text_encoder"])
    for part, config in configs.items():
        _check_weights(directory, part, config)


def is_inpainting(directory: Path) -> bool:
    """Whether the UNet sees a mask and a masked image beside the latents."""
    unet, vae = read_part_config(directory, "unet"), read_part_config(directory, "vae")
    return bool(unet["in_channels"] != vae["latent_channels"])


def _check_pipeline(index: dict[str, Any]) -> None:
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise ConfigError(f"its {INDEX} says {name}; {_WHAT} ({PIPELINES[0]})")


def _check_classes(directory: Path, configs: dict[str, dict[str, Any]]) -> None:
    for part, name in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")):
        class_name = configs[part].get("_class_name", name)
        if class_name != name:
            raise ConfigError(f"{directory / part} is a {class_name}, not a {name}; {_WHAT}")


def _check_unet(directory: Path, configs: dict[str, dict[str, Any]]) -> None:
    unet, folder = configs["unet"], directory / "unet"
    if unet["addition_embed_type"] == "text_time":
        raise ConfigError(f"{folder} is Stable Diffusion XL's UNet; {_WHAT}")
    for key in ("addition_embed_type", "num_class_embeds", "encoder_hid_dim"):
        if unet[key] is not None:
            raise ConfigError(
                f"{folder} needs inputs beside the prompt ({key}={unet[key]!r}); {_WHAT}"
            )
    width, hidden = unet["cross_attention_dim"], configs["text_encoder"]["hidden_size"]
    if width != hidden:
        raise ConfigError(
            f"{folder} takes text embeddings of width {width}, and text_encoder/ gives {hidden}; "
            "the parts are of different models"
        )
    channels, latent_channels = unet["in_channels"], configs["vae"]["latent_channels"]
    # As they are, or with a mask and the masked image's latents behind them.
    if channels not in (latent_channels, 2 * latent_channels + 1):
        raise ConfigError(
            f"{folder} takes {channels} channels, and vae/ gives {latent_channels}; "
            f"{_WHAT}, one that images are generated from"
        )


def _check_scheduler(directory: Path) -> None:
    scheduler = read_part_config(directory, "scheduler")
    name, kind = str(scheduler.get("_class_name", "")), scheduler["prediction_type"]
    if "Flow" in name:
        raise ConfigError(f"{directory / 'scheduler'} is a {name}; {_WHAT}")
    if kind not in ("epsilon", "v_prediction"):
        raise ConfigError(
            f"{directory / 'scheduler'} says prediction_type={kind!r}; epsilon and v_prediction "
            "can be trained and sampled"
        )


def _check_tokenizer(directory: Path, text_encoder: dict[str, Any]) -> None:
    folder = directory / "tokenizer"
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
            f"{folder} knows {len(words)} words and text_encoder/ {text_encoder['vocab_size']}; "
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


def _check_weights(directory: Path, part: str, config: dict[str, Any]) -> None:
    shapes = find_weights(directory / part, part).read_shapes()
    if problem := find_mismatch(part, config, shapes):
        raise ConfigError(f"{directory / part}: {problem}; the files are of different models")
