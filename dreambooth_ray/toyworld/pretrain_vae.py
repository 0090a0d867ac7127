"""The toy world's autoencoder: 64 px to 8 x 16 x 16 latents.

Eight channels, not Stable Diffusion's four: with four, spots and checks are gone before
diffusion starts.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from dreambooth_ray.toyworld.pretrain_phase import Phase, read_averaged_weights
from dreambooth_ray.toyworld.world_images import to_tensor

CHANNELS = 8
KL_WEIGHT = 1e-4


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder of the toy world's size."""
    return AutoencoderKL(
        block_out_channels=(24, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=64,
    )


class VaeLoss(nn.Module):
    """Mean absolute error of pixels and of their differences, plus a small KL term."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = new_vae()

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: (B, 3, H, W) in [-1, 1]; returns a scalar."""
        posterior = self.vae.encode(pixels).latent_dist
        reconstructed = self.vae.decode(posterior.sample()).sample
        pixel_errors = reconstructed - pixels
        edge_error = pixel_errors.diff(dim=2).abs().mean() + pixel_errors.diff(dim=3).abs().mean()
        posterior_mean, posterior_logvar = posterior.mean, posterior.logvar
        kl_loss = (
            0.5 * (posterior_mean.square() + posterior_logvar.exp() - 1 - posterior_logvar).mean()
        )
        loss: Tensor = pixel_errors.abs().mean() + 0.5 * edge_error + KL_WEIGHT * kl_loss
        return loss


def vae_phase(work: Path, steps: int, seed: int = 0, batch_size: int = 8) -> Phase:
    """32 px crops for the first 75 % of the steps, whole images after."""
    images = np.load(work / "pictures.npy", mmap_mode="r")
    torch.manual_seed(seed)

    def make_batch(step: int, rank: int) -> tuple[Tensor]:
        rng = np.random.default_rng([seed, 11, step, rank])
        is_cropped = step < 0.75 * steps
        image_indices = rng.integers(len(images), size=batch_size * (2 if is_cropped else 1))
        if not is_cropped:
            return (to_tensor(images[np.sort(image_indices)]),)
        crop_corners = rng.integers(0, 33, size=(len(image_indices), 2))
        return (
            to_tensor(
                np.stack(
                    [
                        images[k, y : y + 32, x : x + 32]
                        for k, (y, x) in zip(image_indices, crop_corners, strict=True)
                    ]
                )
            ),
        )

    return Phase("vae", VaeLoss(), make_batch, steps, lr=1.5e-3, ema_decay=0.998)


def load_trained_vae(work: Path) -> AutoencoderKL:
    """The autoencoder that the phase left behind, in evaluation mode."""
    loss_module = VaeLoss()
    loss_module.load_state_dict(read_averaged_weights(work / "vae.pt"))
    return loss_module.vae.eval().requires_grad_(False)


@torch.no_grad()
def fold_latent_normalisation(vae: AutoencoderKL, pixels: Tensor) -> None:
    """Fold a per-channel shift and scale into the 1x1 convolutions around the latents.

    Afterwards latents times Stable Diffusion's own scaling factor have mean 0 and
    variance 1 in every channel over `pixels` (B, 3, H, W), and decoding is unchanged.
    """
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(pixels, 32)])
    channel_mean = latents.mean(dim=(0, 2, 3))
    channel_scale = latents.std(dim=(0, 2, 3)) * vae.config.scaling_factor
    quant_conv, post_quant_conv = vae.quant_conv, vae.post_quant_conv
    quant_conv.weight[:CHANNELS] /= channel_scale[:, None, None, None]
    quant_conv.bias[:CHANNELS] = (quant_conv.bias[:CHANNELS] - channel_mean) / channel_scale
    quant_conv.bias[CHANNELS:] -= 2 * channel_scale.log()
    post_quant_conv.bias += torch.einsum("oihw,i->o", post_quant_conv.weight, channel_mean)
    post_quant_conv.weight *= channel_scale[None, :, None, None]
