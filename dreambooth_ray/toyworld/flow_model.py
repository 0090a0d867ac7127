"""The toy world's flow-matching model: Z-Image (arXiv 2511.22699) at toy size.

ZImagePipeline's own parts, so that diffusers loads and samples what is saved here.
"""

from importlib.resources import files
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import Tensor, nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from dreambooth_ray.compat.diffusers import set_component_source

TEXT_WIDTH = 128
SHIFT = 1.0  # of the noise levels; images this small need none


def new_transformer(latent_channels: int) -> ZImageTransformer2DModel:
    """An untrained denoiser, 6.3 M parameters; its blocks begin as identities."""
    transformer = ZImageTransformer2DModel(
        in_channels=latent_channels,
        dim=192,
        n_layers=8,
        n_refiner_layers=1,
        n_heads=6,
        n_kv_heads=6,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[8, 12, 12],
        axes_lens=[1024, 64, 64],
    )
    for name, parameter in transformer.named_parameters():
        if "adaLN_modulation" in name or name.endswith("final_layer.2-1.linear.weight"):
            nn.init.zeros_(parameter)
    # diffusers leaves the two as they come from memory.
    nn.init.normal_(transformer.x_pad_token, std=0.02)
    nn.init.normal_(transformer.cap_pad_token, std=0.02)
    return transformer


def new_flow_text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen3Model:
    """An untrained text encoder. The pipeline reads the last layer's input: two layers count."""
    return Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=3 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=1024,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def encode_tokens(text_encoder: Qwen3Model, token_ids: Tensor) -> Tensor:
    """(B, L) ids, padded on the right, to the (B, L, width) that ZImagePipeline conditions on.

    That is the last layer's input. Attention is causal, so no token sees the padding behind it.
    """
    hidden_states = text_encoder.embed_tokens(token_ids)
    position_ids = torch.arange(token_ids.shape[1], device=token_ids.device)[None]
    rotary_embeddings = text_encoder.rotary_emb(hidden_states, position_ids)
    for layer in text_encoder.layers[:-1]:
        hidden_states = layer(
            hidden_states,
            attention_mask=None,
            position_ids=position_ids,
            position_embeddings=rotary_embeddings,
        )
    encoded_tokens: Tensor = hidden_states
    return encoded_tokens


def load_flow_vae() -> AutoencoderKL:
    """The first toy's autoencoder: its latents have mean 0 and variance 1 times 0.18215."""
    folder = Path(str(files("dreambooth_ray.toyworld") / "weights" / "pipeline" / "vae"))
    vae = AutoencoderKL.from_pretrained(folder, dtype=torch.float32)
    vae.register_to_config(shift_factor=0.0)
    set_component_source(vae, "toyworld")
    return vae.eval().requires_grad_(False)


def assemble_pipeline(
    transformer: ZImageTransformer2DModel,
    text_encoder: Qwen3Model,
    tokenizer: Qwen2Tokenizer,
    vae: AutoencoderKL,
) -> ZImagePipeline:
    """diffusers' pipeline of these parts, with the scheduler that they are trained for."""
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
