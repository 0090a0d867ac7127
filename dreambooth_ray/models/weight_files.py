"""Which files hold a part's weights, and what their headers say of them.

A part's weights are one file or shards with an index, whole or as a variant: Hugging Face's names
for files in another precision, as in model.fp16.safetensors. Nothing heavy is imported here.
"""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.part_configs import read_json

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_LFS_POINTER = b"version https://git-lfs"
# A header of JSON, never larger: the bound of safetensors' own reader.
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class WeightFiles:
    """A part's files. variant: as from_pretrained takes it; None for files without one."""

    variant: str | None
    paths: tuple[Path, ...]

    def read_shapes(self) -> dict[str, list[int]]:
        """Shape of each tensor by name, from the headers; raises ConfigError naming the file."""
        return {
            tensor_name: list(tensor_info["shape"])
            for tensor_name, tensor_info in self._iterate_tensor_infos()
        }

    def count_bytes(self) -> dict[str, int]:
        """Bytes of all tensors by their type, such as F16."""
        total_bytes_by_dtype: dict[str, int] = {}
        for _, tensor_info in self._iterate_tensor_infos():
            begin, end = tensor_info["data_offsets"]
            total_bytes_by_dtype[tensor_info["dtype"]] = (
                total_bytes_by_dtype.get(tensor_info["dtype"], 0) + end - begin
            )
        return total_bytes_by_dtype

    def _iterate_tensor_infos(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for path in self.paths:
            yield from read_header(path).items()


def weight_stem(part: str) -> str:
    """Stem of a part's files: transformers' or diffusers', as the part is theirs."""
    is_transformers = part.startswith(("text_encoder", "segmentation_model"))
    return "model" if is_transformers else "diffusion_pytorch_model"


def find_weights(folder: Path, part: str) -> WeightFiles:
    """The weights that a part is loaded from: whole files before variants, fp16 before others.

    raises: ConfigError where there are none, pickles alone, or shards are missing
    """
    stem = weight_stem(part)
    file_names = {p.name for p in folder.iterdir() if p.is_file()} if folder.is_dir() else set()
    choice = choose_weights(file_names, stem)
    if choice is None:
        raise ConfigError(_explain_absence(folder, stem))
    variant, file_name = choice
    path = folder / file_name
    return WeightFiles(variant, _list_shards(path) if path.suffix == ".json" else (path,))


def choose_weights(names: Collection[str], stem: str) -> tuple[str | None, str] | None:
    """Variant and file, or index of shards, that weights are loaded from; None if there is none.

    names: of all files in a part's folder, here or elsewhere; stem: what theirs begin with
    """
    for variant in (None, *_list_variants(names, stem)):
        variant_suffix = f".{variant}" if variant else ""
        for file_name in (
            f"{stem}{variant_suffix}.safetensors",
            f"{stem}.safetensors.index{variant_suffix}.json",
        ):
            if file_name in names:
                return variant, file_name
    return None


def _list_variants(names: Collection[str], stem: str) -> list[str]:
    """Names of variants, fp16 first."""
    variant_file_pattern = re.compile(re.escape(stem) + r"\.([\w-]+)\.safetensors")
    variant_index_pattern = re.compile(re.escape(stem) + r"\.safetensors\.index\.([\w-]+)\.json")
    name_matches = [
        variant_file_pattern.fullmatch(file_name) or variant_index_pattern.fullmatch(file_name)
        for file_name in names
    ]
    return sorted(
        {m[1] for m in name_matches if m}, key=lambda variant: (variant != "fp16", variant)
    )


def _list_shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConfigError(f"{index} names no shards; copy the model directory again")
    shard_paths = tuple(
        index.parent / str(shard_name) for shard_name in sorted(set(weight_map.values()))
    )
    for path in shard_paths:
        if not path.is_file():
            raise ConfigError(f"{path} is missing, and {index.name} names it; copy it again")
    return shard_paths


def _explain_absence(folder: Path, stem: str) -> str:
    file_names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    pickle_files = [file_name for file_name in file_names if Path(file_name).suffix in PICKLES]
    other_weight_files = [
        file_name for file_name in file_names if file_name.endswith(".safetensors")
    ]
    contents_text = "no weights"
    if pickle_files:
        contents_text = f"{pickle_files[0]} alone, a pickle, which can run code when read"
    elif other_weight_files:
        contents_text = (
            f"{other_weight_files[0]} and neither {stem}.safetensors nor an index of shards"
        )
    return (
        f"{folder} holds {contents_text}; weights are read from safetensors alone: write them anew "
        "with diffusers' save_pretrained(..., safe_serialization=True)"
    )


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Type, shape and offsets of each tensor of a safetensors file, whose size must fit them.

    raises: ConfigError naming a file that is cut off or something else
    """
    return read_header_and_metadata(path)[0]


def read_header_and_metadata(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """As `read_header`, with what the file says of itself."""
    try:
        with path.open("rb") as weights_file:
            if weights_file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ConfigError(
                    f"{path} is a pointer of Git LFS, not the weights; run `git lfs pull` there"
                )
            weights_file.seek(0)
            header_length = int.from_bytes(weights_file.read(8), "little")
            file_size = path.stat().st_size
            if not 0 < header_length <= min(file_size - 8, MAX_HEADER_BYTES):
                raise ValueError(f"{file_size} bytes, no header of {header_length}")
            header = json.loads(weights_file.read(header_length))
        metadata = {str(k): str(v) for k, v in header.pop("__metadata__", {}).items()}
        tensor_ends = [tensor_info["data_offsets"][1] for tensor_info in header.values()]
        if file_size != 8 + header_length + max(tensor_ends, default=0):
            raise ValueError(
                f"{file_size} bytes instead of {8 + header_length + max(tensor_ends, default=0)}"
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no whole safetensors file ({error}); copy it again"
        ) from error
    return header, metadata
