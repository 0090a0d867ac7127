"""Z-Image's forward for a whole batch at once, over diffusers' own blocks.

ZImageTransformer2DModel takes a list of images and a list of captions, and cuts and pads each in
Python, by lengths that it reads from the tensors. That can't be traced, and costs more than the
arithmetic of a small model. Here lengths stay tensors. Equal to the published forward: held by a
test.

Legend: B batch, C latent channels, h, w latent sides, L caption tokens of the longest row, a
multiple of 32; N image tokens, padded to one; D the transformer's width, E of half a head.
"""

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dreambooth_ray.models.families.z_image_checks import PATCH

_KIND = "2-1"  # of an embedder and a final layer: patches of two by two, one frame


class TraceableZImageTransformer(nn.Module):
    """The transformer as a function from tensors to the velocity, noise less data."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        _enable_batch_forward(transformer)
        self.transformer = transformer

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        hidden: Tensor,
        is_token: Tensor,
        is_attended: Tensor | None = None,
    ) -> Tensor:
        """x: (B, C, h, w); time: (B,) sigmas; returns (B, C, h, w).

        hidden: (B, L, width); is_token: (B, L) bool, the prompt's own tokens
        is_attended: (B, L) bool, with the padding to the row's own multiple of 32; None where
            that is L for all
        """
        # As the pipeline computes it: rounded likewise.
        denoised_fraction = (1000 - 1000 * time) / 1000
        return torch.neg(self.transformer(x, denoised_fraction, hidden, is_token, is_attended))


def _enable_batch_forward(transformer: nn.Module) -> None:
    """Have a transformer's own call take a batch of tensors too, in place.

    Its own call, so that what shards, compiles or hooks modules finds it as any other.
    """
    if "forward" not in vars(transformer):
        transformer.forward = MethodType(_forward_list_or_batch, transformer)


def _forward_list_or_batch(
    transformer: Any, x: Any, time: Tensor, *inputs: Any, **options: Any
) -> Any:
    """Lists as diffusers takes them, or what `forward_batched_tensors` takes."""
    if isinstance(x, list):
        return type(transformer).forward(transformer, x, time, *inputs, **options)
    return forward_batched_tensors(transformer, x, time, *inputs)


def forward_batched_tensors(
    transformer: Any,
    x: Tensor,
    share_done: Tensor,
    hidden: Tensor,
    is_token: Tensor,
    is_attended: Tensor | None = None,
) -> Tensor:
    """What the transformer says of noisy latents: data less noise, (B, C, h, w).

    share_done: (B,), 0 noise to 1 data; the others as of `TraceableZImageTransformer`
    """
    num_rows, num_columns = x.shape[-2] // PATCH, x.shape[-1] // PATCH
    time_embedding = transformer.t_embedder(share_done * transformer.t_scale).type_as(x)
    image_tokens = transformer.all_x_embedder[_KIND](_patchify(x))
    num_padding = -(num_rows * num_columns) % SEQ_MULTI_OF
    # None of it too: the token then has a gradient of zeros, for which DDP waits.
    padding = transformer.x_pad_token.to(image_tokens).expand(x.shape[0], num_padding, -1)
    image_tokens = torch.cat([image_tokens, padding], dim=1)
    image_rotation, caption_rotation = _find_rotations(
        transformer, (num_rows, num_columns, num_padding), is_token, is_attended
    )
    for block in transformer.noise_refiner:
        image_tokens = _run_block(
            transformer, block, image_tokens, None, image_rotation, time_embedding
        )
    caption_tokens = transformer.cap_embedder(hidden)
    caption_tokens = torch.where(
        is_token[..., None], caption_tokens, transformer.cap_pad_token.to(caption_tokens)
    )
    for block in transformer.context_refiner:
        caption_tokens = _run_block(
            transformer, block, caption_tokens, is_attended, caption_rotation
        )
    joint_tokens = torch.cat([image_tokens, caption_tokens.type_as(image_tokens)], dim=1)
    mask = (
        None if is_attended is None else F.pad(is_attended, (image_tokens.shape[1], 0), value=True)
    )
    rotation = torch.cat([image_rotation, caption_rotation], dim=1)
    for block in transformer.layers:
        joint_tokens = _run_block(transformer, block, joint_tokens, mask, rotation, time_embedding)
    predicted_patches = transformer.all_final_layer[_KIND](
        joint_tokens[:, : num_rows * num_columns], c=time_embedding
    )
    return _unpatchify(predicted_patches, num_rows, num_columns)


def _run_block(transformer: Any, block: nn.Module, *inputs: Tensor | None) -> Tensor:
    """inputs: tokens, their mask, their rotation and, of blocks that have it, the time"""
    if transformer.gradient_checkpointing and torch.is_grad_enabled():
        return torch.as_tensor(checkpoint(block, *inputs, use_reentrant=False))
    return torch.as_tensor(block(*inputs))


def _find_rotations(
    transformer: Any,
    size: tuple[int, int, int],
    is_token: Tensor,
    is_attended: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(B, N, E) and (B, L, E) complex; one row where all are of one length.

    size: rows and columns of image tokens, and padding behind them
    """
    num_rows, num_columns, num_padding = size
    device, num_tokens = is_token.device, is_token.shape[1]
    # The image follows its own caption, padded to a multiple of 32.
    caption_lengths = (
        torch.full((1,), num_tokens, device=device)
        if is_attended is None
        else is_attended.sum(dim=1)
    )
    frame_positions = (caption_lengths + 1)[:, None].expand(-1, num_rows * num_columns)
    row_positions = (
        torch.arange(num_rows, device=device)
        .repeat_interleave(num_columns)
        .expand_as(frame_positions)
    )
    column_positions = (
        torch.arange(num_columns, device=device).repeat(num_rows).expand_as(frame_positions)
    )
    image_positions = F.pad(
        torch.stack([frame_positions, row_positions, column_positions], dim=2),
        (0, 0, 0, num_padding),
    )
    token_positions = torch.arange(1, num_tokens + 1, device=device).expand(
        caption_lengths.shape[0], -1
    )
    caption_positions = F.pad(token_positions[..., None], (0, 2))
    return _compute_position_rotations(transformer, image_positions), _compute_position_rotations(
        transformer, caption_positions
    )


def _compute_position_rotations(transformer: Any, positions: Tensor) -> Tensor:
    """(B, S, 3) positions to (B, S, E) unit numbers, as of diffusers' tables."""
    angles_by_axis = []
    for axis, axis_dim in enumerate(transformer.axes_dims):
        even_indices = torch.arange(0, axis_dim, 2, dtype=torch.float64, device=positions.device)
        frequencies = 1.0 / (transformer.rope_theta ** (even_indices / axis_dim))
        angles_by_axis.append(positions[..., axis, None].double() * frequencies)
    rotation_angles = torch.cat(angles_by_axis, dim=-1).float()
    return torch.polar(torch.ones_like(rotation_angles), rotation_angles)


def _patchify(latents: Tensor) -> Tensor:
    """(B, C, h, w) to (B, N, 4 C), channels last within a patch."""
    batch_size, num_channels, latent_height, latent_width = latents.shape
    patches = latents.reshape(
        batch_size, num_channels, latent_height // PATCH, PATCH, latent_width // PATCH, PATCH
    )
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def _unpatchify(patches: Tensor, rows: int, columns: int) -> Tensor:
    """(B, N, 4 C) to (B, C, h, w)."""
    patch_grid = patches.reshape(patches.shape[0], rows, columns, PATCH, PATCH, -1)
    return patch_grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
