"""The one sampler of the system: requests of all kinds share its denoising steps.

Each step takes the requests of one latent shape, puts all their predictions, with and
without the prompt, into one forward of the denoiser, and moves each along its own solver. An image
does not depend on the other requests of its batch.

Legend: R rows of a forward, C latent channels, h, w latent sides, T tokens, D width.
"""

import threading
import time
from pathlib import Path

import torch

from dreambooth_ray.errors import CapacityError, ConfigError
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.model_directory import base_directory, model_hash
from dreambooth_ray.models.model_functions import ImageFrame
from dreambooth_ray.models.precision import (
    place_for_sampling,
    resolve_device,
    resolve_sampling_dtype,
)
from dreambooth_ray.models.traced_forward import WARMUP_CALLS
from dreambooth_ray.queue.denoising_step_costs import StepCosts
from dreambooth_ray.sampling.delivery import deliver_results
from dreambooth_ray.sampling.denoiser import Denoiser
from dreambooth_ray.sampling.device_pacer import DevicePacer
from dreambooth_ray.sampling.initial_latents import build_initial_state
from dreambooth_ray.sampling.loaded_adapters import LoadedAdapters
from dreambooth_ray.sampling.prompt_encoder import PromptEncoder
from dreambooth_ray.sampling.request import Request, fill_request
from dreambooth_ray.sampling.request_handle import (
    OnPreview,
    OnProgress,
    RequestHandle,
    SampleOutput,
)
from dreambooth_ray.sampling.request_queue import RequestQueue
from dreambooth_ray.sampling.request_validator import RequestValidator
from dreambooth_ray.sampling.shared_step import advance_together
from dreambooth_ray.sampling.vae import LatentCodec


