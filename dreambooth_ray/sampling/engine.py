"""The one sampler of the system: requests of all kinds share its denoising steps.

Each tick takes the requests of one latent shape, puts all their predictions, with and
without the prompt, into one UNet forward, and moves each along its own solver. What a
request looks like does not depend on who shares its steps.

Legend: R rows of a forward, C latent channels, h, w latent sides, T tokens, D width.
"""

import threading
from pathlib import Path

import torch
from torch import Tensor

from dreambooth_ray.errors import CapacityError, ConfigError
from dreambooth_ray.models import tokens
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.source import model_hash
from dreambooth_ray.models.traced_forward import WARMUP_CALLS
from dreambooth_ray.objective import noise
from dreambooth_ray.sampling import solvers
from dreambooth_ray.sampling.denoiser import Adapted, Denoiser, Row
from dreambooth_ray.sampling.guidance import guided, keep_features, step_rows
from dreambooth_ray.sampling.initial_latents import initial_state
from dreambooth_ray.sampling.prompt_encoder import PromptEncoder
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.sampling.request_handle import (
    OnPreview,
    OnProgress,
    RequestHandle,
    SampleOutput,
    SamplingState,
)
from dreambooth_ray.sampling.request_validator import RequestValidator
from dreambooth_ray.sampling.step_queue import StepQueue
from dreambooth_ray.sampling.vae import LatentCodec


