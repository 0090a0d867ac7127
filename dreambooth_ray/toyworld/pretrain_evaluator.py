"""How the evaluator learns: attributes by cross-entropy, identity by contrast.

Images are blurred, dimmed, and passed through the autoencoder at random, so that
neither blur nor a reconstruction reads as another subject.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from dreambooth_ray.toyworld.attributes import CLASSES
from dreambooth_ray.toyworld.evaluator import Evaluator
from dreambooth_ray.toyworld.pretrain_phase import Phase
from dreambooth_ray.toyworld.world_images import (
    SCENES_EACH,
    attribute_labels,
    describe_image,
    to_tensor,
)

TEMPERATURE = 0.1
SUBJECTS_A_CLASS = 8
CLASSES_A_BATCH = 3


class EvaluatorLoss(nn.Module):
    """Cross-entropy of each attribute plus symmetric contrast between two scenes of a subject."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Evaluator()

    def forward(self, pixels: Tensor, truth: Tensor) -> Tensor:
        """pixels: (2N, 3, 64, 64), the second half the same subjects; truth: (2N, 5)."""
        logits, identity = self.network(pixels)
        loss = sum(F.cross_entropy(part, truth[:, i]) for i, part in enumerate(logits))
        one, two = identity.chunk(2)
        scores = one @ two.T / TEMPERATURE
        positives = torch.arange(len(one))
        return loss + 0.5 * (
            F.cross_entropy(scores, positives) + F.cross_entropy(scores.T, positives)
        )


@torch.no_grad()
def generate_reconstructions(work: Path, vae: AutoencoderKL, count: int, seed: int) -> None:
    """Decode the first `count` images from slightly disturbed latents: the generator's faults."""
    path = work / "reconstructions.npy"
    if path.exists():
        return
    images = np.load(work / "pictures.npy", mmap_mode="r")
    generator = torch.Generator().manual_seed(seed)
    pixel_blocks = []
    for start in range(0, count, 50):
        posterior = vae.encode(to_tensor(images[start : start + 50])).latent_dist
        latents = posterior.mean
        spread = latents.std() * 0.3 * torch.rand(len(latents), 1, 1, 1, generator=generator)
        disturbed = latents + spread * torch.randn(latents.shape, generator=generator)
        reconstructed = vae.decode(disturbed).sample.clamp(-1, 1)
        pixel_blocks.append(
            ((reconstructed + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        )
    partial = path.with_suffix(".partial.npy")
    np.save(partial, np.concatenate(pixel_blocks))
    partial.rename(path)


def augment_images(pixels: Tensor) -> Tensor:
    """Random blur, brightness, contrast and noise; (B, 3, H, W) in and out."""
    size = len(pixels)
    blurred = torch.rand(size) < 0.35
    if blurred.any():
        sigma = float(torch.empty(1).uniform_(0.3, 1.3))
        x = torch.arange(-3, 4).float()
        kernel = torch.exp(-0.5 * (x / sigma) ** 2)
        kernel = (kernel / kernel.sum()).repeat(3, 1)
        rows = F.conv2d(
            F.pad(pixels[blurred], (3, 3, 3, 3), "replicate"), kernel[:, None, None], groups=3
        )
        pixels[blurred] = F.conv2d(rows, kernel[:, None, :, None], groups=3)
    contrast = torch.empty(size, 1, 1, 1).uniform_(0.88, 1.12)
    brightness = torch.empty(size, 1, 1, 1).uniform_(-0.08, 0.08)
    noise = torch.randn_like(pixels) * torch.rand(size, 1, 1, 1) * 0.06
    return (pixels * contrast + brightness + noise).clamp(-1, 1)


def evaluator_phase(work: Path, steps: int, seed: int = 0) -> Phase:
    """24 subjects in two scenes each, eight of one class: look-alikes are the contrast."""
    images = np.load(work / "pictures.npy", mmap_mode="r")
    reconstructions = np.load(work / "reconstructions.npy", mmap_mode="r")
    pretrain_seed = int((work / "seed").read_text())
    truth = torch.tensor(
        [attribute_labels(*describe_image(pretrain_seed, k)) for k in range(len(images))]
    )
    of_class = truth[::SCENES_EACH, 0].numpy()
    members = [np.flatnonzero(of_class == c) for c in range(len(CLASSES))]
    num_reconstructed = len(reconstructions) // SCENES_EACH
    reconstructed_members = [m[m < num_reconstructed] for m in members]
    torch.manual_seed(seed)

    def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([seed, 12, step, rank])
        pool = reconstructed_members if rng.uniform() < 0.6 else members
        subjects = np.concatenate(
            [
                rng.choice(pool[c], SUBJECTS_A_CLASS, replace=False)
                for c in rng.choice(len(CLASSES), CLASSES_A_BATCH, replace=False)
            ]
        )
        scenes = np.stack([rng.permutation(SCENES_EACH)[:2] for _ in subjects])
        index = np.concatenate(
            [subjects * SCENES_EACH + scenes[:, 0], subjects * SCENES_EACH + scenes[:, 1]]
        )
        use_reconstruction = (rng.uniform(size=len(index)) < 0.6) & (index < len(reconstructions))
        batch_pixels = np.stack(
            [
                reconstructions[k] if r else images[k]
                for k, r in zip(index, use_reconstruction, strict=True)
            ]
        )
        return augment_images(to_tensor(batch_pixels)), truth[index]

    return Phase("evaluator", EvaluatorLoss(), batch, steps, lr=2e-3)
