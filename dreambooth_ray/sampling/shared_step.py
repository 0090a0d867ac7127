"""One forward for several requests, and one solver step for each."""

from collections.abc import Sequence

from dreambooth_ray.sampling.denoiser import Denoiser, ForwardRow
from dreambooth_ray.sampling.guidance import apply_guidance, build_rows, store_deepcache_features
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.sampling.request_handle import TrajectoryState
from dreambooth_ray.sampling.trajectory_step import advance_state


def advance_together(batch: Sequence[tuple[Request, TrajectoryState]], denoiser: Denoiser) -> None:
    """Move the state of every request on by a step, in place; their latents are of one shape."""
    forward_rows: list[ForwardRow] = []
    for request, state in batch:
        forward_rows += build_rows(request, state)
    predictions = iter(denoiser(forward_rows))
    remaining_rows = iter(forward_rows)
    for request, state in batch:
        row_predictions = [(next(remaining_rows), next(predictions)) for _ in range(state.num_rows)]
        store_deepcache_features(
            request, state, [row.cached_features for row, _ in row_predictions]
        )
        prediction = apply_guidance(
            denoiser.functions, request, state, *(value for _, value in row_predictions)
        )
        advance_state(request, state, prediction)
