"""What a model family computes with its parts.

Legend: B batch, C latent channels, h, w latent sides, H, W pixels, L tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from dreambooth_ray.models.components import Components, build_empty_parts, load_parts
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.family import ModelFamily
from dreambooth_ray.models.model_directory import compute_latent_factor
from dreambooth_ray.objective.forward_process import ForwardProcess
from dreambooth_ray.objective.noise_schedule import FlowSchedule, NoiseSchedule


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
    def of_whole(cls, height: int, width: int) -> "ImageFrame":
        """Of an image that nothing was cut from."""
        return cls(height, width, 0, 0, height, width)


# Token ids (B, L), a mask (B, L) or None, and the keyword output_hidden_states, to what one of
# transformers' encoders returns. In sampling it carries the adapters of a request.
TextForward = Callable[..., Any]


class ModelFunctions(ABC):
    """One family's arithmetic. It holds no weights: parts are given to each function."""

    def __init__(self, family: ModelFamily) -> None:
        self.family = family

    # Loading

    def load(self, directory: Path) -> Components:
        """All parts in float32, the VAE frozen; raises ConfigError naming the part at fault."""
        return load_parts(self, directory)

    @abstractmethod
    def build_pipeline(self, parts: Components, directory: Path) -> DiffusionPipeline:
        """diffusers' own pipeline of loaded parts; directory: the base model's."""

    def build_empty(self, directory: Path) -> Components:
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
        self,
        parts: Components,
        encoders: Mapping[str, TextForward],
        prompt: str,
        clip_skip: int = 0,
    ) -> Conditioning:
        """One row for a prompt, of any length and with weights where the family has them.

        encoders: by the name of their part
        raises: ConfigError for a prompt that the family can't take whole
        """

    def check_prompt(self, tokenizers: Mapping[str, Any], prompt: str) -> None:
        """raises: ConfigError for a prompt that `encode_prompt` can't take whole

        tokenizers: by the name of their folder; for families with `max_prompt_tokens`
        """
        raise NotImplementedError(f"{self.family.title} takes prompts of any length")

    def encode_pair(
        self,
        parts: "Components",
        encode: Callable[[str, int], Conditioning],
        prompts: tuple[str, str],
        clip_skip: int,
    ) -> tuple[Conditioning, Conditioning]:
        """A prompt's and a negative prompt's, so that both can share a forward where that helps.

        encode: a prompt, with clip_skip, as `encode_prompt` does
        """
        first, second = (encode(prompt, clip_skip) for prompt in prompts)
        return first, second

    def tokenize(self, parts: Components, captions: Sequence[str]) -> Conditioning:
        """Token ids of captions, for `token_embedder`; for families with trained encoders."""
        raise NotImplementedError(f"{self.family.title} trains no text encoder")

    def token_embedder(
        self, parts: Components, functions: Mapping[str, Callable[..., Any]]
    ) -> Callable[[Conditioning], Conditioning]:
        """A function that embeds what `tokenize` gave, in every step.

        functions: of `text_function`, by the name of the part
        """
        raise NotImplementedError(f"{self.family.title} trains no text encoder")

    def text_function(self, name: str, encoder: nn.Module) -> nn.Module:
        """A text encoder as a function from token ids (B, L) to one tensor, or to several."""
        raise NotImplementedError(f"{self.family.title} trains no text encoder")

    def unused_layers(self, name: str, encoder: Any) -> tuple[str, ...]:
        """Layers of a text encoder that nothing which the denoiser is told comes from.

        They are never trained: gradients would not reach them.
        """
        return ()

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

    def embed_examples(
        self,
        parts: Components,
        functions: Mapping[str, Callable[..., Any]],
        conditioning: Conditioning,
    ) -> Conditioning:
        """An example's conditioning, with what trained text encoders give in it computed by them.

        functions: as of `token_embedder`
        """
        raise NotImplementedError(f"{self.family.title} trains no text encoder")

    def in_channels(self, denoiser: Any, vae: Any) -> int:
        """Channels that the denoiser takes: more than C where it was trained to inpaint."""
        return self.latent_channels(vae)

    def join_rows(self, rows: Sequence[Conditioning]) -> Conditioning:
        """Rows of one conditioning each, as one; a family of any length pads and masks them."""
        return Conditioning.join(rows)

    def batch_key(self, conditioning: Conditioning) -> Hashable:
        """Rows of equal keys can share a forward."""
        return conditioning.shapes

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
    ) -> NoiseSchedule | FlowSchedule:
        """What a solver of so many steps goes along."""

    def guide(
        self, conditional: Tensor, guidance_delta: Tensor, scale: float, fraction: float
    ) -> Tensor:
        """(C, h, w) guided prediction; a scale of 1 is the conditional one.

        guidance_delta: (C, h, w) from the prediction without the prompt to that with it
        fraction: of the denoising that is done
        """
        return conditional + (scale - 1) * guidance_delta
