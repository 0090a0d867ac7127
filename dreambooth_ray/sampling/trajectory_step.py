"""One solver step of one request: its latents, its preview, and its unmasked part.

Legend: C latent channels, h, w latent sides.
"""

from torch import Tensor

from dreambooth_ray.objective import noise
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.sampling.request_handle import TrajectoryState, copy_to_gpu
from dreambooth_ray.sampling.solver_steps import apply_step


def advance_state(request: Request, state: TrajectoryState, prediction: Tensor) -> None:
    """Move the state to its next step, in place. prediction: (C, h, w), guided."""
    solver_step, step_noise = state.step, None
    if solver_step.noise_scale:
        first_step_index = request.params.num_inference_steps - len(state.solver_table.steps)
        noise_index = first_step_index + state.step_index
        latents_shape = tuple(state.latents.shape)
        step_noise = noise.sample_normal(request.seed, "solver", noise_index, [0], latents_shape)[0]
        if state.latents.device.type != "cpu":
            step_noise = copy_to_gpu(step_noise, state.latents.device)
    p, q = solver_step.clean_weights
    state.preview_latents = p * state.latents + q * prediction
    state.latents = apply_step(solver_step, state.latents, prediction, state.history, step_noise)
    state.step_index += 1
    if state.mask is not None and state.image_latents is not None and state.noise is not None:
        # Some solvers end with a little noise left; the unmasked part has none.
        alpha, sigma = (1.0, 0.0) if state.finished else solver_step.next_level
        unmasked_latents = alpha * state.image_latents + sigma * state.noise
        state.latents = state.mask * state.latents + (1 - state.mask) * unmasked_latents
