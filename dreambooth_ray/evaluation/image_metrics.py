"""The paper's measures, on unit vectors of any encoder. Higher is not always better: see each.

Sources: Ruiz et al. 2023, arXiv 2208.12242, sections 4.2 and 4.3. Which network made the
vectors is the caller's to say: only those of ViT-S/16 DINO may be called DINO.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreambooth_ray.errors import DataError

COPY_BOUND = 0.9


def _check_unit(vectors: Tensor, name: str) -> Tensor:
    if vectors.ndim != 2 or not len(vectors):
        raise DataError(f"{name} must be (B, D) with B > 0, not {tuple(vectors.shape)}")
    vector_norms = vectors.norm(dim=1)
    if not torch.allclose(vector_norms, torch.ones_like(vector_norms), atol=1e-3):
        raise DataError(
            f"{name} holds a vector of length {float(vector_norms[0]):.4f}; each must be 1"
        )
    return vectors


def subject_fidelity(images: Tensor, photographs: Tensor) -> float:
    """Mean cosine over all pairs of a generated image and a photograph, -1 to 1; higher is better.

    The paper's DINO and CLIP-I, by the vectors' network.
    images: (A, D), photographs: (B, D), unit; raises DataError for others
    """
    return float(photograph_similarity(images, photographs).mean())


def photograph_similarity(images: Tensor, photographs: Tensor) -> Tensor:
    """(A,) mean cosine of each generated image to all photographs."""
    return (_check_unit(images, "images") @ _check_unit(photographs, "photographs").T).mean(dim=1)


def prompt_agreement(images: Tensor, prompts: Tensor) -> Tensor:
    """(B,) cosine of each image and its own prompt, -1 to 1; their mean is the paper's CLIP-T.

    images, prompts: (B, D), unit, row by row
    """
    if images.shape != prompts.shape:
        raise DataError(f"{tuple(images.shape)} images against {tuple(prompts.shape)} prompts")
    return (_check_unit(images, "images") * _check_unit(prompts, "prompts")).sum(dim=1)


def prior_preservation_score(class_images: Tensor, photographs: Tensor) -> float:
    """PRES: mean cosine of images of the bare class to the subject's photographs.

    Lower is better: a class that has become the subject reads high.
    class_images: (A, D), photographs: (B, D), unit
    """
    return subject_fidelity(class_images, photographs)


def diversity(groups: Sequence[Tensor]) -> float:
    """DIV: mean over prompts of 1 - the mean cosine between different images of one prompt.

    0 to 2; higher is better. The paper measures it with LPIPS; here with the same vectors
    as PRES, so its numbers are its own.
    groups: one (K, D) a prompt, unit, K > 1 in at least one; those of one are left out
    """
    group_diversities = [1 - _mean_mutual_cosine(g) for g in groups if len(g) > 1]
    if not group_diversities:
        raise DataError("diversity needs two images of one prompt at least")
    return sum(group_diversities) / len(group_diversities)


def _mean_mutual_cosine(vectors: Tensor) -> float:
    num_vectors = len(_check_unit(vectors, "group"))
    cosine_sum = float((vectors @ vectors.T).sum()) - float((vectors * vectors).sum())
    return cosine_sum / (num_vectors * (num_vectors - 1))


@dataclass(frozen=True)
class NearestPhotograph:
    """The photograph most like one generated image."""

    photograph: int
    cosine: float
    copied: bool


def nearest_photographs(
    images: Tensor, photographs: Tensor, bound: float = COPY_BOUND
) -> list[NearestPhotograph]:
    """For each generated image the nearest training photograph; copied above `bound`.

    A network of subjects would call every good likeness a copy: give vectors that see the
    whole image (`PixelEncoder`).
    images: (A, D), photographs: (B, D), unit
    """
    cosines = _check_unit(images, "images") @ _check_unit(photographs, "photographs").T
    nearest_cosines, nearest_indices = cosines.max(dim=1)
    return [
        NearestPhotograph(int(i), float(c), float(c) > bound)
        for i, c in zip(nearest_indices.tolist(), nearest_cosines.tolist(), strict=True)
    ]


def entropy(names: Sequence[str], choices: int) -> float:
    """Spread of names over `choices` values: 0 if all are one, 1 if all are equally frequent."""
    if not names or choices < 2:
        raise DataError("entropy needs names, of at least two choices")
    name_frequencies = [n / len(names) for n in Counter(names).values()]
    return sum(p * math.log(1 / p) for p in name_frequencies) / math.log(choices)
