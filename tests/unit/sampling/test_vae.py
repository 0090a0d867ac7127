import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth_ray.models.components import Components
from dreambooth_ray.sampling.vae import LatentCodec, latent_mask
from dreambooth_ray.toyworld.world import random_subject, render_photographs


def test_an_image_survives_latents_and_its_preview_resembles_it(toy_parts: Components) -> None:
    codec = LatentCodec(toy_parts)
    (large,) = render_photographs(random_subject(7, class_noun="robot"), 7, 1)
    image = large.resize((64, 64), Image.Resampling.LANCZOS)
    latents = codec.encode(image)
    assert latents.shape == (codec.channels, 16, 16)
    (decoded,) = codec.decode(latents[None])
    reference = np.asarray(image, dtype=float).ravel()
    assert np.corrcoef(np.asarray(decoded, dtype=float).ravel(), reference)[0, 1] > 0.95
    preview = codec.decode_preview(latents)
    assert preview.size == image.size
    assert np.corrcoef(np.asarray(preview, dtype=float).ravel(), reference)[0, 1] > 0.7


def test_large_images_are_decoded_in_tiles(
    toy_parts: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreambooth_ray.sampling.vae.TILED_ABOVE_PX", 64)
    codec = LatentCodec(toy_parts)
    toy_parts.vae.tile_latent_min_size, toy_parts.vae.tile_sample_min_size = 16, 64
    latents = torch.randn(1, codec.channels, 24, 24, generator=torch.Generator().manual_seed(1))
    (tiled,) = codec.decode(latents)
    assert toy_parts.vae.use_tiling
    monkeypatch.setattr("dreambooth_ray.sampling.vae.TILED_ABOVE_PX", 1024)
    (untiled,) = codec.decode(latents)
    assert not toy_parts.vae.use_tiling
    assert tiled.size == untiled.size == (96, 96)
    pixels = [np.asarray(p, dtype=float).ravel() for p in (tiled, untiled)]
    assert np.corrcoef(*pixels)[0, 1] > 0.9


def test_masks_at_latent_size() -> None:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    small = latent_mask(mask, 16, 16)
    assert small.shape == (1, 16, 16)
    assert small[0, :, :8].eq(1).all()
    assert small[0, :, 8:].eq(0).all()
