"""Z-Image's forward for a whole batch at once, over diffusers' and transformers' own modules.

ZImageTransformer2DModel takes a list of images and a list of captions and goes through them one by
one in Python, which costs more than the arithmetic of a toy. Here all images have one size and all
captions one padded length. Equal to the published forward: held by a test.

Legend: B batch, C latent channels, H W latent height and width, L padded caption tokens,
N = H/2 * W/2 image tokens, D width, A heads, E = D / A.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ZImageTransformer2DModel
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF
from torch import Tensor
from transformers import Qwen3Model

PATCH = 2
BlockForward = Callable[..., Tensor]


def encode_tokens(text_encoder: Qwen3Model, token_ids: Tensor) -> Tensor:
    """(B, L) ids, padded on the right, to the (B, L, width) that ZImagePipeline conditions on.

    That is the last layer's input. Attention is causal, so no token sees the padding behind it.
    """
    hidden = text_encoder.embed_tokens(token_ids)
    position_ids = torch.arange(token_ids.shape[1], device=token_ids.device)[None]
    rotation = text_encoder.rotary_emb(hidden, position_ids)
    for layer in text_encoder.layers[:-1]:
        hidden = layer(
            hidden, attention_mask=None, position_ids=position_ids, position_embeddings=rotation
        )
    encoded: Tensor = hidden
    return encoded


def run_block(
    block: Any, x: Tensor, cos: Tensor, sin: Tensor, time: Tensor | None = None
) -> Tensor:
    """A ZImageTransformerBlock on (B, S, D); cos and sin: (S, 1, E / 2); time: (B, D)."""
    if block.modulation:
        scales = block.adaLN_modulation(time).unsqueeze(1).chunk(4, dim=2)
        attention_scale, feed_forward_scale = 1.0 + scales[0], 1.0 + scales[2]
        attention_gate, feed_forward_gate = scales[1].tanh(), scales[3].tanh()
    else:
        attention_scale = feed_forward_scale = attention_gate = feed_forward_gate = 1.0
    attended = _attend(block.attention, block.attention_norm1(x) * attention_scale, cos, sin)
    x = x + attention_gate * block.attention_norm2(attended)
    fed_forward = block.feed_forward(block.ffn_norm1(x) * feed_forward_scale)
    output: Tensor = x + feed_forward_gate * block.ffn_norm2(fed_forward)
    return output


def _attend(attention: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, key, value = (
        project(x).unflatten(-1, (attention.heads, -1))
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    query = _rotate(attention.norm_q(query), cos, sin).to(value.dtype)
    key = _rotate(attention.norm_k(key), cos, sin).to(value.dtype)
    mixed = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    )
    projected: Tensor = attention.to_out[0](mixed.transpose(1, 2).flatten(2))
    return projected


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (B, S, A, E) in pairs of neighbours, in float32."""
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)
    real, imaginary = pairs[..., 0], pairs[..., 1]
    rotated = torch.stack(
        [real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1
    ).flatten(-2)
    return rotated.to(x.dtype)


def predict_velocity(
    transformer: ZImageTransformer2DModel,
    latents: Tensor,
    time: Tensor,
    hidden: Tensor,
    is_token: Tensor,
    block_forward: BlockForward = run_block,
) -> Tensor:
    """What the transformer says of noisy latents: data minus noise, (B, C, H, W).

    latents: (B, C, H, W); time: (B,), 0 noise to 1 data; hidden: (B, L, width) of encode_tokens;
    is_token: (B, L), False where padding stands; block_forward: run_block, or a compiled one
    raises: ValueError where L or N is no multiple of what the published forward pads to
    """
    rows, columns = latents.shape[2] // PATCH, latents.shape[3] // PATCH
    if hidden.shape[1] % SEQ_MULTI_OF or (rows * columns) % SEQ_MULTI_OF:
        raise ValueError(
            f"{hidden.shape[1]} caption tokens and {rows * columns} image tokens: both must be "
            f"multiples of {SEQ_MULTI_OF}"
        )
    (image_cos, image_sin), (caption_cos, caption_sin) = _rotations(
        transformer, rows, columns, hidden.shape[1]
    )
    embedded_time = transformer.t_embedder(time * transformer.t_scale).type_as(latents)
    image = transformer.all_x_embedder["2-1"](_patchify(latents))
    for block in transformer.noise_refiner:
        image = block_forward(block, image, image_cos, image_sin, embedded_time)
    caption = transformer.cap_embedder(hidden)
    caption = torch.where(is_token[..., None], caption, transformer.cap_pad_token)
    for block in transformer.context_refiner:
        caption = block_forward(block, caption, caption_cos, caption_sin)
    both = torch.cat([image, caption.type_as(image)], dim=1)
    cos, sin = torch.cat([image_cos, caption_cos]), torch.cat([image_sin, caption_sin])
    for block in transformer.layers:
        both = block_forward(block, both, cos, sin, embedded_time)
    patches = transformer.all_final_layer["2-1"](both[:, : rows * columns], c=embedded_time)
    return _unpatchify(patches, rows, columns)


def _rotations(
    transformer: ZImageTransformer2DModel, rows: int, columns: int, num_tokens: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """cos and sin of image and caption, (N, 1, E / 2) and (L, 1, E / 2)."""
    device = transformer.x_pad_token.device
    grid, embed = transformer.create_coordinate_grid, transformer.rope_embedder
    image_ids = grid((1, rows, columns), (num_tokens + 1, 0, 0), device).flatten(0, 2)
    caption_ids = grid((num_tokens, 1, 1), (1, 0, 0), device).flatten(0, 2)
    image, caption = embed(image_ids)[:, None], embed(caption_ids)[:, None]
    return (image.real, image.imag), (caption.real, caption.imag)


def _patchify(latents: Tensor) -> Tensor:
    """(B, C, H, W) to (B, N, 4 C), channels last within a patch."""
    size, channels, height, width = latents.shape
    patches = latents.reshape(size, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def _unpatchify(patches: Tensor, rows: int, columns: int) -> Tensor:
    """(B, N, 4 C) to (B, C, H, W)."""
    split = patches.reshape(len(patches), rows, columns, PATCH, PATCH, -1)
    return split.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
