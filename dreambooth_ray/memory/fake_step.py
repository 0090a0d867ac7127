"""A training step on tensors without contents (torch's FakeTensorMode).

Shapes, dtypes and lifetimes are real, so the peak is what the true step would allocate, at no
cost in memory. It computes as a CPU does: attention there and on a GPU keeps no matrix of weights.
"""

from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreambooth_ray.compat.torch_memory import PeakTracker, fake_tensors, list_weights
from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.checkpointing import checkpoint_activations
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.precision import autocast_dtype, cast_frozen_layers
from dreambooth_ray.models.trainable_params import apply_method, is_trained

# Bytes a weight of a quantized layer, with its scales.
_QUANTIZED_BYTES = {"int8": 1.02, "fp8": 1.02, "nf4": 0.53}
_MIN_FEATURES = 64


def count_step(config: Config, directory: Path, batch: int) -> dict[str, int]:
    """The size of a step of `batch` images.

    returns: parameters `trained`; bytes `frozen_unet`, `frozen_text` and `frozen_vae` of the other
        weights; peak bytes of activations `with_gradients`, and without them: `activations`
    raises: OSError or ValueError where the directory's configuration files can't be read
    """
    tokenizer = (
        CLIPTokenizer.from_pretrained(directory, subfolder="tokenizer")
        if config.identifier.kind == "learned"
        else None
    )
    with torch.device("meta"):
        parts = _build_parts(directory, cast(CLIPTokenizer, tokenizer))
        apply_method(config, parts)
    counts = _count_weights(config, parts)
    _prepare_modules(config, parts)
    with fake_tensors():
        for model in (parts.unet, parts.text_encoder):
            _replace_tensors(model)
        counts["with_gradients"] = _find_peak(config, parts, batch, keeps_gradients=True)
        counts["activations"] = _find_peak(config, parts, batch, keeps_gradients=False)
    return counts


def _build_parts(directory: Path, tokenizer: CLIPTokenizer) -> Components:
    unet = UNet2DConditionModel.from_config(
        UNet2DConditionModel.load_config(directory, subfolder="unet")
    )
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(directory, subfolder="vae"))
    text_encoder = CLIPTextModel(
        CLIPTextConfig.from_pretrained(directory, subfolder="text_encoder")
    )
    vae.requires_grad_(False)
    # A schedule needs no memory worth counting.
    return Components(unet, vae, text_encoder, tokenizer, cast(DDPMScheduler, None))


def _replace_tensors(model: nn.Module) -> None:
    """Put fake tensors of a CPU there: the meta device knows neither autocast nor its kernels."""
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            fake = torch.empty_like(weight, device="cpu")
            module.register_parameter(name, nn.Parameter(fake, weight.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            setattr(module, name, torch.empty_like(buffer, device="cpu"))


def _prepare_modules(config: Config, parts: Components) -> None:
    text_encoder = parts.text_encoder if is_trained(parts.text_encoder) else None
    parts.unet.train()
    if config.train.strategy == "ddp":
        cast_frozen_layers(parts.unet, config.train.precision)
    if text_encoder is not None:
        text_encoder.train()
        cast_frozen_layers(text_encoder, config.train.precision)
    if config.train.gradient_checkpointing:
        checkpoint_activations(parts.unet, text_encoder)


def _count_weights(config: Config, parts: Components) -> dict[str, int]:
    half_bytes = torch.finfo(autocast_dtype(config.train.precision)).bits // 8
    layer_bytes = _QUANTIZED_BYTES.get(config.model.quantization, half_bytes)
    if config.train.strategy != "ddp":
        half_bytes = layer_bytes = 4
    models: tuple[nn.Module, ...] = (parts.unet, parts.text_encoder, parts.vae)
    trained = sum(p.numel() for m in models for p in m.parameters() if p.requires_grad)
    is_text_trained = is_trained(parts.text_encoder)
    return {
        "trained": trained,
        "frozen_unet": _count_frozen(parts.unet, layer_bytes, half_bytes),
        "frozen_text": _count_frozen(
            parts.text_encoder, *((half_bytes,) * 2 if is_text_trained else (4, 4))
        ),
        "frozen_vae": _count_frozen(parts.vae, 4, 4),
    }


def _count_frozen(model: nn.Module, linear_bytes: float, convolution_bytes: float) -> int:
    total = 0.0
    for module in model.modules():
        weights = [p for p in module.parameters(recurse=False) if not p.requires_grad]
        size = 4.0
        if isinstance(module, nn.Linear):
            is_large = min(module.in_features, module.out_features) >= _MIN_FEATURES
            size = linear_bytes if is_large else convolution_bytes
        elif isinstance(module, nn.Conv2d):
            size = convolution_bytes
        total += sum(p.numel() for p in weights) * size
    return int(total)


def _find_peak(config: Config, parts: Components, batch: int, *, keeps_gradients: bool) -> int:
    """Peak bytes, without weights, of a forward and a backward."""
    text_encoder: nn.Module = parts.text_encoder
    is_text_trained = is_trained(text_encoder)
    trained = [
        weight
        for model in (parts.unet, text_encoder)
        for weight in model.parameters()
        if weight.requires_grad
    ]
    for weight in trained:
        weight.grad = None
    hooks = (
        [] if keeps_gradients else [w.register_post_accumulate_grad_hook(_drop) for w in trained]
    )
    text_config = parts.text_encoder.config
    side = config.train.resolution // parts.latent_factor
    length, width = text_config.max_position_embeddings, text_config.hidden_size
    dtype = autocast_dtype(config.train.precision)
    with PeakTracker(list_weights([parts.unet, text_encoder])) as peak:
        latents = torch.empty(batch, parts.unet.config.in_channels, side, side)
        timesteps = torch.zeros(batch, dtype=torch.int64)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            hidden = (
                text_encoder(torch.zeros(batch, length, dtype=torch.int64)).last_hidden_state
                if is_text_trained
                else torch.empty(batch, length, width)
            )
            prediction = parts.unet(latents, timesteps, hidden, return_dict=False)[0]
        (prediction.float() - latents).square().mean().backward()
    for hook in hooks:
        hook.remove()
    return int(peak.peak_bytes)


def _drop(weight: Tensor) -> None:
    weight.grad = None
