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
        (token_grid_size,) = video_fhw[0] if isinstance(video_fhw[0], list) else video_fhw[:1]
        _, num_rows, num_columns = token_grid_size
        # An image's middle is 0, and a prompt begins where the longer side ends.
        row_positions, column_positions = (
            torch.arange(side, device=device) - (side - side // 2)
            for side in (num_rows, num_columns)
        )
        frame_positions = torch.zeros_like(row_positions[:1])
        text_positions = torch.arange(max_txt_seq_len, device=device)
        text_positions = text_positions + torch.max(row_positions[-1], column_positions[-1]) + 1
        image_positions = torch.cartesian_prod(frame_positions, row_positions, column_positions)
        return self._compute_rotations(image_positions), self._compute_rotations(
            text_positions[:, None].expand(-1, len(self.axes_dim))
        )

    def _compute_rotations(self, positions: Tensor) -> Tensor:
        """(S, 3) positions, one for each axis, to (S, E)."""
        angles_by_axis = []
        for axis, axis_dim in enumerate(self.axes_dim):
            exponents = torch.arange(0, axis_dim, 2, device=positions.device).float().div(axis_dim)
            frequencies = 1.0 / torch.pow(self.theta, exponents)
            angles_by_axis.append(positions[:, axis, None] * frequencies)
        rotation_angles = torch.cat(angles_by_axis, dim=-1)
        return torch.polar(torch.ones_like(rotation_angles), rotation_angles)
