"""What is wrong with a folder of photographs, before training learns it.

Each finding has a number, its bound, the photographs, and a sentence for people. The bounds
were set on the DreamBench photographs, whole and with planted faults.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from dreambooth_ray.data.captions import caption_findings
from dreambooth_ray.data.photographs import find_photographs
from dreambooth_ray.data.quality import measurements
from dreambooth_ray.data.quality.issue import QualityIssue, Severity
from dreambooth_ray.data.quality.photo_checks import Photo, measure, photo_findings

if TYPE_CHECKING:
    from torch import Tensor

Embed = Callable[[list[Image.Image]], "Tensor"]
NounShare = Callable[[list[Image.Image]], list[tuple[float, str]]]

DUPLICATE_BITS = 12
MIN_BACKGROUND_SPREAD = 8.0
MIN_POSE_SPREAD = 0.1
MIN_BELONGING = 0.72
MIN_NOUN_SHARE = 0.2
FEW, MANY = 3, 30


@dataclass(frozen=True)
class Examination:
    """All photographs of a folder and all that was found."""

    folder: str
    photos: list[Photo]
    findings: list[QualityIssue]
    skipped: list[str]

    @property
    def verdict(self) -> Severity | Literal["ok"]:
        """The gravest severity among the findings."""
        order: tuple[Severity, ...] = ("fault", "warning", "note")
        found = {f.severity for f in self.findings}
        return next((severity for severity in order if severity in found), "ok")

    def as_json(self) -> dict[str, object]:
        """Everything but the images."""
        photos = []
        for photo in self.photos:
            row = {k: v for k, v in vars(photo).items() if k != "picture"}
            photos.append(row | {"hash": f"{photo.hash:016x}"})
        return {
            "folder": self.folder,
            "verdict": self.verdict,
            "photographs": photos,
            "findings": [asdict(f) for f in self.findings],
            "skipped": self.skipped,
        }


def examine(
    folder: Path,
    side_px: int,
    identifier: str = "",
    class_noun: str = "",
    embed: Embed | None = None,
    noun_share: NounShare | None = None,
) -> Examination:
    """Look at every photograph of a folder, and at all of them together.

    side_px: resolution of the training to come
    embed: unit vectors of images; without it, subject and variety are not compared
    noun_share: for each image the probability of the class noun among others, and the most
        probable noun; without it, the noun is not checked
    raises: DataError if the folder or a file of it can't be read at all
    """
    paths = find_photographs(folder)
    photos = [measure(path) for path in paths]
    findings = [f for photo in photos for f in photo_findings(photo, side_px)]
    findings += number_findings(photos) + duplicate_findings(photos) + backdrop_findings(photos)
    skipped = []
    images = [photo.image for photo in photos]
    if embed is None:
        skipped.append("other subjects and poses: give --encoder to compare them")
    elif len(photos) > 1:
        findings += belonging_findings(photos, embed(images))
    if noun_share is None or not class_noun:
        skipped.append("class noun: give --class-noun and an --encoder that reads sentences")
    else:
        findings += noun_findings(photos, class_noun, noun_share(images))
    findings += caption_findings(paths, identifier, class_noun)
    return Examination(str(folder), photos, findings, skipped)


def number_findings(photos: Sequence[Photo]) -> list[QualityIssue]:
    """Too few or a great many."""
    count, names = len(photos), tuple(p.name for p in photos)
    if count < FEW:
        text = (
            f"There are {count}; with fewer than {FEW} the model learns the image, not the "
            "subject. Add some."
        )
        return [QualityIssue("number", "warning", names, count, FEW, text)]
    if count > MANY:
        text = f"There are {count}; beyond {MANY} a subject gains little and needs more steps."
        return [QualityIssue("number", "note", names, count, MANY, text)]
    return []


def duplicate_findings(photos: Sequence[Photo]) -> list[QualityIssue]:
    """Pairs that are one photograph, cut, scaled or saved differently."""
    found = []
    for one, other in itertools.combinations(photos, 2):
        bits = measurements.hash_distance(one.hash, other.hash)
        if bits <= DUPLICATE_BITS:
            text = (
                f"{one.name} and {other.name} are the same photograph or nearly so; it would "
                "count twice, and the model would learn its surroundings. Remove one."
            )
            found.append(
                QualityIssue(
                    "duplicate", "warning", (one.name, other.name), bits, DUPLICATE_BITS, text
                )
            )
    return found


def backdrop_findings(photos: Sequence[Photo]) -> list[QualityIssue]:
    """All before the same background."""
    if len(photos) < 2:
        return []
    rims = [measurements.rim_colour(p.image) for p in photos]
    spread = float(
        np.mean([np.linalg.norm(a - b, axis=-1).mean() for a, b in itertools.combinations(rims, 2)])
    )
    if spread >= MIN_BACKGROUND_SPREAD:
        return []
    text = (
        "All photographs have much the same background; the model would take it for a part of the "
        "subject. Add some from other places."
    )
    names = tuple(p.name for p in photos)
    return [
        QualityIssue("backgrounds", "warning", names, round(spread, 1), MIN_BACKGROUND_SPREAD, text)
    ]


def belonging_findings(photos: Sequence[Photo], vectors: "Tensor") -> list[QualityIssue]:
    """Photographs unlike the others, and sets that are all alike. vectors: (B, D) unit."""
    cosines = (vectors @ vectors.T).double().numpy()
    count = len(photos)
    mutual = (cosines.sum() - np.trace(cosines)) / (count * (count - 1))
    found = []
    if 1 - mutual < MIN_POSE_SPREAD:
        text = "All photographs show much the same view; add other sides, distances and poses."
        names = tuple(p.name for p in photos)
        found.append(
            QualityIssue("poses", "note", names, round(1 - mutual, 3), MIN_POSE_SPREAD, text)
        )
    for k, photo in enumerate(photos if count > 2 else ()):
        rest = [i for i in range(count) if i != k]
        among = cosines[np.ix_(rest, rest)]
        others = (among.sum() - np.trace(among)) / (len(rest) * (len(rest) - 1))
        belonging = float(cosines[k, rest].mean() / max(others, 1e-6))
        if belonging < MIN_BELONGING:
            text = (
                f"{photo.name} is unlike the others: it may show something else. "
                "Take it out if it does."
            )
            found.append(
                QualityIssue(
                    "subject", "warning", (photo.name,), round(belonging, 3), MIN_BELONGING, text
                )
            )
    return found


def noun_findings(
    photos: Sequence[Photo], class_noun: str, shares: list[tuple[float, str]]
) -> list[QualityIssue]:
    """Photographs that look like something other than the class noun."""
    found = []
    for photo, (share, likeliest) in zip(photos, shares, strict=True):
        if share >= MIN_NOUN_SHARE or likeliest == class_noun:
            continue
        text = (
            f"{photo.name} looks more like a {likeliest} than a {class_noun}; take it out, or "
            "choose the class noun that the model would use for it."
        )
        found.append(
            QualityIssue(
                "class noun", "warning", (photo.name,), round(share, 3), MIN_NOUN_SHARE, text
            )
        )
    return found
