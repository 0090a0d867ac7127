"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598) and its variants.

Legend: C latent channels, h, w latent sides, F features before the UNet's last block.
"""

import torch
from torch import Tensor

from dreambooth_ray.sampling.denoiser import Row
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.sampling.request_handle import SamplingState


def wants_guidance(request: Request, state: SamplingState) -> bool:
    """Whether this step needs a prediction without the prompt."""
    if not _is_on(request, state):
        return False
    return state.push is None or state.index % request.guidance_every == 0


def _is_on(request: Request, state: SamplingState) -> bool:
    start, end = request.guidance_interval
    done = state.index / len(state.table.steps)
    return request.guidance_scale != 1 and start <= done < end


def step_rows(request: Request, state: SamplingState) -> list[Row]:
    """What the UNet is to predict for a request's next step: with the prompt, then without."""
    hidden = [state.hidden]
    if wants_guidance(request, state):
        hidden.append(state.negative)
    state.num_rows = len(hidden)
    x = state.x if state.extra is None else torch.cat([state.x, state.extra])
    keeps = request.cache_every > 1 and state.index % request.cache_every == 0
    deep: list[Tensor | None] = [None, None]
    if request.cache_every > 1 and not keeps and len(state.deep) >= len(hidden):
        deep = list(state.deep)
    return [
        Row(x, state.step.timestep, embedded, request.adapter, keeps, features)
        for embedded, features in zip(hidden, deep, strict=False)
    ]


def keep_features(request: Request, state: SamplingState, deep: list[Tensor | None]) -> None:
    """Keep what rows of (F, h, w) features a step with request.cache_every brought."""
    if request.cache_every > 1 and state.index % request.cache_every == 0:
        state.deep = [features for features in deep if features is not None]


def guided(
    request: Request, state: SamplingState, conditional: Tensor, unconditional: Tensor | None = None
) -> Tensor:
    """(C, h, w) prediction to go on with.

    conditional, unconditional: (C, h, w); the latter None where `wants_guidance` was false
    """
    if unconditional is not None:
        push = conditional - unconditional
        state.push = push if request.guidance_every > 1 else None
    elif _is_on(request, state) and state.push is not None:
        push = state.push
    else:
        return conditional
    result = conditional + (request.guidance_scale - 1) * push
    if request.guidance_rescale:
        # Lin et al. 2023, arXiv 2305.08891, eq. 15 and 16.
        rescaled = result * (conditional.std() / result.std())
        result = result.lerp(rescaled, request.guidance_rescale)
    return result
