"""Two subjects in one image: is each itself, or has one bled into the other? Pure.

After Detect-and-Compare (Jang et al. 2024, arXiv 2404.04243), which compares every subject that is
detected in an image with the photographs of all. Here an image is cut in two where that tells its
subjects apart best, so that no detector is needed: both have to stand beside or above each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

# Where an image may be cut, as a fraction of its width or height.
CUTS = (0.35, 0.5, 0.65)
_Box = tuple[int, int, int, int]


def list_image_cuts(width_px: int, height_px: int) -> list[tuple[_Box, _Box]]:
    """The two parts of every cut, as boxes in pixels: upright cuts first."""
    vertical_cuts = [round(width_px * cut) for cut in CUTS]
    horizontal_cuts = [round(height_px * cut) for cut in CUTS]
    return [
        *(((0, 0, x, height_px), (x, 0, width_px, height_px)) for x in vertical_cuts),
        *(((0, 0, width_px, y), (0, y, width_px, height_px)) for y in horizontal_cuts),
    ]


def crop_image_parts(image: Image.Image) -> list[Image.Image]:
    """Both parts of every cut, one after the other."""
    return [image.crop(box) for pair in list_image_cuts(*image.size) for box in pair]


@dataclass(frozen=True)
class SubjectPairScores:
    """Of two subjects, in this order; cosines of the encoder, -1 to 1.

    likeness: of each one's part of the image to its photographs; higher is better
    bleed: likeness of each one's part to the other's photographs, less that of the photographs to
        each other; lower is better, and about 0 where nothing of the other is in it
    alone_likeness, alone_bleed: the same of whole images that ask for one of them alone
    both: share of the images, 0 to 1, whose less likely subject is there more clearly than in any
        image that asks for one alone, cut in the same way
    """

    likeness: tuple[float, float]
    bleed: tuple[float, float]
    alone_likeness: tuple[float, float]
    alone_bleed: tuple[float, float]
    both: float


def score_pair_likeness_and_bleed(
    photographs: tuple[Tensor, Tensor],
    alone: tuple[Tensor, Tensor],
    parts: Sequence[Tensor],
    alone_parts: Sequence[Tensor],
) -> SubjectPairScores:
    """Scores of two subjects, by unit vectors.

    photographs: (N, D) of each; alone: (M, D) of images of each alone; parts, alone_parts: for each
    image of both, and of one alone, (P, D) of `crop_image_parts`
    """
    between_subject_cosine = float((photographs[0] @ photographs[1].T).mean())
    part_cosines = torch.stack([_choose_part_cosines(vectors, photographs) for vectors in parts])
    alone_part_cosines = torch.stack(
        [_choose_part_cosines(vectors, photographs) for vectors in alone_parts]
    )
    own_cosines = part_cosines.diagonal(dim1=1, dim2=2)
    other_cosines = part_cosines.flip(2).diagonal(dim1=1, dim2=2)
    alone_own_cosines = [
        _mean_cosine(images, own_photographs)
        for images, own_photographs in zip(alone, photographs, strict=True)
    ]
    alone_other_cosines = [
        _mean_cosine(images, other_photographs)
        for images, other_photographs in zip(alone, photographs[::-1], strict=True)
    ]
    return SubjectPairScores(
        likeness=_round_two_values(own_cosines.mean(dim=0)),
        bleed=_round_two_values(other_cosines.mean(dim=0) - between_subject_cosine),
        alone_likeness=_round_two_values(torch.stack(alone_own_cosines)),
        alone_bleed=_round_two_values(torch.stack(alone_other_cosines) - between_subject_cosine),
        both=float(
            (_weaker_likeness(part_cosines) > _weaker_likeness(alone_part_cosines).max())
            .float()
            .mean()
        ),
    )


def _weaker_likeness(part_cosines: Tensor) -> Tensor:
    """(N,) cosine of the subject that is less there, of (N, 2, 2) of `_choose_part_cosines`."""
    return part_cosines.diagonal(dim1=1, dim2=2).amin(dim=1)


def _mean_cosine(images: Tensor, photographs: Tensor) -> Tensor:
    """() mean cosine over all pairs."""
    return (images @ photographs.T).mean()


def _choose_part_cosines(vectors: Tensor, photographs: tuple[Tensor, Tensor]) -> Tensor:
    """(2, 2) cosines of the part of each subject with the photographs of each, by the cut, and the
    order of its parts, in which both are most like themselves.

    vectors: (P, D) of one image's parts
    """
    cosines = torch.stack([(vectors @ p.T).mean(dim=1) for p in photographs], dim=1)
    cut_cosines = cosines.reshape(-1, 2, 2)
    assignment_cosines = torch.cat([cut_cosines, cut_cosines.flip(1)])
    return assignment_cosines[assignment_cosines.diagonal(dim1=1, dim2=2).sum(dim=1).argmax()]


def _round_two_values(values: Tensor) -> tuple[float, float]:
    first_value, second_value = (round(float(value), 4) for value in values)
    return first_value, second_value
