"""What a model family computes with its parts.

Legend: B batch, C latent channels, h, w latent sides, H, W pixels, L tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import (
    Components,
    build_empty_parts,
    load_family_parts,
    load_scheduler,
)
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.family import ModelFamily
from dreambooth_ray.models.model_directory import compute_latent_factor
from dreambooth_ray.models.prompt_limits import PromptLimitFunctions
from dreambooth_ray.models.text_training import TextTraining
from dreambooth_ray.objective.forward_process import ForwardProcess
from dreambooth_ray.objective.noise_schedule import FlowSchedule, NoiseScheduleConfig


class ImageFrame(NamedTuple):
    """Which part of an image is looked at, in pixels.

    original_height, original_width: before it was resized; top, left: of what was cut out of the
    resized one; height, width: of what was cut out
    """

    original_height: int
    original_width: int
    top: int
    left: int
    height: int
    width: int

    @classmethod
    def of_whole_image(cls, height: int, width: int) -> "ImageFrame":
        """Of an image that nothing was cut from."""
        return cls(height, width, 0, 0, height, width)


# Token ids (B, L), a mask (B, L) or None, and the keyword output_hidden_states, to what one of
# transformers' encoders returns. In sampling it carries the adapters of a request.
TextForward = Callable[..., Any]
# By the name of their part.
TextForwards = Mapping[str, TextForward]


class EncodePrompt(Protocol):
    """A prompt to its one row, which is remembered."""

    def __call__(self, prompt: str, clip_skip: int, *, is_negative: bool = False) -> Conditioning:
        """is_negative: as `ModelFunctions.encode_negative_prompt` has it"""


class ModelFunctions(ABC):
    """One family's arithmetic. It holds no weights: parts are given to each function.

    scheduler_class: of diffusers, in its pipeline where a directory names none that is known
    """

    scheduler_class: ClassVar[str]

    def __init__(self, family: ModelFamily) -> None:
        """raises: TypeError where the family says that it can what its functions can't"""
        for is_required, required_base_class in (
            (bool(family.trainable_text_encoders), TextTraining),
            (family.max_prompt_tokens is not None, PromptLimitFunctions),
        ):
            if is_required and not isinstance(self, required_base_class):
                raise TypeError(
                    f"{type(self).__name__} of {family.title} is no {required_base_class.__name__}"
                )
        self.family = family

    # Loading

    def load(self, directory: Path) -> Components:
        """All parts in float32, the VAE frozen; raises ConfigError naming the part at fault."""
        return load_family_parts(self, directory)

    @abstractmethod
    def build_pipeline(self, parts: Components, directory: Path) -> DiffusionPipeline:
        """diffusers' own pipeline of loaded parts; directory: the base model's."""

    def pipeline_parts(self, parts: Components, directory: Path) -> dict[str, Any]:
        """The parts by the names of their folders, as diffusers' pipelines take them."""
        return {
            "scheduler": load_scheduler(directory, self.scheduler_class),
            **parts.networks,
            **parts.tokenizers,
        }

    def build_empty_components(self, directory: Path) -> Components:
        """The networks by their configurations alone, as the current torch device makes them.

        On the meta device that costs no memory. The tokenizers and the schedule are left out.
        """
        return build_empty_parts(self, directory)

    # Images

    @abstractmethod
    def encode_images(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) from -1 to 1 to the posterior's mean and deviation, (B, C, h, w) each.

        As the denoiser takes latents: scaled, shifted, in patches, whatever the family does.
        """

    @abstractmethod
    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """(B, C, h, w) latents, as the denoiser has them, to (B, 3, H, W) about -1 to 1."""

    def latent_channels(self, vae: Any) -> int:
        """C."""
        return int(vae.config.latent_channels)

    def latent_factor(self, vae: Any) -> int:
        """Pixels that a latent, as the denoiser has it, spans each way."""
        return compute_latent_factor(vae.config)

    @abstractmethod
    def size_multiple(self, parts: Components) -> int:
        """What both sides of an image are multiples of, pixels."""

    @abstractmethod
    def default_side(self, parts: Components) -> int:
        """Side of the square images that the model was trained on, pixels."""

    def max_side(self, parts: "Components") -> int | None:
        """Longest side that an image can have, pixels; None where there is no limit."""
        return None

    # Text

    @abstractmethod
    def encode_prompt(
        self, parts: Components, encoders: TextForwards, prompt: str, clip_skip: int = 0
    ) -> Conditioning:
        """One row for a prompt, of any length and with weights where the family has them.

        raises: ConfigError for a prompt that the family can't take whole
        """

    def encode_negative_prompt(
        self, parts: Components, encoders: TextForwards, prompt: str, clip_skip: int = 0
    ) -> Conditioning:
        """As `encode_prompt`, where the family reads what is to be avoided in another way."""
        return self.encode_prompt(parts, encoders, prompt, clip_skip)

    def encode_pair(
        self, parts: Components, encode: EncodePrompt, prompts: tuple[str, str], clip_skip: int
    ) -> tuple[Conditioning, Conditioning]:
        """A prompt's and a negative prompt's, so that both can share a forward where that helps.

        encode: as `encode_prompt`, or with is_negative as `encode_negative_prompt`
        """
        return encode(prompts[0], clip_skip), encode(prompts[1], clip_skip, is_negative=True)

    @property
    def text_training(self) -> TextTraining:
        """What computes with trained text encoders; raises: ConfigError where there is none."""
        if isinstance(self, TextTraining):
            return self
        raise ConfigError(f"{self.family.title} trains no text encoder")

    def add_frames(self, conditioning: Conditioning, frames: Tensor) -> Conditioning:
        """With what the denoiser is told of sizes. frames: (B, 6) int64 of `ImageFrame`"""
        return conditioning

    def tell_guidance(self, conditioning: Conditioning, scale: float) -> Conditioning:
        """With a request's guidance_scale, where the denoiser embeds it."""
        return conditioning

    # Denoiser

    @abstractmethod
    def denoiser_function(self, denoiser: nn.Module) -> nn.Module:
        """The denoiser as a function of tensors, with the denoiser as its first child.

        It takes noisy latents (B, C, h, w), times (B,) of the forward process and the tensors of
        a Conditioning in their order, and returns (B, C, h, w): what the process asks for.
        """

    @abstractmethod
    def example_conditioning(self, parts: Components, batch: int, side_px: int) -> Conditioning:
        """Of the usual size and with any contents, float32: to measure a forward with."""

    def in_channels(self, denoiser: Any, vae: Any) -> int:
        """Channels that the denoiser takes: more than C where it was trained to inpaint."""
        return self.latent_channels(vae)

    def join_rows(self, rows: Sequence[Conditioning]) -> Conditioning:
        """Rows of one conditioning each, as one; a family of any length pads and masks them."""
        return Conditioning.join(rows)

    def batch_key(self, conditioning: Conditioning) -> Hashable:
        """Rows of equal keys can share a forward."""
        return conditioning.row_shapes

    def list_blocks(self, denoiser: nn.Module) -> list[nn.Module]:
        """Blocks that a sharding strategy gathers one at a time."""
        return [
            block
            for child in denoiser.children()
            if isinstance(child, nn.ModuleList)
            for block in child
        ]

    # Noise

    @abstractmethod
    def forward_process(self, parts: Components) -> ForwardProcess:
        """How training noises images."""

    @abstractmethod
    def noise_schedule(
        self, parts: Components, latent_shape: tuple[int, int], num_steps: int
    ) -> NoiseScheduleConfig | FlowSchedule:
        """What a solver of so many steps goes along."""

    def guide(
        self, conditional: Tensor, guidance_delta: Tensor, scale: float, fraction: float
    ) -> Tensor:
        """(C, h, w) guided prediction; a scale of 1 is the conditional one.

        guidance_delta: (C, h, w) from the prediction without the prompt to that with it
        fraction: of the denoising that is done
        """
        return conditional + (scale - 1) * guidance_delta
