"""Adapters made of others: merged into one, or cut to a lower rank.

Input is refused before torch is imported; heavy modules are imported by the function that needs
them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.imports import pause_garbage_collection

# ruff: noqa: PLC0415

if TYPE_CHECKING:
    from dreambooth_ray.adapters.adapter_source import LocalAdapter
    from dreambooth_ray.adapters.rank_cut_report import RankCutReport

_TARGETS = ("bundle", "model")


def merge(
    sources: Sequence[str],
    out: str | Path,
    *,
    base: str = "",
    into: str = "bundle",
    rank: int | None = None,
    half: bool = False,
) -> "RankCutReport | None":
    """Write the weighted sum of adapters; returns what the rank costs, None for a model.

    sources: each a file of any trainer or a run, with its weight, as "style.safetensors:0.8"
    out: a new folder; base: the model, of the first run among the sources if empty
    into: bundle, adapters that `generate` takes as it takes a run; model, a model directory
    rank: of a bundle's layers at most; None keeps all that LoRA has, and refuses other kinds
    half: float16 instead of float32
    raises: ConfigError, CheckpointError, StorageError
    """
    from dreambooth_ray.models.model_directory import model_directory

    if into not in _TARGETS:
        raise ConfigError(f"--into={into!r} is none of {', '.join(_TARGETS)}")
    if rank is not None and into == "model":
        raise ConfigError("--rank is for --into bundle; a model takes the whole sum")
    _check_rank(rank)
    out_folder = _check_output_path(out)
    base_model_uri, adapters = _locate_sources(sources, base, into)
    with pause_garbage_collection():
        from dreambooth_ray.bundles.merged_adapters import (
            merge_into_adapter_bundle,
            merge_into_model,
        )
        from dreambooth_ray.models.components import quiet_libraries

    quiet_libraries()
    base_folder = model_directory(base_model_uri, "--base")
    if into == "model":
        merge_into_model(adapters, base_folder, out_folder, half=half)
        return None
    return merge_into_adapter_bundle(
        adapters, (base_model_uri, base_folder), out_folder, rank=rank, half=half
    )


def resize(source: str, out: str | Path, *, rank: int) -> "RankCutReport":
    """Write an adapter at a lower rank; returns what that costs, as relative Frobenius norms.

    source: a .safetensors file of any trainer, a folder of peft's, or a run
    out: a new file for a file, else a new folder; rank: that layers have at most
    raises: ConfigError, CheckpointError, StorageError
    """
    from dreambooth_ray.adapters.adapter_source import WeightedAdapterSource, locate_adapter

    _check_rank(rank)
    out_path = _check_output_path(out)
    located_adapter = locate_adapter(WeightedAdapterSource(source), "SOURCE")
    if located_adapter.path.is_file() != (out_path.suffix == ".safetensors"):
        path_requirement = (
            "end in .safetensors" if located_adapter.path.is_file() else "be a folder"
        )
        raise ConfigError(
            f"--out={str(out_path)!r} must {path_requirement}, as SOURCE={source!r} does"
        )
    with pause_garbage_collection():
        from dreambooth_ray.bundles.rank_resizing import resize_adapter

    try:
        return resize_adapter(located_adapter, rank, out_path)
    except ConfigError as error:
        raise ConfigError(f"SOURCE={source!r}: {error}") from error


def _locate_sources(
    sources: Sequence[str], base: str, into: str
) -> "tuple[str, list[LocalAdapter]]":
    """The base model's URI, and the adapters, each bound to its layers."""
    from dreambooth_ray.adapters.adapter_source import (
        WeightedAdapterSource,
        locate_adapter,
        locate_adapters,
    )
    from dreambooth_ray.models.model_directory import adapted_base, model_outline

    if not sources:
        raise ConfigError("SOURCE is not given; name at least one adapter")
    located_adapters = (
        locate_adapter(WeightedAdapterSource.parse(text), "SOURCE") for text in sources
    )
    base_model_uri = base or next(
        (adapter.base[0] for adapter in located_adapters if adapter.base), ""
    )
    if not base_model_uri:
        raise ConfigError("--base is not given, and no source is a run that knows its base model")
    base_model_outline = model_outline(base_model_uri, "--base")
    if into == "bundle" and adapted_base(base_model_outline):
        raise ConfigError(
            f"--base={base_model_uri!r} is itself made of adapters; give it as a source, or --into "
            "model"
        )
    return base_model_uri, locate_adapters(sources, base_model_outline, "SOURCE")


def _check_rank(rank: int | None) -> None:
    if rank is not None and rank < 1:
        raise ConfigError(f"--rank={rank} must be at least 1")


def _check_output_path(out: str | Path) -> Path:
    from dreambooth_ray.bundles.new_path import check_path_is_new

    out_path = Path(out).expanduser()
    check_path_is_new(out_path)
    return out_path
