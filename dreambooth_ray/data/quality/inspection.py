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
from dreambooth_ray.data.quality.measured_photo import MeasuredPhoto, ProposeMask, measure_photo
from dreambooth_ray.data.quality.photo_checks import check_photo
from dreambooth_ray.data.quality.photo_copies import compare_two_photographs
from dreambooth_ray.data.quality.quality_issue import QualityIssue, Severity

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
    photos: list[MeasuredPhoto]
    issues: list[QualityIssue]
    skipped: list[str]

    @property
    def worst_severity(self) -> Severity | Literal["ok"]:
        """The highest severity among the issues; "ok" without any."""
        severity_order: tuple[Severity, ...] = ("fault", "warning", "note")
        found_severities = {f.severity for f in self.issues}
        return next((severity for severity in severity_order if severity in found_severities), "ok")

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
    photo_paths = find_photographs(folder)
    masks = masks or {}
    photos = [measure_photo(path, masks.get(path.name), propose_mask) for path in photo_paths]
    quality_issues = [f for photo in photos for f in check_photo(photo, side_px)]
    quality_issues += check_count(photos) + check_duplicates(photos) + check_backgrounds(photos)
    skipped_checks = []
    photo_images = [photo.image for photo in photos]
    if embed is None:
        skipped_checks.append("other subjects and poses: give --encoder to compare them")
    elif len(photos) > 1:
        quality_issues += check_subject_consistency(photos, embed(photo_images))
    if noun_share is None or not class_noun:
        skipped_checks.append("class noun: give --class-noun and an --encoder that reads sentences")
    else:
        quality_issues += check_class_noun(photos, class_noun, noun_share(photo_images))
    quality_issues += check_captions(photo_paths, identifier, class_noun) + check_unread_files(
        folder
    )
    return InspectionReport(str(folder), photos, quality_issues, skipped_checks)


def check_unread_files(folder: Path) -> list[QualityIssue]:
    """Files that look like photographs and are not read."""
    unread_files_text = describe_unread(folder)
    if not unread_files_text:
        return []
    issue_sentence = (
        f"{unread_files_text[0].upper()}{unread_files_text[1:]}; "
        "save them as JPEG or PNG, or move them away."
    )
    return [QualityIssue("unread", "warning", (), 1, 0, issue_sentence)]


def check_count(photos: Sequence[MeasuredPhoto]) -> list[QualityIssue]:
    """Too few photographs, or very many."""
    num_photos, photo_names = len(photos), tuple(p.name for p in photos)
    if num_photos < MIN_PHOTOS:
        issue_text = (
            f"There are {num_photos}; with fewer than {MIN_PHOTOS} the model learns the image, "
            "not the subject. Add some."
        )
        return [QualityIssue("number", "warning", photo_names, num_photos, MIN_PHOTOS, issue_text)]
    if num_photos > MAX_PHOTOS:
        issue_text = (
            f"There are {num_photos}; beyond {MAX_PHOTOS} a subject gains little "
            "and needs more steps."
        )
        return [QualityIssue("number", "note", photo_names, num_photos, MAX_PHOTOS, issue_text)]
    return []


def check_duplicates(photos: Sequence[MeasuredPhoto]) -> list[QualityIssue]:
    """Pairs that are one photograph, cut, scaled, mirrored or saved differently."""
    quality_issues = []
    for first_photo, second_photo in itertools.combinations(photos, 2):
        likeness = compare_two_photographs(first_photo.signature, second_photo.signature)
        if likeness is None or likeness.share < MIN_DUPLICATE_SHARE:
            continue
        photo_names = (first_photo.name, second_photo.name)
        mirrored_text = ", mirrored" if likeness.is_mirrored else ""
        issue_text = (
            f"{photo_names[0]} and {photo_names[1]} are the same photograph or nearly "
            f"so{mirrored_text}; it would count twice, and the model would learn its surroundings. "
            "Remove one."
        )
        quality_issues.append(
            QualityIssue(
                "duplicate", "warning", photo_names, round(likeness.share, 3),
                MIN_DUPLICATE_SHARE, issue_text, "share that agrees",
                "where one lies on the other, the subject included",
            )
        )  # fmt: skip
    return quality_issues


