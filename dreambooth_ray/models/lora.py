"""Low-rank adapters, by peft: add them to a model, save them, fuse them.

The files are peft's: adapter_config.json and adapter_model.safetensors.
"""

import json
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import (
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from safetensors.torch import save_file
from torch import nn

from dreambooth_ray.compat.peft import forgo_module_dropout
from dreambooth_ray.config import adapters
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.peft_files import PREFIX, SETTINGS, WEIGHTS
from dreambooth_ray.objective import noise

# torch has one generator for all threads, and first weights are drawn from it.
_rng_lock = threading.Lock()


def inject_adapters(
    model: nn.Module,
    lora_config: adapters.LoraConfig,
    targets: tuple[str, ...],
    seed: int,
    unused: tuple[str, ...] = (),
) -> None:
    """Add new adapters to the target layers, in place; freeze everything else.

    Their first weights depend on seed and target names alone; their effect starts at zero.
    unused: modules whose layers get none
    raises: ConfigError if no layer of that name can have one
    """
    model.requires_grad_(False)
    peft_config = _make_peft_config(lora_config, model, targets, unused)
    with _rng_lock, torch.random.fork_rng(devices=[]):
        torch.manual_seed(
            noise.make_seeded_generator(seed, f"lora/{type(model).__name__}", 0, 0).initial_seed()
        )
        try:
            with _silence_peft_warnings():
                inject_adapter_in_model(peft_config, model)
                forgo_module_dropout(model)
        except ValueError as error:
            raise ConfigError(
                f"train.lora: {', '.join(targets)} can't carry adapters in this model's "
                f"{type(model).__name__}: {error}"
            ) from error


def _make_peft_config(
    lora_config: adapters.LoraConfig,
    model: nn.Module,
    targets: tuple[str, ...],
    unused: tuple[str, ...],
) -> PeftConfig:
    common_peft_options: dict[str, Any] = {
        "r": lora_config.rank,
        "target_modules": _resolve_targets(model, targets),
        "exclude_modules": "|".join(rf"{re.escape(unused_module)}\..+" for unused_module in unused)
        or None,
        "rank_pattern": _select_matching_patterns(lora_config.rank_pattern, model),
        "alpha_pattern": _select_matching_patterns(lora_config.resolved_alpha_pattern, model),
    }
    # peft types it as an integer and only ever divides it by the rank.
    alpha: Any = lora_config.resolved_alpha
    if lora_config.kind == "loha":
        return LoHaConfig(alpha=alpha, **common_peft_options)
    if lora_config.kind == "lokr":
        return LoKrConfig(
            alpha=alpha, decompose_factor=lora_config.lokr_factor or -1, **common_peft_options
        )
    return LoraConfig(
        lora_alpha=alpha,
        use_dora=lora_config.dora,
        use_rslora=lora_config.rslora,
        **common_peft_options,
    )


def _select_matching_patterns(patterns: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Those for layers of this model: readers of its file warn of others."""
    module_names = [module_name for module_name, _ in model.named_modules()]
    return {
        layer_pattern: value
        for layer_pattern, value in patterns.items()
        if any(adapters.matches_pattern(layer_pattern, module_name) for module_name in module_names)
    }


def _resolve_targets(model: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """The targets; whole names for one that containers of layers end with as well as layers."""
    target_names: list[str] = []
    for target in targets:
        matching_modules = [
            (module_name, module)
            for module_name, module in model.named_modules()
            if module_name == target or module_name.endswith(f".{target}")
        ]
        layer_names = [
            module_name
            for module_name, module in matching_modules
            if not isinstance(module, nn.ModuleList)
        ]
        target_names += layer_names if len(layer_names) < len(matching_modules) else [target]
    return target_names


@contextmanager
def _silence_peft_warnings() -> Iterator[None]:
    """What no user can change: an old name of transformers, and merging, which is not done here.

    A pattern may be for one network of several; `model_checks` refuses those that are for none.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated")
        warnings.filterwarnings("ignore", message="You have passed exclude_modules")
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not")
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        yield


def has_adapters(model: nn.Module) -> bool:
    """Whether a model has adapters from `inject_adapters`."""
    return bool(getattr(model, "peft_config", None))


def save_adapters(model: nn.Module, folder: Path) -> None:
    """Save a model's adapters as peft's save_pretrained does."""
    folder.mkdir(parents=True)
    adapter_state = get_peft_model_state_dict(model, save_embedding_layers=False)
    adapter_tensors = {
        f"{PREFIX}{k}": v.detach().cpu().contiguous() for k, v in adapter_state.items()
    }
    save_file(adapter_tensors, folder / WEIGHTS, metadata={"format": "pt"})
    peft_config = cast(dict[str, PeftConfig], model.peft_config)["default"]
    (folder / SETTINGS).write_text(
        json.dumps(_peft_config_to_json(peft_config), indent=1, sort_keys=True)
    )


def _peft_config_to_json(peft_config: PeftConfig) -> dict[str, Any]:
    peft_settings: dict[str, Any] = peft_config.to_dict()
    peft_settings["inference_mode"] = True
    return {k: sorted(v) if isinstance(v, set) else v for k, v in peft_settings.items()}


def fuse_adapters(model: nn.Module, folder: Path) -> nn.Module:
    """The same model with adapters from a folder added into its weights.

    raises: ConfigError if they are missing, pickled, or of another architecture
    """
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(
            f"{folder} has no {WEIGHTS}; adapters are read from safetensors alone, since a pickle "
            "can run code; write it again with peft's save_pretrained"
        )
    try:
        with _silence_peft_warnings():
            peft_model = PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{folder} does not fit the base model: {error}; it was trained on another one"
        ) from error
    fused_model: nn.Module = peft_model.merge_and_unload()
    return fused_model
