"""What is wrong with a folder of photographs, before training learns it.

Each issue has a value, its bound, the photographs, and a sentence for people. The bounds
were set on DreamBench photographs, whole and with planted faults (`benchmarks/doctor_accuracy.py`).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from dreambooth_ray.data.photographs import describe_unread, find_photographs
from dreambooth_ray.data.quality import measurements
from dreambooth_ray.data.quality.caption_checks import check_captions
from dreambooth_ray.data.quality.issue import QualityIssue, Severity
from dreambooth_ray.data.quality.photo import Photo, ProposeMask, measure_photo
from dreambooth_ray.data.quality.photo_checks import check_photo
from dreambooth_ray.data.quality.photo_copies import compare_photographs

if TYPE_CHECKING:
    from torch import Tensor

Embed = Callable[[list[Image.Image]], "Tensor"]
NounShare = Callable[[list[Image.Image]], list[tuple[float, str]]]

MIN_DUPLICATE_SHARE = 0.75
MIN_BACKGROUND_SPREAD = 8.0
MIN_POSE_SPREAD = 0.1
MIN_BELONGING = 0.72
MIN_NOUN_SHARE = 0.2
MIN_PHOTOS, MAX_PHOTOS = 3, 30


@dataclass(frozen=True)
class InspectionReport:
    """The photographs of a folder and their issues.

    skipped: checks that were not run, and what they need
    """

    folder: str
    photos: list[Photo]
    issues: list[QualityIssue]
    skipped: list[str]

    @property
    def worst_severity(self) -> Severity | Literal["ok"]:
        """The highest severity among the issues; "ok" without any."""
        severity_order: tuple[Severity, ...] = ("fault", "warning", "note")
        severities = {f.severity for f in self.issues}
        return next((severity for severity in severity_order if severity in severities), "ok")

    def as_json(self) -> dict[str, object]:
        """All but the images, for a file."""
        return {
            "folder": self.folder,
            "verdict": self.worst_severity,
            "photographs": [photo.as_json() for photo in self.photos],
            "findings": [asdict(f) for f in self.issues],
            "skipped": self.skipped,
        }


def inspect_photographs(
    folder: Path,
    side_px: int,
    identifier: str = "",
    class_noun: str = "",
    embed: Embed | None = None,
    noun_share: NounShare | None = None,
    masks: Mapping[str, Image.Image] | None = None,
    propose_mask: ProposeMask | None = None,
) -> InspectionReport:
    """Check every photograph of a folder by itself, and all of them together.

    side_px: resolution of the training to come
    embed: unit vectors of images; without it, subject and variety are not compared
    noun_share: for each image the probability of the class noun among others, and the most
        probable noun; without it, the noun is not checked
    masks: by a photograph's name, white where its subject is; without one, that beside it or
        its transparency is taken, and without that what stands out
    propose_mask: asked for each photograph without one
    raises: DataError if the folder or a file of it can't be read at all
    """
    paths = find_photographs(folder)
    masks = masks or {}
    photos = [measure_photo(path, masks.get(path.name), propose_mask) for path in paths]
    issues = [f for photo in photos for f in check_photo(photo, side_px)]
    issues += check_count(photos) + check_duplicates(photos) + check_backgrounds(photos)
    skipped_checks = []
    images = [photo.image for photo in photos]
    if embed is None:
        skipped_checks.append("other subjects and poses: give --encoder to compare them")
    elif len(photos) > 1:
        issues += check_subject(photos, embed(images))
    if noun_share is None or not class_noun:
        skipped_checks.append("class noun: give --class-noun and an --encoder that reads sentences")
    else:
        issues += check_class_noun(photos, class_noun, noun_share(images))
    issues += check_captions(paths, identifier, class_noun) + check_unread(folder)
    return InspectionReport(str(folder), photos, issues, skipped_checks)


def check_unread(folder: Path) -> list[QualityIssue]:
    """Files that look like photographs and are not read."""
    unread_text = describe_unread(folder)
    if not unread_text:
        return []
    sentence = (
        f"{unread_text[0].upper()}{unread_text[1:]}; save them as JPEG or PNG, or move them away."
    )
    return [QualityIssue("unread", "warning", (), 1, 0, sentence)]


def check_count(photos: Sequence[Photo]) -> list[QualityIssue]:
    """Too few photographs, or very many."""
    count, names = len(photos), tuple(p.name for p in photos)
    if count < MIN_PHOTOS:
        text = (
            f"There are {count}; with fewer than {MIN_PHOTOS} the model learns the image, not the "
            "subject. Add some."
        )
        return [QualityIssue("number", "warning", names, count, MIN_PHOTOS, text)]
    if count > MAX_PHOTOS:
        text = (
            f"There are {count}; beyond {MAX_PHOTOS} a subject gains little and needs more steps."
        )
        return [QualityIssue("number", "note", names, count, MAX_PHOTOS, text)]
    return []


def check_duplicates(photos: Sequence[Photo]) -> list[QualityIssue]:
    """Pairs that are one photograph, cut, scaled, mirrored or saved differently."""
    issues = []
    for first_photo, second_photo in itertools.combinations(photos, 2):
        likeness = compare_photographs(first_photo.signature, second_photo.signature)
        if likeness is None or likeness.share < MIN_DUPLICATE_SHARE:
            continue
        names = (first_photo.name, second_photo.name)
        mirrored_text = ", mirrored" if likeness.is_mirrored else ""
        text = (
            f"{names[0]} and {names[1]} are the same photograph or nearly so{mirrored_text}; it "
            "would count twice, and the model would learn its surroundings. Remove one."
        )
        issues.append(
            QualityIssue(
                "duplicate", "warning", names, round(likeness.share, 3),
                MIN_DUPLICATE_SHARE, text, "share that agrees",
                "where one lies on the other, the subject included",
            )
        )  # fmt: skip
    return issues


def check_backgrounds(photos: Sequence[Photo]) -> list[QualityIssue]:
    """All photographs before the same background."""
    if len(photos) < 2:
        return []
    rim_colours = [measurements.rim_colour(p.image) for p in photos]
    background_spread = float(
        np.mean(
            [
                np.linalg.norm(a - b, axis=-1).mean()
                for a, b in itertools.combinations(rim_colours, 2)
            ]
        )
    )
    if background_spread >= MIN_BACKGROUND_SPREAD:
        return []
    text = (
        "All photographs have much the same background; the model would take it for a part of the "
        "subject. Add some from other places."
    )
    names = tuple(p.name for p in photos)
    return [
        QualityIssue(
            "backgrounds",
            "warning",
            names,
            round(background_spread, 1),
            MIN_BACKGROUND_SPREAD,
            text,
        )
    ]


def check_subject(photos: Sequence[Photo], vectors: "Tensor") -> list[QualityIssue]:
    """Photographs unlike the others, and sets that are all alike. vectors: (B, D) unit."""
    cosines = (vectors @ vectors.T).double().numpy()
    count = len(photos)
    mean_cosine = (cosines.sum() - np.trace(cosines)) / (count * (count - 1))
    issues = []
    if 1 - mean_cosine < MIN_POSE_SPREAD:
        text = "All photographs show much the same view; add other sides, distances and poses."
        names = tuple(p.name for p in photos)
        issues.append(
            QualityIssue("poses", "note", names, round(1 - mean_cosine, 3), MIN_POSE_SPREAD, text)
        )
    for k, photo in enumerate(photos if count > 2 else ()):
        other_indices = [i for i in range(count) if i != k]
        other_cosines = cosines[np.ix_(other_indices, other_indices)]
        mean_of_others = (other_cosines.sum() - np.trace(other_cosines)) / (
            len(other_indices) * (len(other_indices) - 1)
        )
        similarity_ratio = float(cosines[k, other_indices].mean() / max(mean_of_others, 1e-6))
        if similarity_ratio < MIN_BELONGING:
            text = (
                f"{photo.name} is unlike the others: it may show something else. "
                "Take it out if it does."
            )
            issues.append(
                QualityIssue(
                    "subject",
                    "warning",
                    (photo.name,),
                    round(similarity_ratio, 3),
                    MIN_BELONGING,
                    text,
                )
            )
    return issues


def check_class_noun(
    photos: Sequence[Photo], class_noun: str, shares: list[tuple[float, str]]
) -> list[QualityIssue]:
    """Photographs that look like something other than the class noun."""
    issues = []
    for photo, (noun_probability, likeliest_noun) in zip(photos, shares, strict=True):
        if noun_probability >= MIN_NOUN_SHARE or likeliest_noun == class_noun:
            continue
        text = (
            f"{photo.name} looks more like a {likeliest_noun} than a {class_noun}; take it out, or "
            "choose the class noun that the model would use for it."
        )
        issues.append(
            QualityIssue(
                "class noun",
                "warning",
                (photo.name,),
                round(noun_probability, 3),
                MIN_NOUN_SHARE,
                text,
            )
        )
    return issues
