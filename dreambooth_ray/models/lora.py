"""Low-rank adapters, by peft: put into a model, written, fused.

Written as peft writes them: adapter_config.json and adapter_model.safetensors.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from torch import nn

from dreambooth_ray.config import training
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.objective import noise

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# peft's own names are those inside its wrapper.
PREFIX = "base_model.model."


def inject(
    model: nn.Module, wanted: training.LoraConfig, targets: tuple[str, ...], seed: int
) -> None:
    """Put fresh adapters beside the target layers, in place; all else is frozen.

    Their first weights depend on seed and target names alone; their effect starts at zero.
    raises: ConfigError if no layer of that name can carry one
    """
    model.requires_grad_(False)
    settings = LoraConfig(
        r=wanted.rank,
        # peft types it as an integer and only ever divides it by the rank.
        lora_alpha=wanted.scale_alpha,
        target_modules=list(targets),
        use_dora=wanted.dora,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(
            noise.generator(seed, f"lora/{type(model).__name__}", 0, 0).initial_seed()
        )
        try:
            with _without_advice():
                inject_adapter_in_model(settings, model)
        except ValueError as error:
            raise ConfigError(
                f"train.lora: {', '.join(targets)} can't carry adapters in this model's "
                f"{type(model).__name__}: {error}"
            ) from error


@contextmanager
def _without_advice() -> Iterator[None]:
    """peft still asks transformers by an old name, which is nothing a user can mend."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        yield


def has_adapters(model: nn.Module) -> bool:
    """Whether `inject` has been at a model."""
    return bool(getattr(model, "peft_config", None))


def save(model: nn.Module, folder: Path) -> None:
    """Write the adapters of a model that `inject` has been at, as peft's save_pretrained does."""
    folder.mkdir(parents=True)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {f"{PREFIX}{k}": v.detach().cpu().contiguous() for k, v in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    settings = cast(dict[str, LoraConfig], model.peft_config)["default"]
    (folder / SETTINGS).write_text(json.dumps(_jsonable(settings), indent=1, sort_keys=True))


def _jsonable(settings: LoraConfig) -> dict[str, Any]:
    values: dict[str, Any] = settings.to_dict()
    values["inference_mode"] = True
    return {k: sorted(v) if isinstance(v, set) else v for k, v in values.items()}


def fuse(model: nn.Module, folder: Path) -> nn.Module:
    """The same model with adapters from a folder added into its weights.

    raises: ConfigError if they are missing, pickled, or of another architecture
    """
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(
            f"{folder} has no {WEIGHTS}; adapters are read from safetensors alone, since a pickle "
            "can run code; write it again with peft's save_pretrained"
        )
    try:
        with _without_advice():
            wrapped = PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{folder} does not fit the base model: {error}; it was trained on another one"
        ) from error
    fused: nn.Module = wrapped.merge_and_unload()
    return fused
