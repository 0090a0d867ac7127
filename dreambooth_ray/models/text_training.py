"""What a family computes whose text encoders are trained.

Legend: B rows, L tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning

# Of `TextTraining.text_function`, by the name of the part.
TextFunctions = Mapping[str, Callable[..., Any]]


class TextTraining(ABC):
    """A second base class of the `ModelFunctions` of such a family.

    `ModelFunctions.text_training` gives it to what trains.
    """

    @abstractmethod
    def tokenize(self, parts: Components, captions: Sequence[str]) -> Conditioning:
        """Token ids of captions, for `make_token_encoder`, and what frozen encoders give."""

    @abstractmethod
    def text_function(self, name: str, encoder: nn.Module) -> nn.Module:
        """A text encoder as a function from token ids (B, L) to one tensor, or to several."""

    @abstractmethod
    def make_token_encoder(
        self, parts: Components, functions: TextFunctions
    ) -> Callable[[Conditioning], Conditioning]:
        """A function that embeds what `tokenize` gave, in every step."""

    @abstractmethod
    def encode_dummy_tokens(
        self, parts: Components, functions: TextFunctions, conditioning: Conditioning
    ) -> Conditioning:
        """An example's conditioning, with what trained text encoders give in it computed by them.

        conditioning: of `ModelFunctions.example_conditioning`
        """

    def unused_layers(self, name: str, encoder: Any) -> tuple[str, ...]:
        """Layers of a text encoder that nothing which the denoiser is told comes from.

        They are never trained: gradients would not reach them.
        """
        return ()

    def text_functions(self, encoders: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """`text_function` of each."""
        return {
            encoder_name: self.text_function(encoder_name, encoder)
            for encoder_name, encoder in encoders.items()
        }
