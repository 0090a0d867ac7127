"""Export a run in other libraries' file formats; tests read each back with its library."""

import json
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from dreambooth_ray.bundles import adapter_formats, ldm, read_back
from dreambooth_ray.bundles.bundle import read_bundle_metadata
from dreambooth_ray.bundles.model_spec import build_model_spec
from dreambooth_ray.bundles.new_path import check_path_is_new, explained_writing, new_path
from dreambooth_ray.bundles.prepared_export import PreparedExport, write_tensor_sources
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import (
    build_pipeline,
    load_components,
    load_pipeline,
)
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_directory import (
    base_directory,
    model_directory,
)
from dreambooth_ray.models.single_file import METADATA_KEY, read_small_files
from dreambooth_ray.models.streamed_denoiser import list_denoiser_sources, patch_save_pretrained
from dreambooth_ray.models.tensor_files import (
    SUFFIX,
    TensorSource,
    open_tensor_sources,
)
from dreambooth_ray.storage import manifest, paths

Format = Literal["diffusers", "lora", "kohya", "single-file"]


def export_run(run: str, kind: str, out: Path, half: bool = False) -> Path:
    """Write a run, a bundle or a model directory as `kind` to `out`; returns what was written.

    out: a folder for diffusers, else a .safetensors file; neither may be there yet
    half: float16 instead of float32
    raises: ConfigError, also where its reader does not read back what was learnt; StorageError
    """
    if kind not in get_args(Format):
        raise ConfigError(f"--format={kind!r} is none of {', '.join(get_args(Format))}")
    check_path_is_new(out)
    if kind != "diffusers" and out.suffix != SUFFIX:
        raise ConfigError(f"--out={str(out)!r} must end in {SUFFIX} for --format={kind}")
    directory = model_directory(run, key="RUN")
    family = find_family(base_directory(directory))
    if kind not in family.export_formats:
        raise ConfigError(
            f"--format={kind} is not for {family.title}; take {', '.join(family.export_formats)}"
        )
    build_export = {
        "diffusers": _build_diffusers_export,
        "lora": adapter_formats.build_lora,
        "kohya": adapter_formats.build_kohya,
        "single-file": _build_single_file_export,
    }[kind]
    prepared_export = build_export(directory, torch.float16 if half else torch.float32)
    with new_path(out) as partial_out:
        with explained_writing(out):
            prepared_export.save(partial_out)
        prepared_export.check(partial_out)
    return out


def _build_diffusers_export(directory: Path, dtype: torch.dtype) -> PreparedExport:
    components = load_components(directory)
    pipeline, denoiser_name = build_pipeline(components, directory), components.family.denoiser.name
    # The denoiser is written as it is read; the others are smaller.
    denoiser_tensor_sources = _list_denoiser_tensor_sources(
        components.denoiser, denoiser_name, directory, dtype
    )
    denoiser_weights = open_tensor_sources(denoiser_tensor_sources)
    patch_save_pretrained(components.denoiser, denoiser_tensor_sources)
    read_back.refuse_overflow(denoiser_weights, dtype)
    for network in (components.vae, *components.text_encoders.values()):
        read_back.refuse_overflow(network.state_dict(), dtype)
        network.to(dtype)
    bundle_metadata: dict[str, object] = {**read_bundle_metadata(directory), "kind": "bundle"}
    for key in ("base_model", "base_hash"):
        bundle_metadata.pop(key, None)

    def save_pipeline(out: Path) -> None:
        pipeline.save_pretrained(out, safe_serialization=True)
        manifest.write_local_manifest(out, bundle_metadata)

    return PreparedExport(
        save_pipeline,
        lambda out: read_back.check_exported_folder(out, components, denoiser_weights, dtype),
    )


def _build_single_file_export(directory: Path, dtype: torch.dtype) -> PreparedExport:
    pipeline, base_folder = load_pipeline(directory), base_directory(directory)
    family = find_family(base_folder)
    for tokenizer in (getattr(pipeline, part.tokenizer) for part in family.text_encoders):
        special_tokens = set(tokenizer.all_special_tokens)
        if added_words := sorted(tokenizer.get_added_vocab().keys() - special_tokens):
            adapter_formats.refuse_learned_words("single-file", added_words)
    assert family.single_file_encoders is not None
    weights = ldm.convert_vae(pipeline.vae.state_dict())
    for part, encoder_layout in family.single_file_encoders(base_folder).items():
        weights |= ldm.convert_text_encoder(getattr(pipeline, part).state_dict(), encoder_layout)
    unet_tensor_sources = _list_denoiser_tensor_sources(pipeline.unet, "unet", directory, dtype)
    pipeline.unet.to("meta")  # its sources have what is in no file
    tensor_sources = ldm.convert_unet(unet_tensor_sources)
    tensor_sources |= {name: TensorSource.of(w).as_type(dtype) for name, w in weights.items()}
    tensor_sources |= {
        name: TensorSource.of(w) for name, w in ldm.mark_prediction(pipeline).items()
    }
    metadata = build_model_spec(directory, adapter=False)
    small_files = read_small_files(base_folder)
    if (directory / paths.ADAPTER_SCHEDULER).is_dir():
        small_files["scheduler/scheduler_config.json"] = pipeline.scheduler.to_json_string()
    metadata[METADATA_KEY] = json.dumps(small_files)

    def check_written_file(out: Path) -> None:
        tensor_sources.clear()  # what was converted for them is needed no longer
        unet_weights = open_tensor_sources(unet_tensor_sources)
        read_back.check_single_file(out, pipeline, family, unet_weights, dtype)

    return PreparedExport(
        partial(write_tensor_sources, tensor_sources, dtype, metadata), check_written_file
    )


def _list_denoiser_tensor_sources(
    denoiser: Any, name: str, directory: Path, dtype: torch.dtype
) -> dict[str, TensorSource]:
    tensor_sources = list_denoiser_sources(denoiser, name, directory)
    return {name: source.as_type(dtype) for name, source in tensor_sources.items()}
