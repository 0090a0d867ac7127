"""The trained networks as a step calls them: recorded where that is the same, and quicker.

Legend: B batch, C latent channels, h, w latent sides, L tokens, D their width.
"""

from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dreambooth_ray.config.schema import Config, can_be_graphed
from dreambooth_ray.models.graphed_forward import GraphedForward, GraphedTraining
from dreambooth_ray.models.traced_forward import WARMUP_CALLS, PlainUNet, TracedForward


class RecordedForwards:
    """Traces on a CPU, CUDA graphs on a GPU, and the networks themselves elsewhere."""

    def __init__(
        self,
        config: Config,
        unet: UNet2DConditionModel,
        text_encoder: nn.Module | None,
        untrained_unet: nn.Module | None = None,
    ) -> None:
        """text_encoder: None where it is frozen, as its embeddings are cached then

        untrained_unet: the base model's, where its output is asked for
        """
        if config.train.compile == "blocks":
            unet.compile_repeated_blocks(fullgraph=True)
        elif config.train.compile == "whole":
            unet.compile(fullgraph=True)
        self._unet = PlainUNet(unet)
        self._text_encoder = None if text_encoder is None else PlainTextEncoder(text_encoder)
        self._traced_unet = TracedForward(self._unet, 0) if _can_be_traced(config) else None
        is_graphed = can_be_graphed(config)
        self._untrained_unet = None if untrained_unet is None else PlainUNet(untrained_unet)
        self._traced_untrained_unet = (
            TracedForward(self._untrained_unet, 0)
            if self._untrained_unet and _can_be_traced(config)
            else None
        )
        self._graphed_untrained_unet = (
            GraphedForward(self._untrained_unet) if is_graphed and self._untrained_unet else None
        )
        self._graphed_unet = GraphedTraining(self._unet) if is_graphed else None
        self._graphed_text_encoder = (
            GraphedTraining(self._text_encoder) if is_graphed and self._text_encoder else None
        )

    def predict(self, noisy: Tensor, timesteps: Tensor, hidden: Tensor) -> Tensor:
        """(B, C, h, w) prediction. noisy: (B, C, h, w); timesteps: (B,); hidden: (B, L, D)"""
        is_gpu = noisy.device.type == "cuda"
        recorded = self._graphed_unet if is_gpu else self._traced_unet
        inputs = noisy, timesteps, hidden
        return self._unet(*inputs) if recorded is None else recorded(*inputs)

    @torch.no_grad()
    def predict_untrained(self, noisy: Tensor, timesteps: Tensor, hidden: Tensor) -> Tensor:
        """The base model's prediction, as `predict`."""
        assert self._untrained_unet is not None
        is_gpu = noisy.device.type == "cuda"
        recorded = self._graphed_untrained_unet if is_gpu else self._traced_untrained_unet
        network = recorded or self._untrained_unet
        assert network is not None
        return torch.as_tensor(network(noisy, timesteps, hidden))

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        """(B, L, D) embeddings of (B, L) token ids by the trained text encoder."""
        assert self._text_encoder is not None
        if self._graphed_text_encoder is None or input_ids.device.type != "cuda":
            return torch.as_tensor(self._text_encoder(input_ids))
        return self._graphed_text_encoder(input_ids)

    def release(self) -> None:
        """Drop the graphs: weights are about to move, and a graph reads them where they were."""
        for graphed in (self._graphed_unet, self._graphed_text_encoder):
            if graphed is not None:
                graphed.release()
        self._graphed_untrained_unet = None


class PlainTextEncoder(nn.Module):
    """A text encoder as a function from token ids to its last hidden state."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids: (B, L) int64; returns (B, L, D)."""
        return cast(Tensor, cast(Any, self.text_encoder)(input_ids).last_hidden_state)


def _can_be_traced(config: Config) -> bool:
    """Whether a forward is done by its layers alone, no hooks or casts, and often enough."""
    train = config.train
    is_plain = (
        train.strategy == "ddp"
        and train.precision == "32"
        and train.compile == "none"
        and not train.gradient_checkpointing
    )
    return is_plain and train.steps * train.accumulate > WARMUP_CALLS
