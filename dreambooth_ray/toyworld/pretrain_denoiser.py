"""The toy world's UNet and text encoder, and how they are pretrained together."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreambooth_ray.toyworld.pretrain_phase import Phase
from dreambooth_ray.toyworld.pretrain_vae import CHANNELS
from dreambooth_ray.toyworld.world_captions import WINDOW, random_caption
from dreambooth_ray.toyworld.world_images import subject_and_scene, to_tensor

SNR_GAMMA = 5.0
CAPTION_DROPOUT = 0.1
WIDTH = 128


def new_unet() -> UNet2DConditionModel:
    """An untrained denoiser of the toy world's size, 5.3 M parameters."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained two-layer text encoder."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=WINDOW,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_noise_schedule() -> DDPMScheduler:
    """Stable Diffusion's own schedule."""
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )


@torch.no_grad()
def cache_latents(work: Path, vae: AutoencoderKL, rank: int = 0, world: int = 1) -> None:
    """Encode every image once: latents.npy, (N, 2, C, 16, 16) float16, scaled mean and std."""
    images = np.load(work / "pictures.npy", mmap_mode="r")
    latents_file = np.load(work / "latents.partial.npy", mmap_mode="r+")
    for start in range(64 * rank, len(images), 64 * world):
        posterior = vae.encode(to_tensor(images[start : start + 64])).latent_dist
        mean_and_std = (
            torch.stack([posterior.mean, posterior.std], dim=1) * vae.config.scaling_factor
        )
        latents_file[start : start + 64] = mean_and_std.half().numpy()
    latents_file.flush()


class DenoiserLoss(nn.Module):
    """Noise prediction with min-SNR weights (Hang et al. 2023, arXiv 2303.09556)."""

    cumulative: Tensor

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = new_unet()
        self.text_encoder = new_text_encoder(tokenizer)
        alphas_cumprod = new_noise_schedule().alphas_cumprod
        self.register_buffer("cumulative", alphas_cumprod, persistent=False)

    def forward(self, latents: Tensor, input_ids: Tensor) -> Tensor:
        """latents: (B, C, 16, 16), unit variance; input_ids: (B, WINDOW); returns a scalar."""
        noise = torch.randn_like(latents)
        # One timestep from each B-th of the range: less variance than independent samples.
        batch_size = len(latents)
        quantiles = (torch.arange(batch_size) + torch.rand(batch_size)) / batch_size
        timesteps = (quantiles * len(self.cumulative)).long()
        alpha_cumprod = self.cumulative[timesteps]
        signal_scale = alpha_cumprod.sqrt()[:, None, None, None]
        noise_scale = (1 - alpha_cumprod).sqrt()[:, None, None, None]
        hidden_states = self.text_encoder(input_ids).last_hidden_state
        predicted_noise = self.unet(
            signal_scale * latents + noise_scale * noise, timesteps, hidden_states
        ).sample
        snr = alpha_cumprod / (1 - alpha_cumprod)
        snr_weight = snr.clamp(max=SNR_GAMMA) / snr
        loss: Tensor = ((predicted_noise - noise).square().mean(dim=(1, 2, 3)) * snr_weight).mean()
        return loss


def denoiser_phase(work: Path, steps: int, seed: int = 0, batch_size: int = 32) -> Phase:
    """Batches of cached latents with random captions, one in ten left empty."""
    latents = np.load(work / "latents.npy", mmap_mode="r")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    pretrain_seed = int((work / "seed").read_text())
    torch.manual_seed(seed)

    def make_batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([seed, 13, step, rank])
        image_indices = rng.integers(len(latents), size=batch_size)
        batch_captions = [
            ""
            if rng.uniform() < CAPTION_DROPOUT
            else random_caption(
                *subject_and_scene(pretrain_seed, int(k)), seed, int(rng.integers(2**62))
            )
            for k in image_indices
        ]
        tokenized_captions = tokenizer(
            batch_captions, padding="max_length", max_length=WINDOW, return_tensors="pt"
        )
        posterior_mean, posterior_std = (
            torch.from_numpy(latents[image_indices]).float().unbind(dim=1)
        )
        return posterior_mean + posterior_std * torch.randn_like(
            posterior_mean
        ), tokenized_captions.input_ids

    return Phase("denoiser", DenoiserLoss(tokenizer), make_batch, steps, lr=1.5e-3)
