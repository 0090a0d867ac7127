"""What FLUX.2 dev computes: FLUX.2's latents, and Mistral 3's text."""

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from torch import Tensor

from dreambooth_ray.models.chat_text import tokenize_templated_text
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.families.flux2_checks import MAX_TOKENS
from dreambooth_ray.models.families.flux2_dev import TEXT_LAYERS
from dreambooth_ray.models.families.flux2_functions import Flux2Functions
from dreambooth_ray.models.multimodal_processor import keep_multimodal_processor


class Flux2DevFunctions(Flux2Functions):
    """Text is what a Mistral 3 makes of its instruction and a user's message."""

    text_layers = TEXT_LAYERS

    def build_pipeline(self, parts: Components, directory: Path) -> DiffusionPipeline:
        """As `ModelFunctions.build_pipeline`."""
        pipeline = Flux2Pipeline(**self.pipeline_parts(parts, directory))
        keep_multimodal_processor(pipeline, "tokenizer", directory)
        return pipeline

    def tokenize(self, tokenizer: Any, prompt: str) -> tuple[Tensor, Tensor]:
        """As `Flux2Functions.tokenize`, in the pipeline's own message."""
        (messages,) = format_input([prompt])
        message_text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        # What a template has written itself the processor does not add again.
        starts_with_bos = bool(tokenizer.bos_token) and message_text.startswith(tokenizer.bos_token)
        return tokenize_templated_text(
            tokenizer, prompt, message_text, MAX_TOKENS, add_special_tokens=not starts_with_bos
        )
