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
    subject_and_scene,
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
        loss = sum(
            F.cross_entropy(head_logits, truth[:, i]) for i, head_logits in enumerate(logits)
        )
        first_identities, second_identities = identity.chunk(2)
        similarity_logits = first_identities @ second_identities.T / TEMPERATURE
        positives = torch.arange(len(first_identities))
        return loss + 0.5 * (
            F.cross_entropy(similarity_logits, positives)
            + F.cross_entropy(similarity_logits.T, positives)
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
        noise_std = latents.std() * 0.3 * torch.rand(len(latents), 1, 1, 1, generator=generator)
        disturbed_latents = latents + noise_std * torch.randn(latents.shape, generator=generator)
        reconstructed = vae.decode(disturbed_latents).sample.clamp(-1, 1)
        pixel_blocks.append(
            ((reconstructed + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        )
    partial_path = path.with_suffix(".partial.npy")
    np.save(partial_path, np.concatenate(pixel_blocks))
    partial_path.rename(path)


def augment_images(pixels: Tensor) -> Tensor:
    """Random blur, brightness, contrast and noise; (B, 3, H, W) in and out."""
    batch_size = len(pixels)
    is_image_blurred = torch.rand(batch_size) < 0.35
    if is_image_blurred.any():
        blur_sigma = float(torch.empty(1).uniform_(0.3, 1.3))
        x = torch.arange(-3, 4).float()
        blur_kernel = torch.exp(-0.5 * (x / blur_sigma) ** 2)
        blur_kernel = (blur_kernel / blur_kernel.sum()).repeat(3, 1)
        row_blurred_pixels = F.conv2d(
            F.pad(pixels[is_image_blurred], (3, 3, 3, 3), "replicate"),
            blur_kernel[:, None, None],
            groups=3,
        )
        pixels[is_image_blurred] = F.conv2d(
            row_blurred_pixels, blur_kernel[:, None, :, None], groups=3
        )
    contrast = torch.empty(batch_size, 1, 1, 1).uniform_(0.88, 1.12)
    brightness = torch.empty(batch_size, 1, 1, 1).uniform_(-0.08, 0.08)
    noise = torch.randn_like(pixels) * torch.rand(batch_size, 1, 1, 1) * 0.06
    return (pixels * contrast + brightness + noise).clamp(-1, 1)


def evaluator_phase(work: Path, steps: int, seed: int = 0) -> Phase:
    """24 subjects in two scenes each, eight of one class: look-alikes are the contrast."""
    images = np.load(work / "pictures.npy", mmap_mode="r")
    reconstructions = np.load(work / "reconstructions.npy", mmap_mode="r")
    pretrain_seed = int((work / "seed").read_text())
    true_labels = torch.tensor(
        [attribute_labels(*subject_and_scene(pretrain_seed, k)) for k in range(len(images))]
    )
    subject_classes = true_labels[::SCENES_EACH, 0].numpy()
    subjects_by_class = [np.flatnonzero(subject_classes == c) for c in range(len(CLASSES))]
    num_reconstructed_subjects = len(reconstructions) // SCENES_EACH
    reconstructed_subjects_by_class = [m[m < num_reconstructed_subjects] for m in subjects_by_class]
    torch.manual_seed(seed)

    def make_batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([seed, 12, step, rank])
        subject_indices_by_class = (
            reconstructed_subjects_by_class if rng.uniform() < 0.6 else subjects_by_class
        )
        subject_indices = np.concatenate(
            [
                rng.choice(subject_indices_by_class[c], SUBJECTS_A_CLASS, replace=False)
                for c in rng.choice(len(CLASSES), CLASSES_A_BATCH, replace=False)
            ]
        )
        scene_pairs = np.stack([rng.permutation(SCENES_EACH)[:2] for _ in subject_indices])
        image_indices = np.concatenate(
            [
                subject_indices * SCENES_EACH + scene_pairs[:, 0],
                subject_indices * SCENES_EACH + scene_pairs[:, 1],
            ]
        )
        use_reconstruction = (rng.uniform(size=len(image_indices)) < 0.6) & (
            image_indices < len(reconstructions)
        )
        batch_pixels = np.stack(
            [
                reconstructions[k] if r else images[k]
                for k, r in zip(image_indices, use_reconstruction, strict=True)
            ]
        )
        return augment_images(to_tensor(batch_pixels)), true_labels[image_indices]

    return Phase("evaluator", EvaluatorLoss(), make_batch, steps, lr=2e-3)
