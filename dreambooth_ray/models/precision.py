"""Where a model's parts lie, and in which dtype: the one place that decides it.

Trained weights are float32, some of them what train.weight_dtype says; optimizer states, latents,
noise and the forward process are float32. What is frozen has the dtype that is computed in, since
autocast would cast it there at every step. The VAE stays in float32 unless its own configuration
says that half is enough.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.family import ModelFamily, TextEncoderPart

HALF_DTYPES = (torch.bfloat16, torch.float16)
# Of a device's free memory: what is computed with them takes the rest.
_SHARE_FOR_WEIGHTS = 0.9
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_AUTOCAST_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def resolve_device(name: str = "auto") -> torch.device:
    """The device of a name: 'auto' is the GPU where there is one, else the CPU.

    raises: ConfigError for a device that this machine does not have
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name!r} is none; take auto, cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={name!r} is not supported; take auto, cpu, cuda or cuda:1")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        num_available_gpus = torch.cuda.device_count()
        raise ConfigError(
            f"device={name!r}: this machine has {num_available_gpus} GPUs that torch can use; take "
            + ("cpu" if num_available_gpus == 0 else f"cuda:0 to cuda:{num_available_gpus - 1}")
        )
    return device


def resolve_sampling_dtype(
    device: torch.device, family: ModelFamily, name: str = "auto"
) -> torch.dtype:
    """What to sample in: 'auto' is the family's half on a GPU, else float32.

    On an H100 the toy's images in float16 were 0.05 levels of 255 from those in float32, and in
    bfloat16 0.44 (`python -m benchmarks.gpu`); models that were published in bfloat16 may have
    numbers that float16 has not.
    raises: ConfigError for another name
    """
    if name == "auto":
        return _DTYPES[family.half_dtype] if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise ConfigError(f"dtype={name!r} is none; take auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def use_fast_float32(device: torch.device) -> None:
    """Let a GPU multiply float32 in TF32: 10 bits of mantissa, several times as fast."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def place_for_sampling(parts: Components, device: torch.device, dtype: torch.dtype | None) -> None:
    """Move all parts to a device, in place; dtype None leaves every weight's as it is."""
    use_fast_float32(device)
    parts.denoiser.to(device, dtype)
    for part in parts.family.text_encoders:
        encoder_dtype = None if dtype is None else _choose_encoder_dtype(part, dtype)
        parts.text_encoders[part.name].to(device, encoder_dtype)
    parts.vae.to(device, None if dtype is None else choose_vae_dtype(parts.vae, dtype))
    if device.type == "cuda":
        put_channels_last(parts.denoiser)
        put_channels_last(parts.vae)


def put_channels_last(network: Any) -> None:
    """In place: a GPU's convolutions in half read channels last, and copy others there first.

    Networks of videos stay as they are: their weights have an axis more.
    """
    if all(parameter.ndim <= 4 for parameter in network.parameters()):
        network.to(memory_format=torch.channels_last)


def choose_vae_dtype(vae: Any, dtype: torch.dtype) -> torch.dtype:
    """float32 where the VAE asks for it (diffusers' `force_upcast`, true unless it is set)."""
    return torch.float32 if getattr(vae.config, "force_upcast", True) else dtype


def _choose_encoder_dtype(part: TextEncoderPart, dtype: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if part.overflows and dtype == torch.float16 else dtype


def autocast_dtype(precision: str) -> torch.dtype:
    """What products are computed in, by train.precision."""
    return _AUTOCAST_DTYPES.get(precision, torch.float32)


def choose_fitting_device(network: nn.Module, device: torch.device) -> torch.device:
    """The device where a frozen network's weights fit into its free memory, else the CPU."""
    if device.type != "cuda":
        return device
    weight_bytes = sum(w.numel() * w.element_size() for w in network.parameters())
    free_gpu_bytes = torch.cuda.mem_get_info(device)[0]
    return device if weight_bytes < _SHARE_FOR_WEIGHTS * free_gpu_bytes else torch.device("cpu")


def cast_untrainable_encoders(parts: Components, precision: str) -> None:
    """Give text encoders that can't be trained the dtype that is computed in, in place.

    In float32 a language model would often take more than the denoiser, and more than a GPU has.
    precision: as train.precision
    """
    for part in parts.family.text_encoders:
        if not part.can_train:
            dtype = _choose_encoder_dtype(part, autocast_dtype(precision))
            parts.text_encoders[part.name].to(dtype)


def cast_frozen_layers(model: nn.Module, precision: str) -> None:
    """Give frozen linear and convolution layers the dtype that mixed precision computes in.

    In place. Autocast casts these weights to it at every step, so results do not change; norms
    and embeddings stay in float32. Nothing happens with precision '32'.
    precision: as train.precision
    """
    dtype = autocast_dtype(precision)
    if dtype == torch.float32:
        return
    for module in model.modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        parameters = list(module.parameters(recurse=False))
        # Quantized ones are in fewer bits already.
        is_float32 = all(parameter.dtype == torch.float32 for parameter in parameters)
        if is_float32 and not any(parameter.requires_grad for parameter in parameters):
            for parameter in parameters:
                parameter.data = parameter.data.to(dtype)


def cast_to_weight_dtype(model: nn.Module, weight_dtype: str) -> None:
    """Give trained linear and convolution layers the dtype that they are trained in, in place.

    Norms, embeddings and magnitudes stay in float32: they are small, and matter much.
    weight_dtype: as train.weight_dtype
    """
    dtype = _DTYPES[weight_dtype]
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            for parameter in module.parameters(recurse=False):
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)


def has_mixed_dtypes(network: nn.Module) -> bool:
    """Whether some weights are in half and others in float32."""
    dtypes = {parameter.dtype for parameter in network.parameters()}
    return len(dtypes) > 1 and not dtypes.isdisjoint(HALF_DTYPES)


def autocast_mixed(network: nn.Module) -> AbstractContextManager[object]:
    """Autocast to the half that a network's frozen layers have; nothing where none has."""
    half_parameters = (
        half_parameter
        for half_parameter in network.parameters()
        if half_parameter.dtype in HALF_DTYPES
    )
    half_parameter = next(half_parameters, None)
    if half_parameter is None:
        return nullcontext()
    return torch.autocast(half_parameter.device.type, half_parameter.dtype)
