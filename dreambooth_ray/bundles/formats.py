"""Export a run in other libraries' file formats; tests read each back with its library."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor

from dreambooth_ray.bundles import kohya, ldm, read_back
from dreambooth_ray.bundles.bundle import read_bundle_about
from dreambooth_ray.bundles.model_spec import build_model_spec
from dreambooth_ray.bundles.new_path import check_new, explained_writing, new_path
from dreambooth_ray.bundles.read_back import LayerDelta, multiply_factors
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models import tokens
from dreambooth_ray.models.components import (
    build_pipeline,
    explained_loading,
    load_components,
    load_pipeline,
)
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_directory import (
    adapted_base,
    base_directory,
    model_directory,
)
from dreambooth_ray.models.peft_files import ADAPTER_METADATA_KEY, PREFIX, SETTINGS, WEIGHTS
from dreambooth_ray.models.single_file import METADATA_KEY, list_small_files
from dreambooth_ray.models.streamed_denoiser import list_denoiser_sources, stream_denoiser
from dreambooth_ray.models.tensor_files import (
    SUFFIX,
    TensorSource,
    read_sources,
    write_tensors,
)
from dreambooth_ray.storage import manifest, paths

Format = Literal["diffusers", "lora", "kohya", "single-file"]


class Export(NamedTuple):
    """How a file or folder is written, and read back by its reader; `check` raises ConfigError."""

    save: Callable[[Path], None]
    check: Callable[[Path], None]


@dataclass(frozen=True)
class AdapterWeights:
    """One part's adapters as peft wrote them; weights are named layer.lora_A.weight."""

    settings: dict[str, Any]
    weights: dict[str, Tensor]

    @property
    def scale(self) -> float:
        """Factor of the product of the two matrices."""
        return float(self.settings["lora_alpha"] / self.settings["r"])

    def compute_deltas(self) -> dict[str, LayerDelta]:
        """What was learnt, by layer without the level text_model."""
        return {
            layer.removeprefix("text_model."): LayerDelta(
                multiply_factors(weight, self.weights[f"{layer}.lora_B.weight"], self.scale),
                self.weights.get(f"{layer}.lora_magnitude_vector"),
            )
            for name, weight in self.weights.items()
            if (layer := name.removesuffix(".lora_A.weight")) != name
        }


def export_run(run: str, kind: str, out: Path, half: bool = False) -> Path:
    """Write a run, a bundle or a model directory as `kind` to `out`; returns what was written.

    out: a folder for diffusers, else a .safetensors file; neither may be there yet
    half: float16 instead of float32
    raises: ConfigError, also where its reader does not read back what was learnt; StorageError
    """
    if kind not in get_args(Format):
        raise ConfigError(f"--format={kind!r} is none of {', '.join(get_args(Format))}")
    check_new(out)
    if kind != "diffusers" and out.suffix != SUFFIX:
        raise ConfigError(f"--out={str(out)!r} must end in {SUFFIX} for --format={kind}")
    directory = model_directory(run, key="RUN")
    family = find_family(base_directory(directory))
    if kind not in family.export_formats:
        raise ConfigError(
            f"--format={kind} is not for {family.title}; take {', '.join(family.export_formats)}"
        )
    build = {
        "diffusers": _build_diffusers,
        "lora": _build_lora,
        "kohya": _build_kohya,
        "single-file": _build_single_file,
    }[kind]
    export = build(directory, torch.float16 if half else torch.float32)
    with new_path(out) as partial_out:
        with explained_writing(out):
            export.save(partial_out)
        export.check(partial_out)
    return out


def _build_diffusers(directory: Path, dtype: torch.dtype) -> Export:
    parts = load_components(directory)
    pipeline, name = build_pipeline(parts, directory), parts.family.denoiser.name
    # The denoiser is written as it is read; the others are smaller.
    denoiser_sources = _list_sources(parts.denoiser, name, directory, dtype)
    denoiser_weights = read_sources(denoiser_sources)
    stream_denoiser(parts.denoiser, denoiser_sources)
    read_back.refuse_overflow(denoiser_weights, dtype)
    for network in (parts.vae, *parts.text_encoders.values()):
        read_back.refuse_overflow(network.state_dict(), dtype)
        network.to(dtype)
    about: dict[str, object] = {**read_bundle_about(directory), "kind": "bundle"}
    for key in ("base_model", "base_hash"):
        about.pop(key, None)

    def save(out: Path) -> None:
        pipeline.save_pretrained(out, safe_serialization=True)
        manifest.write_local(out, about)

    return Export(save, lambda out: read_back.check_folder(out, parts, denoiser_weights, dtype))


def _build_single_file(directory: Path, dtype: torch.dtype) -> Export:
    pipeline, base = load_pipeline(directory), base_directory(directory)
    family = find_family(base)
    for tokenizer in (getattr(pipeline, part.tokenizer) for part in family.text_encoders):
        special = set(tokenizer.all_special_tokens)
        if words := sorted(tokenizer.get_added_vocab().keys() - special):
            _refuse_words("single-file", words)
    assert family.single_file_encoders is not None
    weights = ldm.convert_vae(pipeline.vae.state_dict())
    for part, place in family.single_file_encoders(base).items():
        weights |= ldm.convert_text_encoder(getattr(pipeline, part).state_dict(), place)
    unet_sources = _list_sources(pipeline.unet, "unet", directory, dtype)
    pipeline.unet.to("meta")  # its sources have what is in no file
    sources = ldm.convert_unet(unet_sources)
    sources |= {name: TensorSource.of(w).as_type(dtype) for name, w in weights.items()}
    sources |= {name: TensorSource.of(w) for name, w in ldm.mark_prediction(pipeline).items()}
    metadata = build_model_spec(directory, adapter=False)
    small_files = list_small_files(base)
    if (directory / paths.ADAPTER_SCHEDULER).is_dir():
        small_files["scheduler/scheduler_config.json"] = pipeline.scheduler.to_json_string()
    metadata[METADATA_KEY] = json.dumps(small_files)

    def check(out: Path) -> None:
        sources.clear()  # what was converted for them is needed no longer
        unet_weights = read_sources(unet_sources)
        read_back.check_single_file(out, pipeline, family, unet_weights, dtype)

    return Export(partial(_write_sources, sources, dtype, metadata), check)


