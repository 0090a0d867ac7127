"""The files of a model's directory, read without loading weights.

Nothing heavy is imported here: bad input is refused before torch is imported.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dreambooth_ray.config.training_images import TrainingImagesConfig
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_location import fetch_source, outline_source
from dreambooth_ray.models.model_source import find_packaged_model, parse_source
from dreambooth_ray.models.weight_files import PICKLES, find_weights
from dreambooth_ray.models.weight_values import check_finite_weights
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.file_hashes import cached_file_hash
from dreambooth_ray.storage.manifest import MANIFEST

_INDEX, _PROCESSOR = "model_index.json", "feature_extractor"
# Weights for other libraries, which diffusers passes over.
_OTHER_FORMATS = (*PICKLES, ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".xml")


def model_directory(uri: str, key: str = "model.uri") -> Path:
    """The directory of a model: 'toyworld' and 'toyworld-flow' ship; a run stands for its bundle.

    What lies elsewhere is fetched, once it is known to be usable. What it holds has been looked at:
    it is absolute, of a family that is known, and whole.

    uri: any text that `model_source` knows; key: the setting to name in an error
    raises: ConfigError naming the file or folder that is missing or can't be used, and what
        `model_location.fetch_source` raises
    """
    if shipped_model_folder := find_packaged_model(uri):
        return shipped_model_folder
    if not parse_source(uri).is_directory:
        model_outline(uri, key)  # refused before anything large is on its way
    return _check_model_folder(fetch_source(uri, key), uri, key, whole=True)


def model_outline(uri: str, key: str = "model.uri") -> Path:
    """As `model_directory`, within moments and to look at alone: nothing large is fetched or read.

    Of weights that are not on this host, the headers are there and not a tensor; of those that are,
    no more is looked at. What can be refused by that comes before anybody waits for the rest.
    """
    if shipped_model_folder := find_packaged_model(uri):
        return shipped_model_folder
    return _check_model_folder(outline_source(uri, key), uri, key, whole=False)


def _check_model_folder(folder: Path, uri: str, key: str, *, whole: bool) -> Path:
    """whole: the weights are here, those of an adapter's base among them, and are read"""
    if (folder / paths.CONFIG).is_file() and not (folder / "vae").is_dir():
        folder = folder / paths.BUNDLE
        if not folder.is_dir():
            raise ConfigError(
                f"{key}={uri!r} is a run without a bundle yet; finish it with `dreambooth resume`"
            )
    if base_model := adapted_base(folder):
        return _check_adapter_bundle(folder, *base_model, key, whole)
    try:
        family = find_family(folder)
        family.check(folder)
        if whole:
            check_finite_weights(folder, family)
    except ConfigError as error:
        raise ConfigError(f"{key}={uri!r}: {error}") from error
    return folder


def adapted_base(folder: Path) -> tuple[str, str] | None:
    """Of an adapter bundle, its base model's URI and hash; None for any other folder."""
    if not (folder / paths.ADAPTER).is_dir():
        return None
    try:
        manifest_about = json.loads((folder / MANIFEST).read_text())["about"]
        return str(manifest_about["base_model"]), str(manifest_about["base_hash"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} has an {paths.ADAPTER}/ and no {MANIFEST} that names its base model "
            f"({error}); export the run again"
        ) from error


def _check_adapter_bundle(folder: Path, uri: str, digest: str, key: str, whole: bool) -> Path:
    try:
        base_folder = (model_directory if whole else model_outline)(uri, key)
    except ConfigError as error:
        raise ConfigError(
            f"{key}: {folder} adapts the model {uri!r}, which can't be used: {error}"
        ) from error
    if whole and not has_matching_hash(base_folder, digest):
        raise ConfigError(
            f"{key}: {folder} adapts {uri!r} as it was when trained, and that model has changed "
            "since; bring the old one back, or train again"
        )
    return folder


def base_directory(directory: Path) -> Path:
    """The directory that holds all parts: a model's own, or that of an adapter's base."""
    base_model = adapted_base(directory)
    return base_directory(model_directory(base_model[0])) if base_model else directory


def compute_latent_factor(vae_config: Mapping[str, Any]) -> int:
    """Pixels that a latent spans each way, by the VAE's configuration."""
    encoder_channels_key = "encoder_block_out_channels"  # of AutoencoderDC
    channels_key = (
        encoder_channels_key if encoder_channels_key in vae_config else "block_out_channels"
    )
    return int(2 ** (len(vae_config[channels_key]) - 1))


