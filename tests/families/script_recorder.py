"""Hooks that watch a training script of diffusers, which itself stays as it is."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from tests.families.golden_values import GoldenStep, fill_lora

_PARTS = {
    "UNet2DConditionModel": "unet",
    "ZImageTransformer2DModel": "transformer",
    "Flux2Transformer2DModel": "transformer",
    "FluxTransformer2DModel": "transformer",
    "SD3Transformer2DModel": "transformer",
    "QwenImageTransformer2DModel": "transformer",
    "Krea2Transformer2DModel": "transformer",
    "SanaTransformer2DModel": "transformer",
}
_DENOISERS = ("unet", "transformer")
_NUM_FULL_GRADIENTS, _MAX_GRADIENT_SIZE = 8, 256  # stored whole, of a step
# A script's own names, and what they are called here. Halves are joined again.
_LOCALS = {
    "pixel_values": "pixel_values",
    "model_input": "latents",
    "noise": "noise",
    "noisy_model_input": "noisy_latents",
    "timesteps": "timesteps",
    "u": "density",
    "sigmas": "sigmas",
    "weighting": "weighting",
    "target": "target",
    "model_pred": "prediction",
    "mse_loss_weights": "snr_weights",
    "add_time_ids": "time_ids",
}


class ScriptRecorder:
    """Records the steps of one run. parts: the networks that the script trains, by name"""

    def __init__(self) -> None:
        self.steps: list[GoldenStep] = []
        self.parts: dict[str, nn.Module] = {}
        self._seen: dict[str, Tensor] = {}

    @contextmanager
    def watch(self) -> Iterator[None]:
        """While it lasts, calls of accelerate and of the autoencoder are seen."""
        listed = Path.iterdir
        with ExitStack() as stack:
            for owner, name, hook in (
                (Accelerator, "prepare", self._prepare(Accelerator.prepare)),
                (Accelerator, "backward", self._backward(Accelerator.backward)),
                (DiagonalGaussianDistribution, "sample", self._draw("sample")),
                (DiagonalGaussianDistribution, "mode", self._draw("mode")),
                # A tracker's own table takes no lists among a script's arguments.
                (Accelerator, "init_trackers", lambda *_, **__: None),
                # Photographs come in the same order from every file system.
                (Path, "iterdir", lambda folder: iter(sorted(listed(folder)))),
            ):
                stack.enter_context(patch.object(owner, name, hook))
            yield

    def _prepare(self, original: Any) -> Any:
        def prepare(accelerator: Accelerator, *args: Any, **options: Any) -> Any:
            for network in (arg for arg in args if isinstance(arg, nn.Module)):
                part = self._name_part(network)
                self.parts[part] = network
                fill_lora(part, network)
                if part in _DENOISERS:
                    network.register_forward_hook(self._see_forward, with_kwargs=True)
            return original(accelerator, *args, **options)

        return prepare

    def _name_part(self, network: nn.Module) -> str:
        """Text encoders are prepared in their order."""
        class_name = type(network).__name__
        if class_name in _PARTS:
            return _PARTS[class_name]
        assert class_name.startswith("CLIPTextModel")
        return "text_encoder_2" if "text_encoder" in self.parts else "text_encoder"

    def _see_forward(self, network: nn.Module, args: Any, options: Any, output: Any) -> None:
        names = network.forward.__wrapped__.__code__.co_varnames[1:]  # type: ignore[attr-defined]
        inputs = dict(zip(names, args, strict=False)) | options
        inputs |= inputs.pop("added_cond_kwargs", None) or {}
        num_rows = len(inputs["x"]) if "x" in inputs else None
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                self._seen[f"input.{name}"] = value
            elif isinstance(value, list):  # of Z-Image, whose script gives more than there are rows
                for k, tensor in enumerate(value[:num_rows]):
                    if isinstance(tensor, Tensor):
                        self._seen[f"input.{name}.{k}"] = tensor
        first = output[0]
        self._seen["output"] = torch.stack(first) if isinstance(first, list) else first

    def _draw(self, name: str) -> Any:
        original = getattr(DiagonalGaussianDistribution, name)

        def draw(posterior: Any, *args: Any, **options: Any) -> Tensor:
            latents: Tensor = original(posterior, *args, **options)
            seen = {"raw_latents": latents, "posterior_mean": posterior.mean}
            self._seen |= seen | {"posterior_std": posterior.std}
            return latents

        return draw

    def _backward(self, original: Any) -> Any:
        def backward(accelerator: Accelerator, loss: Tensor, **options: Any) -> None:
            script = sys._getframe(1).f_locals
            original(accelerator, loss, **options)
            for name, ours in _LOCALS.items():
                if isinstance(script.get(name), Tensor):
                    half = script.get(f"{name}_prior")
                    whole = script[name] if half is None else torch.cat([script[name], half])
                    self._seen[ours] = whole
            prior = script.get("prior_loss")
            norms, gradients = self._gradients()
            tensors = {k: _take_frame(v.detach()) for k, v in (self._seen | gradients).items()}
            prior_loss = None if prior is None else prior.item()
            self.steps.append(GoldenStep(tensors, loss.item(), prior_loss, norms))
            self._seen = {}

        return backward

    def _gradients(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        gradients = {
            f"{part}.{name.removesuffix('.default.weight')}": parameter.grad
            for part, network in self.parts.items()
            for name, parameter in network.named_parameters()
            if parameter.grad is not None and _is_trained(name, network)
        }
        norms = {name: gradient.norm().item() for name, gradient in gradients.items()}
        small = sorted(name for name in gradients if gradients[name].numel() <= _MAX_GRADIENT_SIZE)
        stride = len(small) // _NUM_FULL_GRADIENTS | 1  # odd: of lora_A and of lora_B
        return norms, {f"gradient.{name}": gradients[name] for name in small[::stride]}


def _take_frame(tensor: Tensor) -> Tensor:
    """A copy; of videos, (B, C, 1, h, w) or (B, 1, C, h, w), their only frame."""
    if tensor.ndim == 5:
        tensor = tensor.squeeze(2 if tensor.shape[2] == 1 else 1)
    return tensor.clone()


def _is_trained(name: str, network: nn.Module) -> bool:
    """SDXL's script asks for gradients of token embeddings, which it does not train."""
    has_lora = any(".lora_" in other for other, _ in network.named_parameters())
    return ".lora_" in name or not has_lora