def check_backgrounds(photos: Sequence[MeasuredPhoto]) -> list[QualityIssue]:
    """All photographs before the same background."""
    if len(photos) < 2:
        return []
    photo_rim_colours = [measurements.measure_rim_colours(p.image) for p in photos]
    background_spread = float(
        np.mean(
            [
                np.linalg.norm(a - b, axis=-1).mean()
                for a, b in itertools.combinations(photo_rim_colours, 2)
            ]
        )
    )
    if background_spread >= MIN_BACKGROUND_SPREAD:
        return []
    issue_text = (
        "All photographs have much the same background; the model would take it for a part of the "
        "subject. Add some from other places."
    )
    photo_names = tuple(p.name for p in photos)
    return [
        QualityIssue(
            "backgrounds",
            "warning",
            photo_names,
            round(background_spread, 1),
            MIN_BACKGROUND_SPREAD,
            issue_text,
        )
    ]


def check_subject_consistency(
    photos: Sequence[MeasuredPhoto], vectors: "Tensor"
) -> list[QualityIssue]:
    """Photographs unlike the others, and sets that are all alike. vectors: (B, D) unit."""
    photo_cosines = (vectors @ vectors.T).double().numpy()
    num_photos = len(photos)
    mean_cosine = (photo_cosines.sum() - np.trace(photo_cosines)) / (num_photos * (num_photos - 1))
    quality_issues = []
    if 1 - mean_cosine < MIN_POSE_SPREAD:
        issue_text = (
            "All photographs show much the same view; add other sides, distances and poses."
        )
        photo_names = tuple(p.name for p in photos)
        quality_issues.append(
            QualityIssue(
                "poses", "note", photo_names, round(1 - mean_cosine, 3), MIN_POSE_SPREAD, issue_text
            )
        )
    for k, photo in enumerate(photos if num_photos > 2 else ()):
        other_photo_indices = [i for i in range(num_photos) if i != k]
        cosines_among_others = photo_cosines[np.ix_(other_photo_indices, other_photo_indices)]
        mean_cosine_of_others = (cosines_among_others.sum() - np.trace(cosines_among_others)) / (
            len(other_photo_indices) * (len(other_photo_indices) - 1)
        )
        similarity_ratio = float(
            photo_cosines[k, other_photo_indices].mean() / max(mean_cosine_of_others, 1e-6)
        )
        if similarity_ratio < MIN_BELONGING:
            issue_text = (
                f"{photo.name} is unlike the others: it may show something else. "
                "Take it out if it does."
            )
            quality_issues.append(
                QualityIssue(
                    "subject",
                    "warning",
                    (photo.name,),
                    round(similarity_ratio, 3),
                    MIN_BELONGING,
                    issue_text,
                )
            )
    return quality_issues


def check_class_noun(
    photos: Sequence[MeasuredPhoto], class_noun: str, shares: list[tuple[float, str]]
) -> list[QualityIssue]:
    """Photographs that look like something other than the class noun."""
    quality_issues = []
    for photo, (noun_probability, likeliest_noun) in zip(photos, shares, strict=True):
        if noun_probability >= MIN_NOUN_SHARE or likeliest_noun == class_noun:
            continue
        issue_text = (
            f"{photo.name} looks more like a {likeliest_noun} than a {class_noun}; take it out, or "
            "choose the class noun that the model would use for it."
        )
        quality_issues.append(
            QualityIssue(
                "class noun",
                "warning",
                (photo.name,),
                round(noun_probability, 3),
                MIN_NOUN_SHARE,
                issue_text,
            )
        )
    return quality_issues
