import torch

from dreambooth_ray.toyworld.pretrain_vae import VaeLoss, fold_latent_normalisation, new_vae


def test_normalising_changes_latents_and_not_images() -> None:
    torch.manual_seed(0)
    vae = new_vae().eval().requires_grad_(False)
    pixels = torch.rand(6, 3, 32, 32) * 2 - 1
    before = vae.encode(pixels).latent_dist
    decoded = vae.decode(before.mean).sample
    fold_latent_normalisation(vae, pixels)
    after = vae.encode(pixels).latent_dist
    scaled = after.mean * vae.config.scaling_factor
    assert torch.allclose(scaled.mean(dim=(0, 2, 3)), torch.zeros(8), atol=1e-3)
    assert torch.allclose(scaled.std(dim=(0, 2, 3)), torch.ones(8), atol=1e-3)
    assert torch.allclose(vae.decode(after.mean).sample, decoded, atol=1e-4)
    # Noise shrinks with what it is noise on.
    ratio = (after.std / after.mean.std(dim=(0, 2, 3), keepdim=True)).mean()
    assert torch.isclose(ratio, (before.std / before.mean.std(dim=(0, 2, 3), keepdim=True)).mean())


def test_the_loss_is_finite_for_crops_and_whole_images() -> None:
    torch.manual_seed(0)
    loss = VaeLoss()
    for side in (32, 64):
        pixels = torch.rand(2, 3, side, side) * 2 - 1
        assert torch.isfinite(loss(pixels))
