"""What FLUX.2 Klein computes: FLUX.2's latents, and Qwen3's text."""

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, Flux2KleinPipeline
from torch import Tensor

from dreambooth_ray.models.chat_text import tokenize_chat
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.families.flux2_checks import MAX_TOKENS
from dreambooth_ray.models.families.flux2_functions import Flux2Functions
from dreambooth_ray.models.families.flux2_klein import IS_DISTILLED, TEXT_LAYERS, read_model_index


class Flux2KleinFunctions(Flux2Functions):
    """Text is what a Qwen3 makes of a user's message."""

    text_layers = TEXT_LAYERS

    def build_pipeline(self, parts: Components, directory: Path) -> DiffusionPipeline:
        """As `ModelFunctions.build_pipeline`."""
        return Flux2KleinPipeline(
            **self.pipeline_parts(parts, directory),
            is_distilled=bool(read_model_index(directory).get(IS_DISTILLED, False)),
        )

    def tokenize(self, tokenizer: Any, prompt: str) -> tuple[Tensor, Tensor]:
        """As `Flux2Functions.tokenize`."""
        return tokenize_chat(tokenizer, prompt, MAX_TOKENS, thinks=False)
