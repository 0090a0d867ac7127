"""How much memory a training step takes, told from a model's configuration files alone.

Parameters are counted, and a forward pass is run, on torch's meta device, where tensors have shapes
and no bytes: what autograd would keep for the backward pass is added up as it is kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreambooth_ray.config.schema import Config
from dreambooth_ray.diffusion.components import Components
from dreambooth_ray.diffusion.methods import apply_method, is_trained

Strategy = Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"]

# Bytes a trained parameter costs a worker, in float32: (whole on every worker, shared by all).
# AdamW keeps two moments, 8 bytes; weight 4, gradient 4. A frozen parameter is its weight alone.
BYTES_A_PARAMETER: dict[Strategy, tuple[int, int]] = {
    "ddp": (16, 0),
    "zero1": (8, 8),
    "zero2": (4, 12),
    "zero3": (0, 16),
    "fsdp2": (0, 16),
}
FROZEN_BYTES = 4
# Gradients of activations and the kernels' work space, on top of what autograd keeps: 1.3 to
# 1.5 were measured at the toy model's size, see tests/integration/test_footprint.py.
WORK_SPACE = 1.4


@dataclass(frozen=True)
class Footprint:
    """Bytes of one worker at the height of a step.

    states: weights, gradients and optimizer of what is trained; frozen: the other weights;
    activations: what the forward pass keeps for the backward pass, and what that works with
    """

    states_bytes: int
    frozen_bytes: int
    activations_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.states_bytes + self.frozen_bytes + self.activations_bytes


def footprint(config: Config, directory: Path, strategy: Strategy = "ddp") -> Footprint:
    """Memory of one worker training `directory` as `config` says, without loading a weight.

    raises: OSError or ValueError where the directory's configuration files can't be read
    """
    parts = _meta_parts(directory)
    apply_method(config, parts)
    models = (parts.unet, parts.text_encoder, parts.vae)
    weights = [p for model in models for p in model.parameters()]
    trained = sum(p.numel() for p in weights if p.requires_grad)
    frozen = sum(p.numel() for p in weights if not p.requires_grad)
    own, shared = BYTES_A_PARAMETER[strategy]
    return Footprint(
        states_bytes=own * trained + shared * trained // config.cluster.workers,
        frozen_bytes=FROZEN_BYTES * frozen,
        activations_bytes=_activations(config, parts),
    )


def images_of_a_worker(config: Config) -> int:
    """Pictures of both kinds that one worker computes at once."""
    return config.images_a_step // config.cluster.span.max // config.train.accumulate


def _meta_parts(directory: Path) -> Components:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(
            UNet2DConditionModel.load_config(directory, subfolder="unet")
        )
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(directory, subfolder="vae"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(directory, subfolder="text_encoder"))
    vae.requires_grad_(False)
    # Neither tokenizer nor schedule has a part in memory.
    return Components(unet, vae, text, cast(CLIPTokenizer, None), cast(DDPMScheduler, None))


def _activations(config: Config, parts: Components) -> int:
    """Bytes that autograd keeps of one forward pass through what is trained."""
    batch = images_of_a_worker(config)
    text: nn.Module = parts.text_encoder
    settings = parts.text_encoder.config
    side = config.train.resolution // parts.latent_factor
    with torch.device("meta"):
        latents = torch.empty(batch, parts.unet.config.in_channels, side, side)
        steps = torch.zeros(batch, dtype=torch.int64)
        ids = torch.zeros(batch, settings.max_position_embeddings, dtype=torch.int64)
        hidden = torch.empty(batch, settings.max_position_embeddings, settings.hidden_size)
    weights = {id(p) for model in (parts.unet, text) for p in model.parameters()}
    with _kept_bytes(weights) as kept:
        if is_trained(text):
            hidden = text(ids).last_hidden_state
        parts.unet(latents, steps, hidden).sample.square().mean()
    return int(WORK_SPACE * sum(kept.values()))


@contextmanager
def _kept_bytes(weights: set[int]) -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd saves inside the block, parameters left out."""
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def save(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in weights:
            # Kept alive, so that no other tensor takes over its identity.
            alive.append(base)
            kept[id(base)] = base.numel() * base.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        yield kept
