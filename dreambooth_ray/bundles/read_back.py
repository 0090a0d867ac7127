"""An exported file is read by the library that it was written for, before it is announced.

Legend: r rank of an adapter, O and I a layer's output and flattened input.
"""

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from dreambooth_ray.compat.libc import release_freed_memory
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components, load_pipeline, load_tokenizer
from dreambooth_ray.models.family import INDEX, ModelFamily
from dreambooth_ray.models.model_directory import base_directory
from dreambooth_ray.models.part_configs import read_json

# Relative error of what a layer learnt: of float32 by another order of products, of float16 by
# its 11 bits.
_TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2}

# What comparing a weight frees comes to some hundred megabytes of a model of full size.
_WEIGHTS_BETWEEN_RELEASES = 32


@dataclass(frozen=True)
class LayerDelta:
    """What an adapter adds to a layer. delta: (O, I); magnitude: (O,) of DoRA, or None"""

    delta: Tensor
    magnitude: Tensor | None


def check_exported_adapters(
    path: Path,
    directory: Path,
    learned: Mapping[str, Mapping[str, LayerDelta]],
    dtype: torch.dtype,
    kind: str,
) -> None:
    """Load a LoRA file into the base model by diffusers, and compare every layer.

    learned: by part and layer; dtype: of the file
    raises: ConfigError naming a layer that is not read, or not as it was learnt
    """
    pipeline = load_pipeline(base_directory(directory))
    with _explained_reading(kind):
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    for part, layers in learned.items():
        read_layers = _read_network_deltas(getattr(pipeline, part))
        # Layers that a format has as parts of one of its own come back together.
        nonzero_layers = {name for name, layer in read_layers.items() if bool(layer.delta.any())}
        unread_layers = sorted(
            (layers.keys() - read_layers.keys()) | (nonzero_layers - layers.keys())
        )
        if unread_layers:
            raise ConfigError(
                f"--format={kind}: diffusers reads {len(read_layers)} of the {len(layers)} layers "
                f"of {part} that were trained, and passes over {unread_layers[0]}; take "
                "--format=diffusers, which has them fused in"
            )
        for name, layer in layers.items():
            check_delta(f"{part}.{name}", read_layers[name], layer, dtype=dtype, kind=kind)


def check_delta(
    layer: str, read: LayerDelta, learned: LayerDelta, *, dtype: torch.dtype, kind: str
) -> None:
    """raises: ConfigError if a layer is read otherwise than it was learnt, beyond rounding"""
    relative_error = _compute_delta_error(read, learned)
    if not relative_error <= _TOLERANCES[dtype]:
        raise ConfigError(_explain_delta_error(layer, relative_error, dtype, kind))


@contextmanager
def _explained_reading(kind: str) -> Iterator[None]:
    """Raise whatever a reader raises inside the block as our own error, naming the format."""
    try:
        # What it warns of, the comparison that follows finds.
        with warnings.catch_warnings(action="ignore"):
            yield
    except MemoryError:
        raise
    except Exception as error:  # readers raise of every kind
        error_text = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(
            f"--format={kind}: diffusers can't read back what was written: {error_text}; take "
            "another --format"
        ) from error


def _explain_delta_error(layer: str, error: float, dtype: torch.dtype, kind: str) -> str:
    if dtype == torch.float16:
        return (
            f"--half: float16 changes what {layer} learnt by {error:.0%}, its numbers are too "
            "small or too large for it; export without --half"
        )
    return (
        f"--format={kind}: diffusers reads {layer} otherwise than it was learnt, by {error:.0%}; "
        "take --format=diffusers, which has it fused in"
    )


def multiply_factors(down: Tensor, up: Tensor, scale: float) -> Tensor:
    """(O, I) of (r, I) or (r, I/k^2, k, k), and (O, r) or (O, r, 1, 1)."""
    return scale * (up.detach().float().flatten(1) @ down.detach().float().flatten(1))


def _read_network_deltas(network: nn.Module) -> dict[str, LayerDelta]:
    """Every adapter of a network, by the names that layers have without the level text_model."""
    layer_deltas = {}
    for module_name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            (adapter_name,) = module.lora_A
            magnitude_vectors: Any = module.lora_magnitude_vector
            factors: list[Any] = [
                module.lora_A[adapter_name].weight,
                module.lora_B[adapter_name].weight,
            ]
            delta = multiply_factors(factors[0], factors[1], module.scaling[adapter_name])
            magnitude = (
                magnitude_vectors[adapter_name].weight.detach().flatten()
                if adapter_name in magnitude_vectors
                else None
            )
            layer_deltas[module_name.removeprefix("text_model.")] = LayerDelta(delta, magnitude)
    return layer_deltas


def _compute_delta_error(read: LayerDelta, learned: LayerDelta) -> float:
    """Relative error of the worse of the two; infinite where one is missing."""
    relative_error = _relative_error(read.delta, learned.delta)
    if learned.magnitude is None and read.magnitude is None:
        return relative_error
    if learned.magnitude is None or read.magnitude is None:
        return float("inf")
    return max(relative_error, _relative_error(read.magnitude, learned.magnitude))


def _relative_error(read: Tensor, expected: Tensor) -> float:
    if read.shape != expected.shape:
        return float("inf")
    difference_norm = float((read.float() - expected.float()).norm())
    return difference_norm / float(expected.norm()) if difference_norm else 0.0


