"""The flow model's training set: latents and token ids, encoded once and kept on the device."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import Qwen2Tokenizer

from dreambooth_ray.toyworld.captioned_images import (
    CAPTIONS_EACH,
    CaptionTokenizerSpec,
    render_captioned_images,
    tokenize_captions,
)
from dreambooth_ray.toyworld.flow_tokenizer import WINDOW, apply_chat_format
from dreambooth_ray.toyworld.world_images import to_tensor

CAPTION_DROPOUT = 0.1


@dataclass(frozen=True)
class FlowBatch:
    """latents: (B, C, 16, 16), unit variance; token_ids: (B, WINDOW); sigma: (B,), 1 is noise."""

    latents: Tensor
    token_ids: Tensor
    noise: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class FlowDataset:
    """latents: (N, C, 16, 16) float16; token_ids: (N, CAPTIONS_EACH, WINDOW) int16;
    empty_ids: (WINDOW,), the empty caption; pad_id: what fills a caption up."""

    latents: Tensor
    token_ids: Tensor
    empty_ids: Tensor
    pad_id: int

    def make_training_batch(self, seed: int, step: int, size: int) -> FlowBatch:
        """The batch of a step: a pure function of (seed, step, size) on one kind of device."""
        device = self.latents.device
        rng = torch.Generator(device).manual_seed(seed * 2654435761 % 2**31 + step)

        def uniform(count: int) -> Tensor:
            return torch.rand(count, device=device, generator=rng)

        image_indices = torch.randint(len(self.latents), (size,), device=device, generator=rng)
        caption_indices = torch.randint(CAPTIONS_EACH, (size,), device=device, generator=rng)
        latents = self.latents[image_indices].float()
        is_dropped = (uniform(size) < CAPTION_DROPOUT)[:, None]
        token_ids = torch.where(
            is_dropped, self.empty_ids, self.token_ids[image_indices, caption_indices]
        ).long()
        noise = torch.randn(latents.shape, device=device, generator=rng)
        # One level from each B-th of the range: less variance than independent samples.
        sigma = (torch.arange(size, device=device) + uniform(size)) / size
        return FlowBatch(latents, token_ids, noise, sigma)


def make_caption_tokenizer_spec(tokenizer: Qwen2Tokenizer) -> CaptionTokenizerSpec:
    """How worker processes tokenize captions, as ZImagePipeline tokenizes prompts."""
    return CaptionTokenizerSpec(
        tokenizer_json=tokenizer.backend_tokenizer.to_str(),
        text=apply_chat_format(tokenizer, "{}"),
        window=WINDOW,
        pad_id=tokenizer.pad_token_id,
    )


@torch.no_grad()
def encode_toy_images(
    work: Path,
    vae: AutoencoderKL,
    tokenizer: Qwen2Tokenizer,
    seed: int,
    num_images: int,
    workers: int,
    log: Callable[[str], None],
) -> None:
    """Render and encode `num_images` images into `work`, unless they are there."""
    array_paths = [work / "flow-latents.npy", work / "flow-captions.npy"]
    if all(path.exists() for path in array_paths):
        return
    caption_tokenizer_spec = make_caption_tokenizer_spec(tokenizer)
    latents = np.empty((num_images, vae.config.latent_channels, 16, 16), np.float16)
    token_ids = np.empty((num_images, CAPTIONS_EACH, WINDOW), np.int16)
    blocks = render_captioned_images(seed, num_images, caption_tokenizer_spec, workers)
    for block_index, (start_index, images, block_token_ids) in enumerate(blocks):
        stop_index = start_index + len(images)
        pixels = to_tensor(images, vae.device)
        # The posterior's deviation is 0.01 of the latents': its mean is what is learnt.
        posterior_means = torch.cat(
            [vae.encode(part).latent_dist.mean for part in torch.split(pixels, 128)]
        )
        latents[start_index:stop_index] = (
            (posterior_means * vae.config.scaling_factor).half().cpu().numpy()
        )
        token_ids[start_index:stop_index] = block_token_ids
        if block_index % 64 == 63:
            log(f"encoded {stop_index} of {num_images} images")
    for path, dataset_array in zip(array_paths, (latents, token_ids), strict=True):
        partial_path = path.with_suffix(".partial.npy")
        np.save(partial_path, dataset_array)
        partial_path.rename(path)


def load_flow_dataset(work: Path, tokenizer: Qwen2Tokenizer, device: torch.device) -> FlowDataset:
    """What `encode_toy_images` left in `work`, on the device."""
    latents, token_ids = (
        torch.from_numpy(np.load(work / name)).to(device)
        for name in ("flow-latents.npy", "flow-captions.npy")
    )
    caption_tokenizer_spec = make_caption_tokenizer_spec(tokenizer)
    empty_ids = torch.from_numpy(tokenize_captions([""], caption_tokenizer_spec)[0]).to(device)
    return FlowDataset(latents, token_ids, empty_ids, caption_tokenizer_spec.pad_id)
