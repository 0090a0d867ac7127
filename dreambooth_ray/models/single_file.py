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
from dreambooth_ray.models.remote_model_files import INDEX
from dreambooth_ray.models.single_file_layouts import (
    drop_layers,
    find_published_small_files,
    read_exported_small_files,
)
from dreambooth_ray.models.stored_tensors import (
    Parts,
    StoredTensor,
    read_tensor_places,
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
    tensors, metadata = read_tensor_places(path)
    tensors_by_part = _find_parts(path, tensors)
    if METADATA_KEY in metadata:
        small_files = read_exported_small_files(metadata[METADATA_KEY])
    else:
        is_v_prediction = "v_pred" in tensors  # a mark of SDXL's
        chosen_prediction = prediction_type or ("v_prediction" if is_v_prediction else None)
        small_files = find_published_small_files(path, tensors_by_part, chosen_prediction, metadata)
    num_encoder_layers = json.loads(small_files["text_encoder/config.json"])["num_hidden_layers"]
    drop_layers(tensors_by_part["text_encoder"], num_encoder_layers)
    return SingleFile(path, tensors_by_part, small_files)


def write_directory(model: SingleFile, folder: Path, *, whole: bool = True) -> None:
    """Write a file's model as a directory; whole: with the tensors, else headers before a hole."""
    for file_name, file_text in model.small_files.items():
        (folder / file_name).parent.mkdir(parents=True, exist_ok=True)
        (folder / file_name).write_text(file_text, encoding="utf-8")
    for part, tensors in model.parts.items():
        (folder / part).mkdir(exist_ok=True)
        write_stored_tensors(
            model.path, tensors, folder / part / f"{weight_stem(part)}{SUFFIX}", whole
        )


def read_small_files(directory: Path) -> dict[str, str]:
    """Configurations and vocabulary of a model directory, by name, without CLIP's vocabulary."""
    file_paths = [directory / INDEX]
    file_paths += [
        p for part in _PARTS for p in sorted((directory / part).glob("*")) if p.is_file()
    ]
    return {
        path.relative_to(directory).as_posix(): path.read_text("utf-8")
        for path in file_paths
        if path.is_file()
        and path.suffix in (".json", ".txt")
        and ".index." not in path.name
        and path.stat().st_size <= _MAX_SMALL_BYTES
    }


def count_bytes(model: SingleFile) -> int:
    """Bytes that `write_directory` writes, nearly."""
    return sum(t.end - t.begin for tensors in model.parts.values() for t in tensors.values())


def read_vae_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a VAE's single file, by diffusers' names; raises ConfigError."""
    if path.suffix in PICKLES:
        raise ConfigError(
            f"{path} is a pickle, which can run code when read; take its .safetensors"
        )
    tensors, _ = read_tensor_places(path)
    vae_tensors = _select_by_prefix(tensors, names.VAE_PREFIX) or dict(tensors)
    if "decoder.conv_in.weight" not in vae_tensors:
        raise ConfigError(f"{path} is no VAE: it has no decoder.conv_in.weight")
    if any(".down_blocks." in name for name in vae_tensors):
        return vae_tensors
    return dict(_convert_vae(vae_tensors, names.count_vae_blocks(vae_tensors)))


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
    unet_tensors, vae_tensors = (
        _select_by_prefix(tensors, prefix) for prefix in (names.UNET_PREFIX, names.VAE_PREFIX)
    )
    text_encoder_tensors = _find_text_encoders(tensors)
    other_model_name = next(
        (
            model_title
            for name_prefix, model_title in _OTHERS.items()
            if _has_name_prefix(tensors, name_prefix)
        ),
        "",
    )
    if other_model_name or not unet_tensors or "text_encoder" not in text_encoder_tensors:
        problem = (
            f"is {other_model_name}" if other_model_name else "has no text encoder that is known"
        )
        if not other_model_name and not unet_tensors:
            problem = f"has no UNet, but {next(iter(tensors), 'nothing')!r}"
        raise ConfigError(
            f"{path} {problem}; a single file must be a whole Stable Diffusion 1.x, 2.x or XL, "
            f"with a UNet ({names.UNET_PREFIX}*) and text encoders (cond_stage_model.*, "
            "conditioner.*)"
        )
    if not vae_tensors:
        raise ConfigError(f"{path} has no VAE (first_stage_model.*); take the file that has one")
    resnets_per_block, num_blocks = (
        names.count_resnets_per_block(unet_tensors),
        names.count_vae_blocks(vae_tensors),
    )
    return {
        "unet": {
            diffusers_name: tensor
            for original_name, tensor in unet_tensors.items()
            if (diffusers_name := names.find_diffusers_unet_name(original_name, resnets_per_block))
        },
        "vae": dict(_convert_vae(vae_tensors, num_blocks)),
        **text_encoder_tensors,
    }


def _find_text_encoders(tensors: Mapping[str, StoredTensor]) -> Parts:
    clip_tensors, open_clip_tensors, xl_clip_tensors, xl_open_clip_tensors = (
        _select_by_prefix(tensors, prefix)
        for prefix in (
            names.CLIP_PREFIX, names.OPEN_CLIP_PREFIX, names.XL_CLIP_PREFIX,
            names.XL_OPEN_CLIP_PREFIX,
        )
    )  # fmt: skip
    if xl_clip_tensors and xl_open_clip_tensors:
        second_encoder_tensors = dict(_convert_open_clip(xl_open_clip_tensors))
        if (projection := xl_open_clip_tensors.get("text_projection")) is not None:
            second_encoder_tensors["text_projection.weight"] = replace(
                projection, is_transposed=True
            )
        return {
            "text_encoder": dict(_convert_clip(xl_clip_tensors)),
            "text_encoder_2": second_encoder_tensors,
        }
    if clip_tensors or open_clip_tensors:
        encoder_tensors = (
            _convert_clip(clip_tensors) if clip_tensors else _convert_open_clip(open_clip_tensors)
        )
        return {"text_encoder": dict(encoder_tensors)}
    return {}


def _select_by_prefix(tensors: Mapping[str, StoredTensor], prefix: str) -> dict[str, StoredTensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _has_name_prefix(tensors: Mapping[str, StoredTensor], start: str) -> bool:
    return any(n.removeprefix(names.UNET_PREFIX).startswith(start) for n in tensors)


def _convert_vae(
    vae: Mapping[str, StoredTensor], num_blocks: int
) -> Iterator[tuple[str, StoredTensor]]:
    for original_name, tensor in vae.items():
        if original_name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")):
            diffusers_name = names.find_diffusers_vae_name(original_name, num_blocks)
            # Its attention was made of 1x1 convolutions.
            is_attention_layer = ".attentions." in diffusers_name and diffusers_name.endswith(
                _ATTENTION
            )
            shape = tensor.shape[:2] if is_attention_layer else tensor.shape
            yield diffusers_name, StoredTensor(tensor.dtype, shape, tensor.begin, tensor.end)


def _convert_clip(clip: Mapping[str, StoredTensor]) -> Iterator[tuple[str, StoredTensor]]:
    for name, tensor in clip.items():
        if not name.endswith("position_ids"):
            yield f"text_model.{name.removeprefix('text_model.')}", tensor


def _convert_open_clip(clip: Mapping[str, StoredTensor]) -> Iterator[tuple[str, StoredTensor]]:
    for original_name, tensor in clip.items():
        diffusers_names = names.find_transformers_clip_names(original_name)
        for index, diffusers_name in enumerate(diffusers_names):
            size_bytes = (tensor.end - tensor.begin) // len(diffusers_names)
            begin_byte = tensor.begin + index * size_bytes
            shape = (tensor.shape[0] // len(diffusers_names), *tensor.shape[1:])
            yield (
                f"text_model.{diffusers_name}",
                StoredTensor(tensor.dtype, shape, begin_byte, begin_byte + size_bytes),
            )
