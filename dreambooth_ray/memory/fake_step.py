"""A training step on tensors without contents (torch's FakeTensorMode).

Shapes, dtypes and lifetimes are real, so the peak is what the true step would allocate, at no
cost in memory. It computes as a CPU does: attention there and on a GPU keeps no matrix of weights.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from dreambooth_ray.compat.torch_peak_memory import PeakTracker, fake_tensors, list_weight_tensors
from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.activation_checkpointing import checkpoint_activations
from dreambooth_ray.models.components import Components, load_tokenizer, quiet_libraries
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.precision import (
    autocast_dtype,
    cast_frozen_layers,
    cast_to_weight_dtype,
    cast_untrainable_encoders,
)
from dreambooth_ray.models.quantization import count_frozen_bytes
from dreambooth_ray.models.trainable_params import apply_train_method, has_trainable_weights

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
        components = family.load_functions().build_empty_components(directory)
        if config.identifier.kind == "learned":
            for encoder_part in family.trainable_text_encoders:
                components.tokenizers[encoder_part.tokenizer] = load_tokenizer(
                    directory, encoder_part.tokenizer, encoder_part.tokenizer_class
                )
        apply_train_method(config, components)
    _prepare_modules(config, components)
    memory_counts = _count_weights(config, components)
    with fake_tensors():
        for network in (components.denoiser, *components.text_encoders.values()):
            _replace_tensors(network)
        memory_counts["with_gradients"] = _measure_peak_memory(
            config, components, batch, keeps_gradients=True
        )
        memory_counts["activations"] = _measure_peak_memory(
            config, components, batch, keeps_gradients=False
        )
    return memory_counts


def _replace_tensors(network: nn.Module) -> None:
    """Put fake tensors of a CPU there: the meta device knows neither autocast nor its kernels."""
    for module in network.modules():
        for name, weight in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            fake_weight = torch.empty_like(weight, device="cpu")
            module.register_parameter(name, nn.Parameter(fake_weight, weight.requires_grad))
        for name, module_buffer in list(
            module.named_buffers(recurse=False, remove_duplicate=False)
        ):
            setattr(module, name, torch.empty_like(module_buffer, device="cpu"))


def _prepare_modules(config: Config, components: Components) -> None:
    """As the training's module does, still without memory."""
    components.denoiser.train()
    cast_untrainable_encoders(components, config.train.precision)
    trained_encoders = _list_trained_encoders(components)
    for text_encoder in trained_encoders.values():
        text_encoder.train()
    if config.train.strategy == "ddp":
        for network in (components.denoiser, *trained_encoders.values()):
            cast_frozen_layers(network, config.train.precision)
            cast_to_weight_dtype(network, config.train.weight_dtype)
    if config.train.gradient_checkpointing:
        checkpoint_activations(components.denoiser, trained_encoders.values())


def _list_trained_encoders(components: Components) -> dict[str, nn.Module]:
    return {
        name: encoder
        for name, encoder in components.text_encoders.items()
        if has_trainable_weights(encoder)
    }


def _count_weights(config: Config, components: Components) -> dict[str, int]:
    networks: tuple[nn.Module, ...] = tuple(components.networks.values())
    trained_weights = [p for network in networks for p in network.parameters() if p.requires_grad]
    return {
        "trained_unet": sum(p.numel() for p in components.denoiser.parameters() if p.requires_grad),
        "trained": sum(weight.numel() for weight in trained_weights),
        "trained_bytes": sum(weight.nbytes for weight in trained_weights),
        "factored": sum(_count_factored(weight.shape) for weight in trained_weights),
        "frozen_unet": count_frozen_bytes(components.denoiser, config.model.quantization),
        "frozen_text": sum(
            count_frozen_bytes(e, "none") for e in components.text_encoders.values()
        ),
        "frozen_vae": count_frozen_bytes(components.vae, "none"),
    }


def _count_factored(shape: torch.Size) -> int:
    """Means that Adafactor keeps of a weight's squared gradients: over its last two axes."""
    if len(shape) < 2:
        return shape.numel()
    return shape[:-1].numel() + (shape[:-2] + shape[-1:]).numel()


def _measure_peak_memory(
    config: Config, components: Components, batch: int, *, keeps_gradients: bool
) -> int:
    """Peak bytes, without weights, of a forward and a backward."""
    trained_encoders = _list_trained_encoders(components)
    networks = [components.denoiser, *trained_encoders.values()]
    trained_weights = [w for network in networks for w in network.parameters() if w.requires_grad]
    for weight in trained_weights:
        weight.grad = None
    gradient_hooks = (
        []
        if keeps_gradients
        else [w.register_post_accumulate_grad_hook(_drop_gradient) for w in trained_weights]
    )
    with PeakTracker(
        list_weight_tensors([components.denoiser, *components.text_encoders.values()])
    ) as peak_tracker:
        _run_fake_step(config, components, batch, trained_encoders)
    for gradient_hook in gradient_hooks:
        gradient_hook.remove()
    return int(peak_tracker.peak_bytes)


def _run_fake_step(
    config: Config, components: Components, batch: int, trained_encoders: dict[str, nn.Module]
) -> None:
    model_functions, dtype = components.functions, autocast_dtype(config.train.precision)
    latent_side = config.train.side_px // components.latent_factor
    latents = torch.empty(
        batch, model_functions.latent_channels(components.vae), latent_side, latent_side
    )
    timesteps = torch.zeros(batch, dtype=_TIME_DTYPES[components.family.process])
    conditioning = model_functions.example_conditioning(components, batch, config.train.side_px)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        if trained_encoders:
            text_training_functions = model_functions.text_training
            text_functions = text_training_functions.text_functions(
                components.trainable_text_encoders
            )
            conditioning = text_training_functions.encode_dummy_tokens(
                components, text_functions, conditioning
            )
        denoiser_function = model_functions.denoiser_function(components.denoiser)
        prediction = denoiser_function(latents, timesteps, *conditioning.values)
    (prediction.float() - latents).square().mean().backward()


def _drop_gradient(weight: Tensor) -> None:
    weight.grad = None
