"""Networks as functions of tensors, which can be traced.

Legend: B rows, L tokens, D width of a text encoder, P of its pooled embedding.
"""

import torch
from torch import Tensor, nn

# The output of the layer before the last, without the final norm.
PENULTIMATE = -2


class NetworkFunction(nn.Module):
    """A module whose first child is the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class LastStateEncoder(NetworkFunction):
    """A text encoder as a function from token ids to its last hidden state."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids: (B, L) int64; returns (B, L, D)."""
        return torch.as_tensor(self.network(input_ids).last_hidden_state)


class PenultimateEncoder(NetworkFunction):
    """A text encoder as a function from token ids to the states before its last layer."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids: (B, L) int64; returns (B, L, D)."""
        encoder_outputs = self.network(input_ids, output_hidden_states=True)
        return torch.as_tensor(encoder_outputs.hidden_states[PENULTIMATE])


class PooledEncoder(NetworkFunction):
    """As `PenultimateEncoder`, and with the pooled embedding of each text."""

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """input_ids: (B, L) int64; returns (B, L, D) and (B, P)."""
        encoder_outputs = self.network(input_ids, output_hidden_states=True)
        return encoder_outputs.hidden_states[PENULTIMATE], encoder_outputs.text_embeds
