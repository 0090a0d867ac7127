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
from dreambooth_ray.models.quantization import count_frozen_bytes
from dreambooth_ray.models.trainable_params import apply_method, is_trained


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
    _prepare_modules(config, parts)
    counts = _count_weights(config, parts)
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
    """As the training's module does, still without memory."""
    text_encoder = parts.text_encoder if is_trained(parts.text_encoder) else None
    parts.unet.train()
    if text_encoder is not None:
        text_encoder.train()
    if config.train.strategy == "ddp":
        for model in (parts.unet, text_encoder):
            if model is not None:
                cast_frozen_layers(model, config.train.precision)
    if config.train.gradient_checkpointing:
        checkpoint_activations(parts.unet, text_encoder)


def _count_weights(config: Config, parts: Components) -> dict[str, int]:
    models: tuple[nn.Module, ...] = (parts.unet, parts.text_encoder, parts.vae)
    return {
        "trained_unet": sum(p.numel() for p in parts.unet.parameters() if p.requires_grad),
        "trained": sum(p.numel() for m in models for p in m.parameters() if p.requires_grad),
        "frozen_unet": count_frozen_bytes(parts.unet, config.model.quantization),
        "frozen_text": count_frozen_bytes(parts.text_encoder, "none"),
        "frozen_vae": count_frozen_bytes(parts.vae, "none"),
    }


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
