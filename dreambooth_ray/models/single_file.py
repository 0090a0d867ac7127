"""Single-file models, as CivitAI, ComfyUI and A1111 have them, written as model directories.

A file holds the weights of Stable Diffusion 1.x, 2.x or XL under their original names, and neither
configuration nor tokenizer: those of the published models come with this package, and are told by
the weights' names and shapes. Files of `dreambooth export` say in their header what they were made
of. Weights are copied as bytes, a piece at a time, in the type that they have. Nothing heavy is
imported.

Source of the names: `single_file_names`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models import single_file_names as names
from dreambooth_ray.models.remote_files import INDEX
from dreambooth_ray.models.single_file_layouts import (
    drop_layers,
    find_published_files,
    read_own_files,
)
from dreambooth_ray.models.stored_tensors import (
    Parts,
    StoredTensor,
    read_tensors,
    write_stored_tensors,
)
from dreambooth_ray.models.weight_files import PICKLES, weight_stem

SUFFIX = ".safetensors"
# In the header of our own files: the small files of their directory, as JSON by name.
METADATA_KEY = "dreambooth_ray.files"
# CLIP's vocabulary, which comes with this package, is larger.
_MAX_SMALL_BYTES = 200_000
_PARTS = (
    "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"
)  # fmt: skip
_ATTENTION = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight")
# Names that tell what else a file may be.
_OTHERS = {
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "FLUX",
    "lora_": "a LoRA, which is no model by itself",
    "control_model.": "a ControlNet",
}


@dataclass(frozen=True)
class SingleFile:
    """What a file holds: weights by part under diffusers' names, and the small files it needs."""

    path: Path
    parts: Parts
    small_files: Mapping[str, str]


def read_single_file(path: Path, prediction_type: str | None = None) -> SingleFile:
    """Look at a file's header. prediction_type: what it predicts, where the file does not say

    raises: ConfigError for pickles, and for files of models that are not known
    """
    if path.suffix in PICKLES:
        raise ConfigError(
            f"{path} is a pickle, which can run code when read; take the model's .safetensors, or "
            "convert it in a sandbox by safetensors' convert.py"
        )
    tensors, metadata = read_tensors(path)
    parts = _find_parts(path, tensors)
    if METADATA_KEY in metadata:
        small_files = read_own_files(metadata[METADATA_KEY])
    else:
        is_v = "v_pred" in tensors  # a mark of SDXL's
        chosen = prediction_type or ("v_prediction" if is_v else None)
        small_files = find_published_files(path, parts, chosen, metadata)
    num_layers = json.loads(small_files["text_encoder/config.json"])["num_hidden_layers"]
    drop_layers(parts["text_encoder"], num_layers)
    return SingleFile(path, parts, small_files)


def write_directory(model: SingleFile, folder: Path, *, whole: bool = True) -> None:
    """Write a file's model as a directory; whole: with the tensors, else headers before a hole."""
    for name, text in model.small_files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for part, tensors in model.parts.items():
        (folder / part).mkdir(exist_ok=True)
        write_stored_tensors(
            model.path, tensors, folder / part / f"{weight_stem(part)}{SUFFIX}", whole
        )


def list_small_files(directory: Path) -> dict[str, str]:
    """Configurations and vocabulary of a model directory, by name, without CLIP's vocabulary."""
    paths = [directory / INDEX]
    paths += [p for part in _PARTS for p in sorted((directory / part).glob("*")) if p.is_file()]
    return {
        path.relative_to(directory).as_posix(): path.read_text("utf-8")
        for path in paths
        if path.is_file()
        and path.suffix in (".json", ".txt")
        and ".index." not in path.name
        and path.stat().st_size <= _MAX_SMALL_BYTES
    }


def count_bytes(model: SingleFile) -> int:
    """Bytes that `write_directory` writes, nearly."""
    return sum(t.end - t.begin for tensors in model.parts.values() for t in tensors.values())


