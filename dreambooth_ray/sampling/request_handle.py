"""A request on its way: what its owner holds, and the state the engine moves.

Legend: C latent channels, h, w latent sides, T tokens, D embedding width.
"""

from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from dreambooth_ray.sampling.request import Request
from dreambooth_ray.sampling.solvers import Step, Table

OnProgress = Callable[[int, int], None]
OnPreview = Callable[[int, Image.Image], None]


@dataclass(frozen=True)
class SampleOutput:
    """A finished image and its latents, (C, h, w) float32 on the CPU."""

    image: Image.Image
    latents: Tensor


@dataclass
class SamplingState:
    """Where a trajectory stands.

    x:        (C, h, w) float32
    hidden:   (T, D) of the prompt; negative: (T, D) of the negative prompt
    seen:     (C, h, w) the image as the last prediction has it
    history:  what the solver remembers, newest first
    push:     last difference between both predictions, where guidance_every keeps it
    deep:     (F, h, w) of each row, where cache_every keeps them
    num_rows: of the running step: 2 with guidance
    clean, noise, mask: of the image whose unmasked part stays
    extra:    (C', h, w) channels beside x for UNets trained to inpaint
    """

    table: Table
    x: Tensor
    hidden: Tensor
    negative: Tensor
    seen: Tensor
    index: int = 0
    history: list[Tensor] = field(default_factory=list)
    push: Tensor | None = None
    deep: list[Tensor] = field(default_factory=list)
    num_rows: int = 1
    clean: Tensor | None = None
    noise: Tensor | None = None
    mask: Tensor | None = None
    extra: Tensor | None = None

    @property
    def step(self) -> Step:
        """The row that comes next."""
        return self.table.steps[self.index]

    @property
    def finished(self) -> bool:
        """Whether only decoding is left."""
        return self.index >= len(self.table.steps)


class RequestHandle:
    """Returned by `Engine.submit`; `future` gives the Drawn, or the error."""

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
        self.state: SamplingState | None = None
        self._on_progress, self._on_preview = on_progress, on_preview
        self._previews_at = {
            num_steps * k // (num_previews + 1) for k in range(1, num_previews + 1)
        }

    def cancel(self) -> None:
        """Give the place back; the engine drops the request before its next step."""
        self.future.cancel()

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.index if self.state else 0

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

    def tell(self, preview: Image.Image | None) -> None:
        """Report the step just done. An error of the listener's own is the request's end."""
        try:
            if self._on_progress is not None:
                self._on_progress(self.step, self.num_steps)
            if preview is not None and self._on_preview is not None:
                self._on_preview(self.step, preview)
        except Exception as error:  # a listener may raise anything; it concerns no other request
            self.fail(error)

    def finish(self, drawn: SampleOutput) -> None:
        """Hand the image over, unless the request was cancelled meanwhile."""
        with suppress(InvalidStateError):
            self.future.set_result(drawn)

    def fail(self, error: BaseException) -> None:
        """Hand an error over, unless the request is over already."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


__all__ = [
    "CancelledError",
    "OnPreview",
    "OnProgress",
    "RequestHandle",
    "SampleOutput",
    "SamplingState",
]
