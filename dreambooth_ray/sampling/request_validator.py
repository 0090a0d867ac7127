"""Whether a model can sample a request: sizes, steps, memory."""

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.memory.sampling_memory import SamplingMemoryBudget, measure_sampling_footprint
from dreambooth_ray.models.clip_text import check_clip_skip
from dreambooth_ray.models.components import Components
from dreambooth_ray.sampling import solvers
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.sampling.request_features import check_features
from dreambooth_ray.sampling.solver_steps import SolverTable
from dreambooth_ray.sampling.vae import TILED_ABOVE_PX, LatentCodec


class RequestValidator:
    """Checks requests against one model."""

    def __init__(self, parts: Components, codec: LatentCodec, limit_bytes: int | None) -> None:
        """limit_bytes: of memory; None for 80 % of it."""
        model_functions = parts.functions
        self.factor, self._parts = codec.factor, parts
        self.side_px = model_functions.default_side(parts)
        self._multiple, self._max_side = (
            model_functions.size_multiple(parts),
            model_functions.max_side(parts),
        )
        footprint = measure_sampling_footprint(parts)
        tiled_area = (TILED_ABOVE_PX // codec.factor) ** 2
        self._budget = SamplingMemoryBudget(
            footprint, limit_bytes, parts.denoiser.device, tiled_area
        )

    def latent_shape(self, request: Request) -> tuple[int, int]:
        """Latent height and width of a request.

        raises: ConfigError naming the field, CapacityError
        """
        width, height = self._image_size(request)
        for side_name, side in (("width_px", width), ("height_px", height)):
            if side % self._multiple:
                raise ConfigError(
                    f"{side_name}={side} must be a multiple of {self._multiple} for this model"
                )
            if self._max_side is not None and side > self._max_side:
                raise ConfigError(
                    f"{side_name}={side} is above {self._max_side}, this model's limit"
                )
        check_features(self._parts.family, request)
        if request.params.clip_skip:
            num_layers_left_out = self._parts.family.layers_left_out
            for encoder in self._parts.text_encoders.values():
                check_clip_skip(request.params.clip_skip, encoder, num_layers_left_out)
        is_unguided = request.params.guidance_scale == 1 or self._parts.family.embeds_guidance
        num_rows = 1 if is_unguided else 2
        self._budget.check_request_fits(width, height, self.factor, num_rows)
        return height // self.factor, width // self.factor

    def _image_size(self, request: Request) -> tuple[int, int]:
        if request.width_px is not None and request.height_px is not None:
            return request.width_px, request.height_px
        if request.image is not None:
            return request.image.size
        return self.side_px, self.side_px

    def size_relative_to_native(self, shape: tuple[int, int]) -> float:
        """Pixels of a latent shape over those of the model's own size."""
        return shape[0] * shape[1] * self.factor**2 / self.side_px**2

    def batch_limit(self, shape: tuple[int, int], max_batch: int) -> int:
        """Most requests of a latent shape that may share a step."""
        return max(1, min(max_batch, self._budget.max_rows(shape[0] * shape[1]) // 2))

    def decode_limit(self, shape: tuple[int, int]) -> int:
        """Most latents of a shape that may be decoded at once."""
        return self._budget.max_decoded_images(shape[0] * shape[1])

    def solver_table(self, request: Request) -> SolverTable:
        """The steps of a request: the last `strength` of them if it starts from an image.

        raises: ConfigError if the solver can't take this model
        """
        sampling_params, first_solver_step = request.params, 0
        num_steps = sampling_params.num_inference_steps
        if request.image is not None:
            first_solver_step = num_steps - max(1, round(num_steps * request.strength))
        schedule = self._parts.functions.noise_schedule(
            self._parts, self.latent_shape(request), num_steps
        )
        return solvers.build_solver_table(
            schedule,
            sampling_params.solver,
            num_steps,
            sampling_params.eta,
            sampling_params.karras,
            first_solver_step,
        )