class Engine:
    """Draws requests in shared steps, in the caller's thread or in one of its own.

    submit, cancel and the counters may be called from any thread.
    """

    def __init__(
        self,
        model: Path | Components,
        *,
        max_batch: int = 8,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        memory_limit_bytes: int | None = None,
        lives_long: bool = False,
    ) -> None:
        """model: a directory in diffusers format, or its loaded parts.

        max_batch:          requests that share a step at most
        memory_limit_bytes: for weights and activations; 80 % of what there is if None
        lives_long:         forwards are recorded at once, not when that has become worth it
        """
        self._directory = model if isinstance(model, Path) else None
        parts = load_components(model) if isinstance(model, Path) else model
        for part in (parts.unet, parts.vae, parts.text_encoder):
            part.to(device, dtype).eval()
        if self._directory is not None:
            # A tenth off a batch of eight on a CPU; weights that somebody trains stay as they are.
            parts.unet.to(memory_format=torch.channels_last)
        self._denoiser = Denoiser(parts.unet, 0 if lives_long else WARMUP_CALLS)
        self._decoder = LatentCodec(parts.vae)
        self._text = Adapted(parts.text_encoder)
        self._encoder = PromptEncoder(parts.tokenizer, self._text)
        self._fit = RequestValidator(parts, self._decoder, memory_limit_bytes)
        self.max_batch = max_batch
        self._queue = StepQueue()
        self._hash: str | None = None
        # _changed guards the queue; _step is held through a step, so that weights stay put.
        self._changed, self._step = threading.Condition(), threading.RLock()
        self._thread: threading.Thread | None = None
        self._closing = False

    # Requests

    def submit(
        self,
        request: Request,
        on_progress: OnProgress | None = None,
        on_preview: OnPreview | None = None,
        num_previews: int = 0,
    ) -> RequestHandle:
        """Take a request; returns at once.

        on_progress(step, total) and on_preview(step, image) are called by the thread
        that draws; num_previews are spread evenly over the steps.
        raises: ConfigError naming the field, CapacityError if it can't fit into memory
        """
        self._check_adapter(request)
        shape, table = self._fit.shape(request), self._fit.table(request)
        ticket = RequestHandle(
            request, shape, len(table.steps), on_progress, on_preview, num_previews
        )
        with self._changed:
            if self._closing:
                raise ConfigError("the engine is closed; make another")
            self._queue.add(shape, ticket)
            self._changed.notify_all()
        return ticket

    def draw(
        self, requests: list[Request], on_progress: OnProgress | None = None
    ) -> list[SampleOutput]:
        """Draw all requests, in order; on_progress(done, total) is called in images.

        raises: the first request's error that fails
        """
        tickets = [self.submit(request) for request in requests]
        done = 0
        while self._thread is None and self.tick():
            now = sum(t.future.done() for t in tickets)
            if on_progress is not None and now > done:
                on_progress(now, len(tickets))
            done = now
            if done == len(tickets):
                break
        return [ticket.result() for ticket in tickets]

    @property
    def remaining_steps(self) -> int:
        """Denoising steps that all requests together still need."""
        with self._changed:
            return sum(t.remaining_steps for t in self._queue.tickets())

    @property
    def num_active(self) -> int:
        """Requests in the running batches."""
        with self._changed:
            return self._queue.num_active

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a place."""
        with self._changed:
            return self._queue.num_waiting

    @property
    def model_hash(self) -> str:
        """SHA-256 of the model's files; raises ConfigError for parts without a directory."""
        if self._directory is None:
            raise ConfigError("an engine over loaded parts has no files to take a hash of")
        if self._hash is None:
            self._hash = model_hash(self._directory)
        return self._hash

    @property
    def model_side_px(self) -> int:
        """Side of the square images the model was trained on."""
        return self._fit.side_px

    # Adapters

    def add_adapter(self, name: str, folder: Path) -> None:
        """Load a LoRA: {folder}/unet and, if there, {folder}/text_encoder, in peft's format.

        raises: ConfigError if it is not one, of another model, or has words of its own
        """
        if (folder / tokens.FILE).is_file():
            raise ConfigError(
                f"{folder} brings learned words, which one tokenizer can't have for some requests "
                "only; `dreambooth export --format diffusers` makes a model of its own of it"
            )
        with self._step:
            self._denoiser.adapted.add(name, folder / "unet")
            if (folder / "text_encoder").is_dir():
                self._text.add(name, folder / "text_encoder")
            self._encoder.clear()

    def remove_adapter(self, name: str) -> None:
        """Forget a LoRA; requests that still wait for it fail."""
        with self._step:
            self._denoiser.adapted.remove(name)
            self._text.remove(name)
            self._encoder.clear()

    @property
    def adapters(self) -> set[str]:
        """Names of the LoRAs there are."""
        return set(self._denoiser.adapted.names)

    def _check_adapter(self, request: Request) -> None:
        if request.adapter is not None and request.adapter not in self.adapters:
            known = ", ".join(sorted(self.adapters)) or "none"
            raise ConfigError(f"adapter={request.adapter!r} is not loaded; there is {known}")

    # Running

    def start(self) -> None:
        """Draw in a thread of the engine's own, until `close`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop after the step that runs; what is left is cancelled."""
        with self._changed:
            self._closing = True
            for ticket in self._queue.tickets():
                ticket.cancel()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._queue.tickets())
                if self._closing:
                    return
            self.tick()

    def tick(self) -> bool:
        """One step of one batch; False if there was nothing to do."""
        with self._step:
            with self._changed:
                tickets = self._queue.next(lambda shape: self._fit.places(shape, self.max_batch))
            if not tickets:
                return False
            running = [ticket for ticket in tickets if self._begin(ticket)]
            try:
                if running:
                    self._advance(running)
                    self._deliver(running)
            except torch.OutOfMemoryError as error:
                text = f"out of memory in a batch of {len(running)}: {error}; lower max_batch"
                self._fail(running, CapacityError(text))
            except Exception as error:  # one batch's end must not be the engine's
                self._fail(running, error)
            return True

    @staticmethod
    def _fail(tickets: list[RequestHandle], error: Exception) -> None:
        for ticket in tickets:
            ticket.fail(error)

    def _begin(self, ticket: RequestHandle) -> bool:
        """Bring a request to its first step; False if it can't be."""
        if ticket.state is not None:
            return True
        try:
            request = ticket.request
            self._check_adapter(request)
            hidden, negative = self._encoder.pair(
                request.prompt, request.negative_prompt, request.clip_skip, request.adapter
            )
            ticket.state = initial_state(
                request, ticket.shape, self._fit.table(request), self._decoder,
                self._denoiser.in_channels, (hidden[0], negative[0]),
            )  # fmt: skip
        except Exception as error:  # concerns this request alone
            ticket.fail(error)
            return False
        return True

    @torch.no_grad()
    def _advance(self, tickets: list[RequestHandle]) -> None:
        """One forward for all, one solver step for each."""
        states = [ticket.state for ticket in tickets if ticket.state is not None]
        rows: list[Row] = []
        for ticket, state in zip(tickets, states, strict=True):
            rows += step_rows(ticket.request, state)
        predictions = iter(self._denoiser(rows))
        left = iter(rows)
        for ticket, state in zip(tickets, states, strict=True):
            both = [(next(left), next(predictions)) for _ in range(state.num_rows)]
            keep_features(ticket.request, state, [row.deep for row, _ in both])
            prediction = guided(ticket.request, state, *(value for _, value in both))
            self._move(ticket.request, state, prediction)

    def _move(self, request: Request, state: SamplingState, prediction: Tensor) -> None:
        step, fresh = state.step, None
        if step.noise_scale:
            at = state.index + request.num_inference_steps - len(state.table.steps)
            fresh = noise.normal(request.seed, "solver", at, [0], tuple(state.x.shape))[0]
        p, q = step.clean
        state.seen = p * state.x + q * prediction
        state.x = solvers.advance(step, state.x, prediction, state.history, fresh)
        state.index += 1
        if state.mask is not None and state.clean is not None and state.noise is not None:
            # Some solvers end a trace of noise short of the image; what is kept does not.
            alpha, sigma = (1.0, 0.0) if state.finished else step.next_level
            kept = alpha * state.clean + sigma * state.noise
            state.x = state.mask * state.x + (1 - state.mask) * kept

    def _deliver(self, tickets: list[RequestHandle]) -> None:
        """Progress and previews to all, images to those that are finished."""
        for ticket in tickets:
            preview = None
            if ticket.wants_preview and ticket.state is not None:
                preview = self._decoder.preview(ticket.state.seen)
            ticket.tell(preview)
        finished = [
            (t, t.state.x) for t in tickets if t.state and t.state.finished and not t.future.done()
        ]
        if finished:
            images = self._decoder.images(torch.stack([x for _, x in finished]))
            for (ticket, x), image in zip(finished, images, strict=True):
                ticket.finish(SampleOutput(image, x))