def read_vae(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a VAE's single file, by diffusers' names; raises ConfigError."""
    if path.suffix in PICKLES:
        raise ConfigError(
            f"{path} is a pickle, which can run code when read; take its .safetensors"
        )
    tensors, _ = read_tensors(path)
    vae = _strip(tensors, names.VAE_PREFIX) or dict(tensors)
    if "decoder.conv_in.weight" not in vae:
        raise ConfigError(f"{path} is no VAE: it has no decoder.conv_in.weight")
    if any(".down_blocks." in name for name in vae):
        return vae
    return dict(_convert_vae(vae, names.count_vae_blocks(vae)))


def write_vae(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    config: Mapping[str, object],
    folder: Path,
    *,
    whole: bool,
) -> None:
    """Write a VAE's single file as a part of a directory. config: of the VAE that it stands for"""
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_stored_tensors(path, tensors, folder / f"{weight_stem('vae')}{SUFFIX}", whole)


def _find_parts(path: Path, tensors: Mapping[str, StoredTensor]) -> Parts:
    """raises: ConfigError for what is no Stable Diffusion 1.x, 2.x or XL"""
    unet, vae = (_strip(tensors, prefix) for prefix in (names.UNET_PREFIX, names.VAE_PREFIX))
    text_encoders = _find_text_encoders(tensors)
    other = next((text for start, text in _OTHERS.items() if _has_name(tensors, start)), "")
    if other or not unet or "text_encoder" not in text_encoders:
        what = f"is {other}" if other else "has no text encoder that is known"
        if not other and not unet:
            what = f"has no UNet, but {next(iter(tensors), 'nothing')!r}"
        raise ConfigError(
            f"{path} {what}; a single file must be a whole Stable Diffusion 1.x, 2.x or XL, with a "
            f"UNet ({names.UNET_PREFIX}*) and text encoders (cond_stage_model.*, conditioner.*)"
        )
    if not vae:
        raise ConfigError(f"{path} has no VAE (first_stage_model.*); take the file that has one")
    num_layers, num_blocks = names.count_unet_layers(unet), names.count_vae_blocks(vae)
    return {
        "unet": {
            ours: tensor
            for name, tensor in unet.items()
            if (ours := names.find_unet_name(name, num_layers))
        },
        "vae": dict(_convert_vae(vae, num_blocks)),
        **text_encoders,
    }


def _find_text_encoders(tensors: Mapping[str, StoredTensor]) -> Parts:
    clip, open_clip, first, second = (
        _strip(tensors, prefix)
        for prefix in (
            names.CLIP_PREFIX, names.OPEN_CLIP_PREFIX, names.XL_CLIP_PREFIX,
            names.XL_OPEN_CLIP_PREFIX,
        )
    )  # fmt: skip
    if first and second:
        projected = dict(_convert_open_clip(second))
        if (projection := second.get("text_projection")) is not None:
            projected["text_projection.weight"] = replace(projection, is_transposed=True)
        return {"text_encoder": dict(_convert_clip(first)), "text_encoder_2": projected}
    if clip or open_clip:
        text = _convert_clip(clip) if clip else _convert_open_clip(open_clip)
        return {"text_encoder": dict(text)}
    return {}


def _strip(tensors: Mapping[str, StoredTensor], prefix: str) -> dict[str, StoredTensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _has_name(tensors: Mapping[str, StoredTensor], start: str) -> bool:
    return any(n.removeprefix(names.UNET_PREFIX).startswith(start) for n in tensors)


def _convert_vae(
    vae: Mapping[str, StoredTensor], num_blocks: int
) -> Iterator[tuple[str, StoredTensor]]:
    for name, tensor in vae.items():
        if name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")):
            ours = names.find_vae_name(name, num_blocks)
            # Its attention was made of 1x1 convolutions.
            is_layer = ".attentions." in ours and ours.endswith(_ATTENTION)
            shape = tensor.shape[:2] if is_layer else tensor.shape
            yield ours, StoredTensor(tensor.dtype, shape, tensor.begin, tensor.end)


def _convert_clip(clip: Mapping[str, StoredTensor]) -> Iterator[tuple[str, StoredTensor]]:
    for name, tensor in clip.items():
        if not name.endswith("position_ids"):
            yield f"text_model.{name.removeprefix('text_model.')}", tensor


def _convert_open_clip(clip: Mapping[str, StoredTensor]) -> Iterator[tuple[str, StoredTensor]]:
    for name, tensor in clip.items():
        our_names = names.find_open_clip_names(name)
        for index, ours in enumerate(our_names):
            size_bytes = (tensor.end - tensor.begin) // len(our_names)
            begin = tensor.begin + index * size_bytes
            shape = (tensor.shape[0] // len(our_names), *tensor.shape[1:])
            yield f"text_model.{ours}", StoredTensor(tensor.dtype, shape, begin, begin + size_bytes)