def check_exported_folder(
    path: Path, parts: Components, denoiser: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    """Load a directory by diffusers, and compare every weight and the tokenizers' words.

    parts: as written; denoiser: the weights of that one, which need not be loaded in `parts`
    """
    pipeline_class = getattr(diffusers, parts.family.pipeline_classes[0])
    load_exported = partial(
        pipeline_class.from_pretrained,
        path,
        dtype=dtype,
        local_files_only=True,
        **find_parts_to_skip_loading(path),
    )
    loaded_pipeline = _compare_networks(load_exported, parts.networks, denoiser, dtype, "diffusers")
    for encoder in parts.family.text_encoders:
        tokenizer_name = encoder.tokenizer
        tokenizer = getattr(loaded_pipeline, tokenizer_name) or load_tokenizer(
            path, tokenizer_name, encoder.tokenizer_class
        )
        if tokenizer.get_vocab() != parts.tokenizers[tokenizer_name].get_vocab():
            raise ConfigError(
                f"--format=diffusers: the {tokenizer_name} is read with other words; report this"
            )


def find_parts_to_skip_loading(path: Path) -> dict[str, None]:
    """Parts that diffusers is told not to read.

    What a directory says it does not have, as diffusers wants to be told of some; and processors,
    whose classes want torchvision: a pipeline that is given their tokenizer reads prompts as well.
    """
    classes_by_part = {
        k: v for k, v in read_json(path / INDEX).items() if isinstance(v, list) and len(v) == 2
    }
    return {
        name: None
        for name, part_classes in classes_by_part.items()
        if part_classes == [None, None] or str(part_classes[1]).endswith("Processor")
    }


def check_single_file(
    path: Path,
    pipeline: DiffusionPipeline,
    family: ModelFamily,
    denoiser: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> None:
    """Load a single-file checkpoint by diffusers, and compare every weight.

    pipeline: as written; denoiser: the weights of that one
    """
    networks = {part.name: getattr(pipeline, part.name) for part in family.networks}
    optional_parts = {"safety_checker", "feature_extractor"} & pipeline.components.keys()
    with tempfile.TemporaryDirectory(prefix="dreambooth-configs-") as config_folder:
        # The reader wants the configurations of the model beside the file.
        pipeline.save_config(config_folder)
        for part, network in networks.items():
            (Path(config_folder) / part).mkdir()
            network_config = (
                network.config if isinstance(network.config, dict) else network.config.to_dict()
            )
            config_text = json.dumps(dict(network_config), default=str)
            (Path(config_folder) / part / "config.json").write_text(config_text)
        for encoder in family.text_encoders:
            getattr(pipeline, encoder.tokenizer).save_pretrained(
                Path(config_folder) / encoder.tokenizer
            )
        pipeline.scheduler.save_pretrained(Path(config_folder) / "scheduler")
        load_exported = partial(
            type(pipeline).from_single_file,
            str(path),
            config=config_folder,
            **dict.fromkeys(optional_parts),
            local_files_only=True,
            torch_dtype=dtype,
        )
        _compare_networks(load_exported, networks, denoiser, dtype, "single-file")


def _compare_networks(
    load_exported: Callable[..., Any],
    written: Mapping[str, nn.Module],
    denoiser: Mapping[str, Tensor],
    dtype: torch.dtype,
    kind: str,
) -> Any:
    """Compare part by part, and let go of each as it was written and as it was read.

    load_exported: with the parts that it is given in place of those it would read
    written: by name, the denoiser first
    returns: the pipeline, its networks without weights but for the denoiser
    raises: ConfigError naming a weight that is read otherwise than it was written
    """
    loaded_pipeline: Any = None
    for part, network in reversed(list(written.items())):
        del loaded_pipeline
        release_freed_memory()
        with _explained_reading(kind):
            loaded_pipeline = load_exported(
                **{n: other for n, other in written.items() if n != part}
            )
        is_denoiser = network is next(iter(written.values()))
        weights = denoiser if is_denoiser else network.state_dict()
        _compare_weights(part, getattr(loaded_pipeline, part).state_dict(), weights, dtype, kind)
        network.to("meta")
    return loaded_pipeline


def _compare_weights(
    part: str,
    read_weights: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    kind: str,
) -> None:
    differing_weights = sorted(read_weights.keys() ^ weights.keys())
    for index, (name, weight) in enumerate([] if differing_weights else weights.items()):
        if not torch.equal(read_weights[name].to(dtype), weight.to(dtype)):
            differing_weights.append(name)
        if index % _WEIGHTS_BETWEEN_RELEASES == 0:
            release_freed_memory()
    if differing_weights:
        raise ConfigError(
            f"--format={kind}: diffusers reads {len(differing_weights)} weights of {part} "
            f"otherwise than they were written, {differing_weights[0]} for one; take another "
            "--format"
        )


def refuse_overflow(weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """raises: ConfigError naming a weight that float16 has no number for"""
    if dtype != torch.float16:
        return
    largest_value = torch.finfo(dtype).max
    for name, weight in weights.items():
        if bool((weight.detach().abs() > largest_value).any()):
            raise ConfigError(
                f"--half: {name} holds numbers beyond {largest_value:g}, float16's largest; export "
                "without --half"
            )
