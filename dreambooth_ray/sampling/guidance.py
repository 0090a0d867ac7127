"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598) and its variants.

Legend: C latent channels, h, w latent sides, F features before the UNet's last block.
"""

import torch
from torch import Tensor

from dreambooth_ray.models.model_functions import ModelFunctions
from dreambooth_ray.sampling.denoiser import ForwardRow
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.sampling.request_handle import TrajectoryState


def needs_unconditional_prediction(request: Request, state: TrajectoryState) -> bool:
    """Whether this step needs an unconditional prediction."""
    if not _is_guidance_on(request, state):
        return False
    return state.guidance_delta is None or state.step_index % request.params.guidance_every == 0


def _is_guidance_on(request: Request, state: TrajectoryState) -> bool:
    interval_start, interval_end = request.params.guidance_interval
    sampling_fraction_done = state.step_index / len(state.solver_table.steps)
    uses_guidance = request.params.guidance_scale != 1 and state.negative_conditioning is not None
    return uses_guidance and interval_start <= sampling_fraction_done < interval_end


def build_rows(request: Request, state: TrajectoryState) -> list[ForwardRow]:
    """The denoiser's rows for a request's next step: with the prompt, then without."""
    conditionings = [state.conditioning]
    if state.negative_conditioning is not None and needs_unconditional_prediction(request, state):
        conditionings.append(state.negative_conditioning)
    state.num_rows = len(conditionings)
    model_input = (
        state.latents
        if state.inpainting_channels is None
        else torch.cat([state.latents, state.inpainting_channels])
    )
    cache_every = request.params.cache_every
    returns_features = cache_every > 1 and state.step_index % cache_every == 0
    cached_features: list[Tensor | None] = [None, None]
    if (
        cache_every > 1
        and not returns_features
        and len(state.cached_features) >= len(conditionings)
    ):
        cached_features = list(state.cached_features)
    return [
        ForwardRow(
            model_input, state.timestep, conditioning, request.adapters, returns_features, features
        )
        for conditioning, features in zip(conditionings, cached_features, strict=False)
    ]


def store_deepcache_features(
    request: Request, state: TrajectoryState, row_features: list[Tensor | None]
) -> None:
    """Store the (F, h, w) features of each row, at every request.params.cache_every-th step."""
    if request.params.cache_every > 1 and state.step_index % request.params.cache_every == 0:
        state.cached_features = [features for features in row_features if features is not None]


def apply_guidance(
    functions: ModelFunctions,
    request: Request,
    state: TrajectoryState,
    conditional: Tensor,
    unconditional: Tensor | None = None,
) -> Tensor:
    """The guided prediction, (C, h, w).

    functions: of the model's family, whose business its formula is
    conditional, unconditional: (C, h, w); the latter None where
    `needs_unconditional_prediction` was false
    """
    if unconditional is not None:
        guidance_delta = conditional - unconditional
        state.guidance_delta = guidance_delta if request.params.guidance_every > 1 else None
    elif _is_guidance_on(request, state) and state.guidance_delta is not None:
        guidance_delta = state.guidance_delta
    else:
        return conditional
    guided_prediction = functions.guide(
        conditional,
        guidance_delta,
        request.params.guidance_scale,
        state.step_index / len(state.solver_table.steps),
    )
    if request.params.guidance_rescale:
        # Lin et al. 2023, arXiv 2305.08891, eq. 15 and 16.
        rescaled_prediction = guided_prediction * (conditional.std() / guided_prediction.std())
        guided_prediction = guided_prediction.lerp(
            rescaled_prediction, request.params.guidance_rescale
        )
    return guided_prediction
