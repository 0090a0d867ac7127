"""Qwen-Image's rotary positions, computed anew in each forward.

diffusers' module looks them up in tables that are no part of its weights, and keeps what it has
looked up for later: tensors of one device, of a trace, or without contents, come back in a forward
of another kind. Here nothing is kept. Equal to diffusers' numbers: held by a test.

Legend: N image tokens, L tokens of a prompt, E half the width of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn


class RotaryPositions(nn.Module):
    """Takes the place of QwenEmbedRope in a transformer."""

    def __init__(self, tables: Any) -> None:
        """tables: a QwenEmbedRope"""
        super().__init__()
        self.theta, self.axes_dim = float(tables.theta), list(tables.axes_dim)

    def forward(
        self, video_fhw: Any, device: torch.device, max_txt_seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """(N, E) and (L, E) complex unit numbers of the tokens of an image and of a prompt.

        video_fhw: of each row frames (1), rows and columns of tokens, equal for all; in a list of
            one, as the pipeline has them, or by themselves
        max_txt_seq_len: L
        """
        (shape,) = video_fhw[0] if isinstance(video_fhw[0], list) else video_fhw[:1]
        _, num_rows, num_columns = shape
        # An image's middle is 0, and a prompt begins where the longer side ends.
        rows, columns = (
            torch.arange(side, device=device) - (side - side // 2)
            for side in (num_rows, num_columns)
        )
        frames = torch.zeros_like(rows[:1])
        tokens = torch.arange(max_txt_seq_len, device=device)
        tokens = tokens + torch.max(rows[-1], columns[-1]) + 1
        image = torch.cartesian_prod(frames, rows, columns)
        return self._rotate(image), self._rotate(tokens[:, None].expand(-1, len(self.axes_dim)))

    def _rotate(self, positions: Tensor) -> Tensor:
        """(S, 3) positions, one for each axis, to (S, E)."""
        angles = []
        for axis, width in enumerate(self.axes_dim):
            steps = torch.arange(0, width, 2, device=positions.device).float().div(width)
            frequencies = 1.0 / torch.pow(self.theta, steps)
            angles.append(positions[:, axis, None] * frequencies)
        angle = torch.cat(angles, dim=-1)
        return torch.polar(torch.ones_like(angle), angle)
