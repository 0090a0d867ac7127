"""A submitted request: the caller's handle, and the engine's sampling state.

Legend: C latent channels, h, w latent sides.
"""

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.sampling.solver_steps import SolverStep, SolverTable

OnProgress = Callable[[int, int], None]
OnPreview = Callable[[int, Image.Image], None]


def copy_to_gpu(tensor: Tensor, device: torch.device) -> Tensor:
    """From pinned memory, so that the host does not wait for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class SampleOutput:
    """A finished image and its latents, (C, h, w) float32 on the engine's device.

    request: with all parameters as they were used, also those that it left to the model
    """

    image: Image.Image
    latents: Tensor
    request: Request


@dataclass
class TrajectoryState:
    """The current state of one trajectory.

    latents:             (C, h, w) float32
    conditioning:        of the prompt, one row; negative_conditioning: of the negative prompt, None
                         where guidance needs none
    preview_latents:     (C, h, w) the image that the last prediction leads to
    history:             predictions that the solver needs again, newest first
    guidance_delta:      last difference between both predictions, for guidance_every
    cached_features:     (F, h, w) of each row, for cache_every
    num_rows:            of the running step: 2 with guidance
    image_latents, noise, mask: of the image whose unmasked part stays
    inpainting_channels: (C', h, w) more input channels for UNets trained to inpaint
    timesteps:           (steps,) float32, where the state is not on a CPU
    """

    solver_table: SolverTable
    latents: Tensor
    conditioning: Conditioning
    negative_conditioning: Conditioning | None
    preview_latents: Tensor
    step_index: int = 0
    history: list[Tensor] = field(default_factory=list)
    guidance_delta: Tensor | None = None
    cached_features: list[Tensor] = field(default_factory=list)
    num_rows: int = 1
    image_latents: Tensor | None = None
    noise: Tensor | None = None
    mask: Tensor | None = None
    inpainting_channels: Tensor | None = None
    timesteps: Tensor | None = None

    def to(self, device: torch.device) -> "TrajectoryState":
        """The state on a device, where it then stays: a step copies nothing there or back."""
        if device.type == "cpu":
            return self
        solver_timesteps = [solver_step.timestep for solver_step in self.solver_table.steps]
        self.timesteps = torch.tensor(solver_timesteps, dtype=torch.float32)
        for field_name, field_value in vars(self).items():
            if isinstance(field_value, Tensor) and field_value.device.type == "cpu":
                setattr(self, field_name, copy_to_gpu(field_value, device))
        self.conditioning = self.conditioning.to(device)
        if self.negative_conditioning is not None:
            self.negative_conditioning = self.negative_conditioning.to(device)
        return self

    @property
    def timestep(self) -> "float | Tensor":
        """Of the next step: a number on a CPU, a () tensor on another device."""
        return self.step.timestep if self.timesteps is None else self.timesteps[self.step_index]

    @property
    def step(self) -> SolverStep:
        """The next step."""
        return self.solver_table.steps[self.step_index]

    @property
    def finished(self) -> bool:
        """Whether only decoding is left."""
        return self.step_index >= len(self.solver_table.steps)


class RequestHandle:
    """Returned by `Engine.submit`; `future` gives the SampleOutput, or the error."""

    def __init__(
        self,
        request: Request,
        shape: tuple[int, int],
        num_steps: int,
        on_progress: OnProgress | None,
        on_preview: OnPreview | None,
        num_previews: int,
    ) -> None:
        """shape: latent height and width; num_steps: rows of the solver's table."""
        self.request, self.shape, self.num_steps = request, shape, num_steps
        self.future: Future[SampleOutput] = Future()
        self.state: TrajectoryState | None = None
        self._on_progress, self._on_preview = on_progress, on_preview
        self._previews_at = {
            num_steps * k // (num_previews + 1) for k in range(1, num_previews + 1)
        }

    def cancel(self) -> None:
        """Cancel; the engine drops the request before its next step."""
        self.future.cancel()

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.step_index if self.state else 0

    @property
    def remaining_steps(self) -> int:
        """Steps still to do; 0 once done, failed or cancelled."""
        return 0 if self.future.done() else self.num_steps - self.step

    def result(self, timeout_s: float | None = None) -> SampleOutput:
        """Wait for the image; raises the request's error, or CancelledError."""
        return self.future.result(timeout_s)

    @property
    def wants_preview(self) -> bool:
        """Whether a preview is due after the step just done."""
        return self._on_preview is not None and self.step in self._previews_at

    def report_progress(self, preview: Image.Image | None) -> None:
        """Report the step just done. If the listener raises, the request fails."""
        try:
            if self._on_progress is not None:
                self._on_progress(self.step, self.num_steps)
            if preview is not None and self._on_preview is not None:
                self._on_preview(self.step, preview)
        except Exception as error:  # a listener may raise anything; other requests go on
            self.fail(error)

    def finish(self, output: SampleOutput) -> None:
        """Set the result, unless the request was cancelled meanwhile."""
        with suppress(InvalidStateError):
            self.future.set_result(output)

    def fail(self, error: BaseException) -> None:
        """Set an error, unless the request has ended already."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)