def check_resolution(directory: Path, resolution: int) -> None:
    """raises ConfigError if an image of that side can't pass the VAE and the denoiser."""
    directory = base_directory(directory)
    family = find_family(directory)
    size_multiple = family.size_multiple(directory)
    if resolution % size_multiple:
        nearest_resolution = max(size_multiple, round(resolution / size_multiple) * size_multiple)
        raise ConfigError(
            f"train.resolution={resolution} is not a multiple of {size_multiple}, which this model "
            f"needs; try {nearest_resolution}"
        )
    max_side_px = family.max_side(directory) if family.max_side else resolution
    if resolution > max_side_px:
        raise ConfigError(
            f"train.resolution={resolution} is above {max_side_px}, this model's limit"
        )


def check_image_sizes(directory: Path, train: TrainingImagesConfig) -> None:
    """raises ConfigError if images of one of a training's sizes can't pass VAE and denoiser."""
    for resolution in train.sides_px:
        check_resolution(directory, resolution)
    if not train.buckets:
        return
    directory = base_directory(directory)
    family = find_family(directory)
    size_multiple, bucket_step_px = family.size_multiple(directory), train.bucket_step_px
    if bucket_step_px % size_multiple:
        raise ConfigError(
            f"train.bucket_step_px={bucket_step_px} is not a multiple of {size_multiple}, which "
            "this model needs of both sides; try "
            f"{-(-bucket_step_px // size_multiple) * size_multiple}"
        )
    longest_px = int(train.side_px * math.sqrt(train.bucket_max_aspect))
    max_side_px = family.max_side(directory) if family.max_side else longest_px
    if longest_px > max_side_px:
        raise ConfigError(
            f"train.bucket_max_aspect={train.bucket_max_aspect:g} makes sides of up to "
            f"{longest_px} px at train.resolution={train.side_px}, above {max_side_px}, this "
            "model's limit; lower one of the two"
        )


def model_hash(directory: Path) -> str:
    """SHA-256 over names and contents of every weight and configuration file that is loaded.

    Of an adapter bundle: over its base's hash and the adapter's files. A file is read once, and
    again only when it has changed.
    """
    return _hash_files(directory, _is_loaded_file)


def has_matching_hash(directory: Path, digest: str) -> bool:
    """Whether a digest, from a bundle or a checkpoint, is this model's.

    Earlier versions took the hash over every file, also of weights that nothing loads.
    """
    return model_hash(directory) == digest or _hash_files(directory, lambda _: True) == digest


def _hash_files(directory: Path, is_part: Callable[[Path], bool]) -> str:
    model_digest = hashlib.sha256()
    base_model = adapted_base(directory)
    if base_model:
        model_digest.update(base_model[1].encode())
    part_names = (paths.ADAPTER,) if base_model else find_family(directory).parts
    for path in sorted(
        p for part in part_names for p in (directory / part).rglob("*") if p.is_file()
    ):
        if is_part(path):
            model_digest.update(path.relative_to(directory).as_posix().encode())
            model_digest.update(bytes.fromhex(cached_file_hash(path)))
    return model_digest.hexdigest()


def list_loaded_files(directory: Path) -> list[str]:
    """Names of all files of a model that loading reads, as other hosts need them."""
    is_adapter = adapted_base(directory) is not None
    part_folders = (paths.ADAPTER,) if is_adapter else (*find_family(directory).parts, _PROCESSOR)
    file_paths = [directory / (MANIFEST if is_adapter else _INDEX)]
    file_paths += [
        p for part_folder in part_folders for p in sorted((directory / part_folder).rglob("*"))
    ]
    return [
        path.relative_to(directory).as_posix()
        for path in file_paths
        if path.is_file() and _is_loaded_file(path)
    ]


def _is_loaded_file(path: Path) -> bool:
    """Whether a file is read when its part is loaded: no other format's weights, no variant's."""
    if path.suffix in _OTHER_FORMATS:
        return False
    if path.suffix != ".safetensors":
        return True
    weight_file_names = list_loaded_weight_files(path.parent)
    return not weight_file_names or path.name in weight_file_names


def list_loaded_weight_files(folder: Path) -> frozenset[str]:
    """Names of the weight files of one part that are loaded; none where they go by other names."""
    try:
        return frozenset(path.name for path in find_weights(folder, folder.name).paths)
    except ConfigError:
        return frozenset()
