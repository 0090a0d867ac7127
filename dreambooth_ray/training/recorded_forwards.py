"""The trained networks as a step calls them: recorded where that is the same, and quicker.

Legend: B batch, C latent channels, h, w latent sides, L tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_ray.config.forward_pass_rules import can_be_graphed
from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.graphed_forward import GraphedForward, GraphedTraining
from dreambooth_ray.models.model_functions import ModelFunctions
from dreambooth_ray.models.traced_forward import WARMUP_CALLS, TracedForward

# Times that one block's code may be compiled.
_MAX_COMPILED = 64


class StepForwards:
    """Traces on a CPU, CUDA graphs on a GPU, and the networks themselves elsewhere."""

    def __init__(
        self,
        config: Config,
        functions: ModelFunctions,
        denoiser: Any,
        text_encoders: dict[str, nn.Module],
        untrained_denoiser: nn.Module | None = None,
    ) -> None:
        """text_encoders: by name, where they are trained: else what they encode to is cached

        untrained_denoiser: the base model's, where its output is asked for
        """
        _compile_denoiser(config, denoiser)
        is_graphed, is_traced = can_be_graphed(config), _can_be_traced_on_cpu(config)
        self._denoiser = functions.denoiser_function(denoiser)
        self._traced = TracedForward(self._denoiser, 0) if is_traced else None
        self._graphed = GraphedTraining(self._denoiser) if is_graphed else None
        self._untrained = self._traced_untrained = self._graphed_untrained = None
        if untrained_denoiser is not None:
            self._untrained = functions.denoiser_function(untrained_denoiser)
            self._traced_untrained = TracedForward(self._untrained, 0) if is_traced else None
            self._graphed_untrained = GraphedForward(self._untrained) if is_graphed else None
        self._text_functions = (
            functions.text_training.text_functions(text_encoders) if text_encoders else {}
        )
        self._graphed_text_encoders: dict[str, GraphedTraining] = {}
        if is_graphed and functions.family.text_function_has_one_output:
            self._graphed_text_encoders = {
                name: GraphedTraining(function) for name, function in self._text_functions.items()
            }

    def predict(self, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        """(B, C, h, w) prediction. noisy: (B, C, h, w); times: (B,); conditioning: B rows"""
        recorded_forward = self._graphed if noisy.device.type == "cuda" else self._traced
        denoiser_inputs = noisy, times, *conditioning.values
        return (
            self._denoiser(*denoiser_inputs)
            if recorded_forward is None
            else recorded_forward(*denoiser_inputs)
        )

    @torch.no_grad()
    def predict_with_base_model(
        self, noisy: Tensor, times: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """The base model's prediction, as `predict`."""
        assert self._untrained is not None
        is_on_gpu = noisy.device.type == "cuda"
        recorded_forward = self._graphed_untrained if is_on_gpu else self._traced_untrained
        forward_function = recorded_forward or self._untrained
        return torch.as_tensor(forward_function(noisy, times, *conditioning.values))

    @property
    def text_functions(self) -> dict[str, Callable[..., Any]]:
        """The trained text encoders as functions of token ids (B, L), by name."""
        return {name: self._find_text_function(name) for name in self._text_functions}

    def _find_text_function(self, name: str) -> Callable[..., Any]:
        encode_text, graphed_encoder = (
            self._text_functions[name],
            self._graphed_text_encoders.get(name),
        )

        def encode_tokens(input_ids: Tensor) -> Any:
            is_on_gpu = input_ids.device.type == "cuda"
            return (
                graphed_encoder(input_ids)
                if graphed_encoder and is_on_gpu
                else encode_text(input_ids)
            )

        return encode_tokens

    def release(self) -> None:
        """Drop the graphs: weights are about to move, and a graph reads them where they were."""
        for graphed_forward in (self._graphed, *self._graphed_text_encoders.values()):
            if graphed_forward is not None:
                graphed_forward.release()
        self._graphed_untrained = None


def _compile_denoiser(config: Config, denoiser: Any) -> None:
    """As configured, in place."""
    if config.train.compile == "none":
        return
    # Blocks share their code, and it is compiled anew for each width, side and layout of memory.
    # One UNet comes near torch's own limit, 8, and beyond it a step would fail.
    torch.compiler.config.recompile_limit = max(
        _MAX_COMPILED, torch.compiler.config.recompile_limit
    )
    if config.train.compile == "blocks":
        denoiser.compile_repeated_blocks(fullgraph=True)
    else:
        denoiser.compile(fullgraph=True)


def _can_be_traced_on_cpu(config: Config) -> bool:
    """Whether a forward is done by its layers alone, no hooks or casts, and often enough."""
    train_config = config.train
    is_plain_float32_training = (
        train_config.strategy == "ddp"
        and train_config.precision == "32"
        and train_config.compile == "none"
        and not train_config.gradient_checkpointing
    )
    return is_plain_float32_training and train_config.steps * train_config.accumulate > WARMUP_CALLS
