"""Export a run in other libraries' file formats; tests read each back with its library."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers.utils import convert_state_dict_to_diffusers
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth_ray.bundles import kohya, ldm
from dreambooth_ray.bundles.bundle import read_bundle_about
from dreambooth_ray.errors import ConfigError, StorageError
from dreambooth_ray.models import lora
from dreambooth_ray.models.components import load_pipeline
from dreambooth_ray.models.source import (
    adapted_base,
    base_directory,
    compute_latent_factor,
    model_directory,
)
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.version import __version__

Format = Literal["diffusers", "lora", "kohya", "single-file"]
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class AdapterWeights:
    """One part's adapters as peft wrote them; weights are named layer.lora_A.weight."""

    settings: dict[str, Any]
    weights: dict[str, Tensor]


def export_run(run: str, kind: str, out: Path, half: bool = False) -> Path:
    """Write a run, a bundle or a model directory as `kind` to `out`; returns what was written.

    out: a folder for diffusers, else a .safetensors file; neither may be there yet
    half: float16 instead of float32
    raises: ConfigError, StorageError
    """
    if kind not in get_args(Format):
        raise ConfigError(f"--format={kind!r} is none of {', '.join(get_args(Format))}")
    if out.exists():
        raise StorageError(f"--out={str(out)!r} is there already; choose another or remove it")
    if kind != "diffusers" and out.suffix != SUFFIX:
        raise ConfigError(f"--out={str(out)!r} must end in {SUFFIX} for --format={kind}")
    directory = model_directory(run, key="RUN")
    write = {
        "diffusers": _write_diffusers,
        "lora": _write_lora,
        "kohya": _write_kohya,
        "single-file": _write_single_file,
    }[kind]
    partial = out.with_name(f"{out.stem}.{uuid.uuid4().hex}.partial{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write(directory, partial, torch.float16 if half else torch.float32)
        partial.rename(out)
    except OSError as error:
        raise StorageError(f"--out={str(out)!r} can't be written: {error}") from error
    return out


def _write_diffusers(directory: Path, out: Path, dtype: torch.dtype) -> None:
    load_pipeline(directory).to(dtype).save_pretrained(out, safe_serialization=True)
    about: dict[str, object] = {**read_bundle_about(directory), "kind": "bundle"}
    for key in ("base_model", "base_hash"):
        about.pop(key, None)
    manifest.write_local(out, about)


def _write_single_file(directory: Path, out: Path, dtype: torch.dtype) -> None:
    pipeline, is_v2 = load_pipeline(directory), _is_v2(directory)
    text_weights = pipeline.text_encoder.state_dict()
    weights = ldm.convert_unet(pipeline.unet.state_dict()) | ldm.convert_vae(
        pipeline.vae.state_dict()
    )
    weights |= ldm.convert_open_clip(text_weights) if is_v2 else ldm.convert_clip(text_weights)
    _save_weights(weights, out, dtype, _model_spec(directory, adapter=False))


def _write_lora(directory: Path, out: Path, dtype: torch.dtype) -> None:
    layers: dict[str, Tensor] = {}
    about: dict[str, Any] = {}
    for part, adapter in _load_adapters(directory, "lora").items():
        scale = adapter.settings["lora_alpha"] / adapter.settings["r"]
        # Readers that know no alpha take it to be the rank: the scale goes into the weights.
        scaled = {
            k: v * scale if k.endswith("lora_B.weight") else v for k, v in adapter.weights.items()
        }
        layers |= {f"{part}.{k}": v for k, v in convert_state_dict_to_diffusers(scaled).items()}
        settings = {**adapter.settings, "lora_alpha": adapter.settings["r"]}
        about |= {f"{part}.{k}": v for k, v in settings.items()}
    spec = _model_spec(directory, adapter=True)
    _save_weights(
        layers, out, dtype, {**spec, "lora_adapter_metadata": json.dumps(about, sort_keys=True)}
    )


def _write_kohya(directory: Path, out: Path, dtype: torch.dtype) -> None:
    weights: dict[str, Tensor] = {}
    adapters = _load_adapters(directory, "kohya")
    for part, adapter in adapters.items():
        if adapter.settings["use_dora"]:
            raise ConfigError(
                "--format=kohya: readers of that format differ on DoRA; take --format=lora, or "
                "single-file, which has the adapters fused in"
            )
        weights |= kohya.rename_weights(
            part, adapter.weights, float(adapter.settings["lora_alpha"])
        )
    settings = next(iter(adapters.values())).settings
    spec = _model_spec(directory, adapter=True)
    kohya_metadata = kohya.build_metadata(settings, _is_v2(directory), spec["modelspec.title"])
    _save_weights(weights, out, dtype, {**spec, **kohya_metadata})


def _load_adapters(directory: Path, kind: str) -> dict[str, AdapterWeights]:
    """Adapters of an adapter bundle by part; raises ConfigError for any other directory."""
    if adapted_base(directory) is None:
        raise ConfigError(
            f"--format={kind}: {directory} has no adapters; it takes a run with "
            "train.method=lora, others can be exported as diffusers or single-file"
        )
    adapters = {}
    for folder in sorted((directory / paths.ADAPTER).iterdir(), reverse=True):
        if folder.is_dir():
            settings = json.loads((folder / lora.SETTINGS).read_text())
            stored_weights = load_file(folder / lora.WEIGHTS)
            weights = {k.removeprefix(lora.PREFIX): v for k, v in stored_weights.items()}
            adapters[folder.name] = AdapterWeights(settings, weights)
    return adapters


def _load_config(directory: Path, part: str, file: str = "config.json") -> dict[str, Any]:
    config: dict[str, Any] = json.loads((base_directory(directory) / part / file).read_text())
    return config


def _is_v2(directory: Path) -> bool:
    """Whether the text encoder is 2.x's open_clip, told by its activation, or 1.x's CLIP."""
    return bool(_load_config(directory, "text_encoder").get("hidden_act") == "gelu")


def _model_spec(directory: Path, adapter: bool) -> dict[str, str]:
    """Metadata after Stability AI's model specification 1.0.0."""
    about = read_bundle_about(directory)
    factor = compute_latent_factor(_load_config(directory, "vae"))
    side = about.get("resolution", str(_load_config(directory, "unet")["sample_size"] * factor))
    architecture = f"stable-diffusion-v{2 if _is_v2(directory) else 1}"
    title = f"{about.get('identifier', '')} {about.get('class_noun', '')}".strip()
    predicts = {"v_prediction": "v"}
    kind = _load_config(directory, "scheduler", "scheduler_config.json")["prediction_type"]
    spec = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora" if adapter else architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": title or directory.name,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": predicts.get(kind, kind),
        "dreambooth_ray": __version__,
    }
    if about.get("prompt"):
        spec["modelspec.trigger_phrase"] = about["prompt"]
    return spec


def _save_weights(
    weights: Mapping[str, Tensor], out: Path, dtype: torch.dtype, metadata: dict[str, str]
) -> None:
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in weights.items()}
    save_file(tensors, out, metadata={"format": "pt", **metadata})