def _list_sources(
    denoiser: Any, name: str, directory: Path, dtype: torch.dtype
) -> dict[str, TensorSource]:
    sources = list_denoiser_sources(denoiser, name, directory)
    return {name: source.as_type(dtype) for name, source in sources.items()}


def _build_lora(directory: Path, dtype: torch.dtype) -> Export:
    """peft's own names under the part's, the one form in which diffusers reads every layer."""
    layers: dict[str, Tensor] = {}
    about: dict[str, Any] = {}
    adapters = _load_adapters(directory, "lora")
    for part, adapter in adapters.items():
        # transformers 5 has dropped this level of CLIP's; readers take the names with it.
        prefix = f"{part}.text_model." if part.startswith("text_encoder") else f"{part}."
        for name, weight in adapter.weights.items():
            # Readers that know no alpha take it to be the rank: the scale goes into the weights.
            scaled = weight * adapter.scale if name.endswith("lora_B.weight") else weight
            # transformers passes over magnitudes that are named as peft names them, without an end.
            end = ".weight" if name.endswith("lora_magnitude_vector") else ""
            layers[prefix + name.removeprefix("text_model.") + end] = scaled
        settings = {**adapter.settings, "lora_alpha": adapter.settings["r"]}
        about |= {f"{part}.{k}": v for k, v in settings.items()}
    modelspec = build_model_spec(directory, adapter=True)
    metadata = {**modelspec, ADAPTER_METADATA_KEY: json.dumps(about, sort_keys=True)}
    return _export_adapters(layers, adapters, directory, metadata, dtype, "lora")


def _build_kohya(directory: Path, dtype: torch.dtype) -> Export:
    base = base_directory(directory)
    names = find_family(base).kohya_names
    assert names is not None
    weights: dict[str, Tensor] = {}
    adapters = _load_adapters(directory, "kohya")
    for part, adapter in adapters.items():
        if adapter.settings["use_dora"]:
            raise ConfigError(
                "--format=kohya: readers of that format differ on DoRA; take --format=lora, or "
                "another that has the adapters fused in"
            )
        alpha, rank = float(adapter.settings["lora_alpha"]), int(adapter.settings["r"])
        weights |= kohya.rename_weights(names, base, part, adapter.weights, alpha, rank)
    settings = next(iter(adapters.values())).settings
    modelspec = build_model_spec(directory, adapter=True)
    kohya_metadata = kohya.build_metadata(
        settings, names.read_metadata(base), modelspec["modelspec.title"]
    )
    metadata = {**modelspec, **kohya_metadata}
    return _export_adapters(weights, adapters, directory, metadata, dtype, "kohya")


def _export_adapters(
    weights: Mapping[str, Tensor],
    adapters: Mapping[str, AdapterWeights],
    directory: Path,
    metadata: dict[str, str],
    dtype: torch.dtype,
    kind: str,
) -> Export:
    learned = {part: adapter.compute_deltas() for part, adapter in adapters.items()}
    return Export(
        partial(_save_weights, weights, dtype, metadata),
        lambda out: read_back.check_adapters(out, directory, learned, dtype, kind),
    )


def _load_adapters(directory: Path, kind: str) -> dict[str, AdapterWeights]:
    """Adapters of an adapter bundle by part; raises ConfigError for any other directory."""
    if adapted_base(directory) is None:
        raise ConfigError(
            f"--format={kind}: {directory} has no adapters; it takes a run with "
            "train.method=lora, others can be exported as diffusers or single-file"
        )
    for words in tokens.load_words(directory / paths.ADAPTER).values():
        _refuse_words(kind, list(words))
    adapters = {}
    for part in (part.name for part in find_family(base_directory(directory)).networks):
        if (folder := directory / paths.ADAPTER / part).is_dir():
            with explained_loading(folder):
                settings = json.loads((folder / SETTINGS).read_text())
                stored_weights = load_file(folder / WEIGHTS)
            weights = {k.removeprefix(PREFIX): v for k, v in stored_weights.items()}
            adapters[part] = AdapterWeights(settings, weights)
    return adapters


def _refuse_words(kind: str, words: list[str]) -> None:
    raise ConfigError(
        f"--format={kind}: the file would not hold the learned word {' '.join(words)}; take "
        "--format=diffusers, which has it in its tokenizer and text encoder"
    )


def _save_weights(
    weights: Mapping[str, Tensor], dtype: torch.dtype, metadata: dict[str, str], out: Path
) -> None:
    sources = {name: TensorSource.of(w).as_type(dtype) for name, w in weights.items()}
    _write_sources(sources, dtype, metadata, out)


def _write_sources(
    sources: Mapping[str, TensorSource], dtype: torch.dtype, metadata: dict[str, str], out: Path
) -> None:
    read_back.refuse_overflow(read_sources(sources), dtype)
    write_tensors(out, sources, {"format": "pt", **metadata})
    with out.open("rb") as written_file:
        os.fsync(written_file.fileno())  # it is renamed to where nobody makes it again
