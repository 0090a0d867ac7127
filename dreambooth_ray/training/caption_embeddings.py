"""Captions as token ids, or as what the denoiser is told where the text encoders stay as they are.

Legend: K different captions, P photographs.
"""

import torch

from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.trainable_params import is_text_trained
from dreambooth_ray.training.batch import IdentifierFreeCaptions


class CaptionEmbeddings:
    """Token ids of all captions where a text encoder is trained, else what they are encoded to.

    Captions longer than an encoder's window are taken whole; then all have as many windows.

    tokens, conditioning: K rows; one of them is None
    """

    def __init__(self, components: Components, captions: list[str]) -> None:
        unique_captions = sorted(set(captions))
        self._row = {caption: row for row, caption in enumerate(unique_captions)}
        self.tokens: Conditioning | None = None
        self.conditioning: Conditioning | None = None
        if is_text_trained(components):
            self.tokens = components.functions.text_training.tokenize(components, unique_captions)
        else:
            self.conditioning = encode_captions(components, unique_captions)

    def look_up(self, captions: list[str]) -> tuple[Conditioning | None, Conditioning | None]:
        """The captions' rows of tokens and of conditioning."""
        row_indices = [self._row[caption] for caption in captions]
        return (
            None if self.tokens is None else self.tokens.select(row_indices),
            None if self.conditioning is None else self.conditioning.select(row_indices),
        )


@torch.no_grad()
def encode_captions(components: Components, captions: list[str]) -> Conditioning:
    """K rows on the CPU, encoded one by one: none depends on its neighbours.

    An empty one, as of `loss.caption_dropout`, is what guidance will compare with.
    """
    model_functions = components.functions
    if components.family.trainable_text_encoders:
        # The same numbers as where they are trained, before the first step.
        return embed_caption_tokens(
            components, model_functions.text_training.tokenize(components, captions)
        )
    conditioning_rows = [
        (model_functions.encode_prompt if caption else model_functions.encode_negative_prompt)(
            components, components.text_forward_functions, caption
        )
        for caption in captions
    ]
    return model_functions.join_rows(conditioning_rows).to(torch.device("cpu"))


class PreservationCaptionEmbeddings:
    """Captions without identifier, as the base model and the trained one embed them.

    Make it before training: what is embedded then is the base model's.
    """

    def __init__(
        self, components: Components, all_captions: CaptionEmbeddings, captions: list[str]
    ) -> None:
        """captions: of `all_captions`, so that all have as many windows"""
        unique_captions = sorted(set(captions))
        self._row = {caption: row for row, caption in enumerate(unique_captions)}
        self._captions = all_captions
        tokens, conditioning = all_captions.look_up(unique_captions)
        if conditioning is None:
            assert tokens is not None
            conditioning = embed_caption_tokens(components, tokens)
        self._base_conditioning = conditioning

    def look_up(self, captions: list[str]) -> IdentifierFreeCaptions:
        """A batch's."""
        tokens, conditioning = self._captions.look_up(captions)
        row_indices = [self._row[caption] for caption in captions]
        return IdentifierFreeCaptions(
            self._base_conditioning.select(row_indices), tokens, conditioning
        )


@torch.no_grad()
def embed_caption_tokens(components: Components, tokens: Conditioning) -> Conditioning:
    """Token ids of K captions, embedded one by one, on the CPU."""
    text_training_functions = components.functions.text_training
    text_encoder_functions = text_training_functions.text_functions(
        components.trainable_text_encoders
    )
    device = next(iter(components.text_encoders.values())).device
    token_encoder = text_training_functions.make_token_encoder(components, text_encoder_functions)
    conditioning_rows = [
        token_encoder(tokens.select(slice(row_index, row_index + 1)).to(device)).to(
            torch.device("cpu")
        )
        for row_index in range(len(tokens))
    ]
    return Conditioning.join(conditioning_rows)