class Engine:
    """Generates images in shared steps, in the caller's thread or in its own.

    submit, cancel and the counters may be called from any thread.
    """

    def __init__(
        self,
        model: Path | Components,
        *,
        max_batch: int = 8,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        memory_limit_bytes: int | None = None,
        lives_long: bool = False,
    ) -> None:
        """model: a directory in diffusers format, or its loaded parts.

        max_batch:          most requests that share a step
        device:             as torch names it; 'auto' is a GPU where there is one
        dtype:              of the weights; None is half on a GPU and float32 on a CPU for a
                            directory, and what they have now for loaded parts
        memory_limit_bytes: for weights and activations; 80 % of the memory if None
        lives_long:         trace the denoiser at once, not after WARMUP_CALLS forwards
        raises: ConfigError for a device that is not there
        """
        self._directory = model if isinstance(model, Path) else None
        model_components = load_components(model) if isinstance(model, Path) else model
        self.device = resolve_device(device)
        if dtype is None and self._directory is not None:
            dtype = resolve_sampling_dtype(self.device, model_components.family)
        place_for_sampling(model_components, self.device, dtype)
        for network in model_components.networks.values():
            network.eval()
        if self._directory is not None:
            # Saves a tenth of a batch of eight on a CPU; weights in training stay as they are.
            model_components.denoiser.to(memory_format=torch.channels_last)
        self._denoiser = Denoiser(model_components, 0 if lives_long else WARMUP_CALLS)
        self._codec, self._functions = LatentCodec(model_components), model_components.functions
        base_folder = base_directory(self._directory) if self._directory else None
        self._adapters = LoadedAdapters(model_components, self._denoiser.adapted, base_folder)
        self._prompt_encoder = PromptEncoder(model_components, self._adapters.text_encoders)
        self._validator = RequestValidator(model_components, self._codec, memory_limit_bytes)
        self.max_batch = max_batch
        self._queue, self._pacer = RequestQueue(), DevicePacer(self.device)
        self.step_costs = StepCosts()
        self._model_hash: str | None = None
        # _queue_changed guards the queue; _step_lock is held in a step: weights do not change then.
        self._queue_changed, self._step_lock = threading.Condition(), threading.RLock()
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
        that samples; num_previews are spread evenly over the steps.
        raises: ConfigError naming the field, CapacityError if it can't fit into memory
        """
        request = fill_request(self._functions.family, request)
        self._adapters.check_loaded(request.adapters)
        shape = self._validator.latent_shape(request)
        num_steps = len(self._validator.solver_table(request).steps)
        handle = RequestHandle(request, shape, num_steps, on_progress, on_preview, num_previews)
        with self._queue_changed:
            if self._closing:
                raise ConfigError("the engine is closed; make another")
            self._queue.add(shape, handle)
            self._queue_changed.notify_all()
        return handle

    def sample(
        self, requests: list[Request], on_progress: OnProgress | None = None
    ) -> list[SampleOutput]:
        """Generate all images, in order; on_progress(done, total) counts images.

        raises: the error of the first request that fails
        """
        handles = [self.submit(request) for request in requests]
        num_images_reported = 0
        while self._thread is None and self.run_step():
            num_images_done = sum(t.future.done() for t in handles)
            if on_progress is not None and num_images_done > num_images_reported:
                on_progress(num_images_done, len(handles))
            num_images_reported = num_images_done
            if num_images_reported == len(handles):
                break
        return [handle.result() for handle in handles]

    @property
    def remaining_steps(self) -> int:
        """Denoising steps left, over all requests, in steps of the model's own size."""
        with self._queue_changed:
            handles = self._queue.handles()
        relative_image_sizes = [self._validator.size_relative_to_native(t.shape) for t in handles]
        step_costs = map(self.step_costs.cost, relative_image_sizes)
        return round(sum(t.remaining_steps * c for t, c in zip(handles, step_costs, strict=True)))

    @property
    def num_active(self) -> int:
        """Requests in the running batches."""
        with self._queue_changed:
            return self._queue.num_active

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a place."""
        with self._queue_changed:
            return self._queue.num_waiting

    @property
    def model_hash(self) -> str:
        """SHA-256 of the model's files; raises ConfigError for parts without a directory."""
        if self._directory is None:
            raise ConfigError("an engine over loaded parts has no files to take a hash of")
        if self._model_hash is None:
            self._model_hash = model_hash(self._directory)
        return self._model_hash

    @property
    def model_side_px(self) -> int:
        """Side of the square images the model was trained on."""
        return self._validator.side_px

    # Adapters

    def add_adapter(self, name: str, path: Path) -> None:
        """Load an adapter, of a file of any trainer or in peft's format; as `LoadedAdapters`."""
        with self._step_lock:
            self._adapters.add(name, path)
            self._prompt_encoder.clear_cache()

    def remove_adapter(self, name: str) -> None:
        """Remove an adapter; requests that still wait for it fail."""
        with self._step_lock:
            self._adapters.remove(name)
            self._prompt_encoder.clear_cache()

    @property
    def loaded_adapter_names(self) -> set[str]:
        """Names of the loaded adapters."""
        return set(self._denoiser.adapted.names)

    def adapter_bytes(self, name: str) -> int:
        """Memory that a loaded adapter takes."""
        return self._adapters.num_bytes[name]

    # Running

    def start(self) -> None:
        """Sample in the engine's own thread, until `close`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run_loop, name="engine", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop after the running step; cancel all requests left."""
        with self._queue_changed:
            self._closing = True
            for handle in self._queue.handles():
                handle.cancel()
            self._queue_changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run_loop(self) -> None:
        while True:
            with self._queue_changed:
                self._queue_changed.wait_for(lambda: self._closing or self._queue.handles())
                if self._closing:
                    return
            self.run_step()

    def run_step(self) -> bool:
        """One step of one batch; False if there was nothing to do."""
        with self._step_lock:
            with self._queue_changed:
                handles = self._queue.select_next_batch(
                    lambda shape: self._validator.batch_limit(shape, self.max_batch)
                )
            if not handles:
                return False
            started_s = time.monotonic()
            batch = [handle for handle in handles if self._start_request(handle)]
            has_succeeded = False
            try:
                if batch:
                    self._advance_batch_one_step(batch)
                    decode_limit = self._validator.decode_limit(batch[0].shape)
                    deliver_results(batch, self._codec, decode_limit)
                has_succeeded = True
            except torch.OutOfMemoryError as error:
                error_text = f"out of memory in a batch of {len(batch)}: {error}; lower max_batch"
                self._fail_requests(batch, CapacityError(error_text))
            except Exception as error:  # a batch that fails must not stop the engine
                self._fail_requests(batch, error)
            if batch:
                self._record_time(batch, time.monotonic() - started_s, has_succeeded)
            return True

    def _record_time(self, batch: list[RequestHandle], seconds: float, has_succeeded: bool) -> None:
        shape = batch[0].shape
        with self._queue_changed:
            self._queue.add_group_seconds(shape, seconds)
        if has_succeeded:  # a step that failed tells no cost
            limit = self._validator.batch_limit(shape, self.max_batch)
            self.step_costs.record_sampling_step(
                self._validator.size_relative_to_native(shape), len(batch), limit, seconds
            )

    @staticmethod
    def _fail_requests(handles: list[RequestHandle], error: Exception) -> None:
        for handle in handles:
            handle.fail(error)

    def _start_request(self, handle: RequestHandle) -> bool:
        """Make a request's initial state; False if that fails."""
        if handle.state is not None:
            return True
        try:
            request = handle.request
            self._adapters.check_loaded(request.adapters)
            handle.state = build_initial_state(
                request, handle.shape, self._validator.solver_table(request), self._codec,
                self._denoiser.in_channels, self._encode_request_prompts(handle),
            ).to(self.device)  # fmt: skip
        except Exception as error:  # concerns this request alone
            handle.fail(error)
            return False
        return True

    def _encode_request_prompts(
        self, handle: RequestHandle
    ) -> tuple[Conditioning, Conditioning | None]:
        frame = ImageFrame.of_whole_image(*(side * self._codec.factor for side in handle.shape))
        size_and_crop_tensor = torch.tensor([frame], device=self.device)
        return self._prompt_encoder.encode_request_prompts(handle.request, size_and_crop_tensor)

    @torch.no_grad()
    def _advance_batch_one_step(self, handles: list[RequestHandle]) -> None:
        """One forward for all, one solver step for each."""
        self._pacer.wait()
        requests_and_states = [(h.request, h.state) for h in handles if h.state is not None]
        advance_together(requests_and_states, self._denoiser)
        self._pacer.mark_step_launched()
