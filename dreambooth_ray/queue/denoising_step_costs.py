"""What a denoising step costs by the size of its image: measured, and between sizes estimated.

Size is the image's pixels over those of the model's own size; cost is the time of one image's step
over that of a step at the own size, where the batch is full.
"""

import math
from collections.abc import Mapping

# Each step's weight against all before it.
_DECAY = 0.9
# From so many times the pixels on a step is as quick an image alone as in a batch.
_FILLS_A_STEP = 4.0


def estimate_denoising_step_cost(size: float, costs_by_size: Mapping[float, float]) -> float:
    """Cost of a step: in proportion to pixels from the nearest size that was measured."""
    if not costs_by_size:
        return size
    nearest_size = min(costs_by_size, key=lambda measured: abs(math.log(size / measured)))
    return costs_by_size[nearest_size] * size / nearest_size


class StepCosts:
    """Seconds of one image's step, by size, over the newest steps of one model."""

    def __init__(self) -> None:
        self._seconds: dict[float, float] = {}
        self._num_steps: dict[float, float] = {}

    def record_sampling_step(
        self, size: float, num_images: int, max_images: int, seconds: float
    ) -> None:
        """Add a step of `num_images`, of `max_images` that would have had room in it.

        One with room left counts where it was quicker than full ones were: those would be, too.
        """
        if size < _FILLS_A_STEP and num_images < 0.75 * max_images:
            measured_step_s = self._seconds_by_size().get(size)
            if measured_step_s is None or seconds / num_images >= measured_step_s:
                return
        if size not in self._seconds:
            # The first step of a size traces or compiles.
            self._seconds[size] = self._num_steps[size] = 0.0
            return
        self._seconds[size] = _DECAY * self._seconds[size] + seconds
        self._num_steps[size] = _DECAY * self._num_steps[size] + num_images

    @property
    def step_s(self) -> float:
        """Seconds of an image's step at the model's own size; 0 where nothing was measured."""
        return (
            estimate_denoising_step_cost(1.0, self._seconds_by_size())
            if self._seconds_by_size()
            else 0.0
        )

    def costs_by_size(self) -> dict[float, float]:
        """Cost of each size that was measured, relative to a step at the own size."""
        native_step_s = self.step_s
        return {
            relative_size: seconds / native_step_s
            for relative_size, seconds in self._seconds_by_size().items()
            if native_step_s
        }

    def cost(self, size: float) -> float:
        """As `estimate_denoising_step_cost`, by what was measured here."""
        return estimate_denoising_step_cost(size, self.costs_by_size())

    def _seconds_by_size(self) -> dict[float, float]:
        return {
            relative_size: self._seconds[relative_size] / num_steps
            for relative_size, num_steps in list(self._num_steps.items())
            if num_steps
        }
