"""A training step on tensors without contents (torch's FakeTensorMode).

Shapes, dtypes and lifetimes are real, so the peak is what the true step would allocate, at no
cost in memory. It computes as a CPU does: attention there and on a GPU keeps no matrix of weights.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from dreambooth_ray.compat.torch_memory import PeakTracker, fake_tensors, list_weights
from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.checkpointing import checkpoint_activations
from dreambooth_ray.models.components import Components, load_tokenizer, quiet_libraries
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.precision import (
    autocast_dtype,
    cast_frozen_layers,
    cast_trained_layers,
    cast_untrainable_encoders,
)
from dreambooth_ray.models.quantization import count_frozen_bytes
from dreambooth_ray.models.trainable_params import apply_method, is_trained

_TIME_DTYPES = {"diffusion": torch.int64, "flow": torch.float32}


def count_step(config: Config, directory: Path, batch: int) -> dict[str, int]:
    """The size of a step of `batch` images.

    returns: parameters `trained`, and numbers that Adafactor keeps of them: `factored`; bytes
        `trained_bytes` of them, and `frozen_unet`, `frozen_text` and `frozen_vae` of the other
        weights; peak bytes of activations `with_gradients`, and without them: `activations`
    raises: OSError or ValueError where the directory's configuration files can't be read
    """
    quiet_libraries()
    family = find_family(directory)
    with torch.device("meta"):
        parts = family.load_functions().build_empty(directory)
        if config.identifier.kind == "learned":
            for encoder in family.trainable_text_encoders:
                parts.tokenizers[encoder.tokenizer] = load_tokenizer(
                    directory, encoder.tokenizer, encoder.tokenizer_class
                )
        apply_method(config, parts)
    _prepare_modules(config, parts)
    counts = _count_weights(config, parts)
    with fake_tensors():
        for model in (parts.denoiser, *parts.text_encoders.values()):
            _replace_tensors(model)
        counts["with_gradients"] = _find_peak(config, parts, batch, keeps_gradients=True)
        counts["activations"] = _find_peak(config, parts, batch, keeps_gradients=False)
    return counts


def _replace_tensors(model: nn.Module) -> None:
    """Put fake tensors of a CPU there: the meta device knows neither autocast nor its kernels."""
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            fake = torch.empty_like(weight, device="cpu")
            module.register_parameter(name, nn.Parameter(fake, weight.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            setattr(module, name, torch.empty_like(buffer, device="cpu"))


def _prepare_modules(config: Config, parts: Components) -> None:
    """As the training's module does, still without memory."""
    parts.denoiser.train()
    cast_untrainable_encoders(parts, config.train.precision)
    trained_encoders = _list_trained_encoders(parts)
    for text_encoder in trained_encoders.values():
        text_encoder.train()
    if config.train.strategy == "ddp":
        for model in (parts.denoiser, *trained_encoders.values()):
            cast_frozen_layers(model, config.train.precision)
            cast_trained_layers(model, config.train.weight_dtype)
    if config.train.gradient_checkpointing:
        checkpoint_activations(parts.denoiser, trained_encoders.values())


def _list_trained_encoders(parts: Components) -> dict[str, nn.Module]:
    return {name: encoder for name, encoder in parts.text_encoders.items() if is_trained(encoder)}


def _count_weights(config: Config, parts: Components) -> dict[str, int]:
    models: tuple[nn.Module, ...] = tuple(parts.networks.values())
    trained = [p for model in models for p in model.parameters() if p.requires_grad]
    return {
        "trained_unet": sum(p.numel() for p in parts.denoiser.parameters() if p.requires_grad),
        "trained": sum(weight.numel() for weight in trained),
        "trained_bytes": sum(weight.nbytes for weight in trained),
        "factored": sum(_count_factored(weight.shape) for weight in trained),
        "frozen_unet": count_frozen_bytes(parts.denoiser, config.model.quantization),
        "frozen_text": sum(count_frozen_bytes(e, "none") for e in parts.text_encoders.values()),
        "frozen_vae": count_frozen_bytes(parts.vae, "none"),
    }


def _count_factored(shape: torch.Size) -> int:
    """Means that Adafactor keeps of a weight's squared gradients: over its last two axes."""
    if len(shape) < 2:
        return shape.numel()
    return shape[:-1].numel() + (shape[:-2] + shape[-1:]).numel()


def _find_peak(config: Config, parts: Components, batch: int, *, keeps_gradients: bool) -> int:
    """Peak bytes, without weights, of a forward and a backward."""
    trained_encoders = _list_trained_encoders(parts)
    models = [parts.denoiser, *trained_encoders.values()]
    trained = [w for model in models for w in model.parameters() if w.requires_grad]
    for weight in trained:
        weight.grad = None
    hooks = (
        [] if keeps_gradients else [w.register_post_accumulate_grad_hook(_drop) for w in trained]
    )
    with PeakTracker(list_weights([parts.denoiser, *parts.text_encoders.values()])) as peak:
        _run_step(config, parts, batch, trained_encoders)
    for hook in hooks:
        hook.remove()
    return int(peak.peak_bytes)


def _run_step(
    config: Config, parts: Components, batch: int, trained_encoders: dict[str, nn.Module]
) -> None:
    functions, dtype = parts.functions, autocast_dtype(config.train.precision)
    side = config.train.side_px // parts.latent_factor
    latents = torch.empty(batch, functions.latent_channels(parts.vae), side, side)
    times = torch.zeros(batch, dtype=_TIME_DTYPES[parts.family.process])
    conditioning = functions.example_conditioning(parts, batch, config.train.side_px)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        if trained_encoders:
            training = functions.text_training
            text_functions = training.text_functions(parts.trainable_text_encoders)
            conditioning = training.embed_examples(parts, text_functions, conditioning)
        function = functions.denoiser_function(parts.denoiser)
        prediction = function(latents, times, *conditioning.values)
    (prediction.float() - latents).square().mean().backward()


def _drop(weight: Tensor) -> None:
    weight.grad = None
