"""A preflight of the subjects: their photographs, captions and identifiers."""

import re
from collections.abc import Iterator
from pathlib import Path

from cluster.preflight_finding import PreflightFinding
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.caption_files import find_captions
from dreambooth_ray.data.class_shapes import list_class_shapes
from dreambooth_ray.data.photographs import find_photographs, read_photograph
from dreambooth_ray.data.quality.inspection import inspect_photographs
from dreambooth_ray.data.remote_images import fetch_photographs_folder
from dreambooth_ray.data.subject import Photograph, describe_enlarged_photographs, split_photographs
from dreambooth_ray.data.subject_doubts import read_checked_photographs
from dreambooth_ray.errors import DreamBoothError


def check_subjects(config: Config) -> Iterator[PreflightFinding]:
    """What training could not read, and what is doubtful, of all subjects."""
    findings = list(_check_photographs(config))
    yield from findings
    if not any(finding.fatal for finding in findings):
        yield from _check_photographs_for_training(config)


def _check_photographs(config: Config) -> Iterator[PreflightFinding]:
    for subject in config.all_subjects:
        try:
            photo_folder = fetch_photographs_folder(subject.photos)
            photo_paths = find_photographs(photo_folder)
        except DreamBoothError as error:
            yield PreflightFinding("subject.photos", str(error))
            continue
        unreadable_findings = list(_find_unreadable(photo_paths))
        yield from unreadable_findings
        if not unreadable_findings:
            side_px, identifier_word = config.train.side_px, config.word(subject)
            for photo_finding in inspect_photographs(
                photo_folder, side_px, identifier_word, subject.class_noun
            ).issues:
                if photo_finding.severity != "note":
                    yield PreflightFinding("subject.photos", photo_finding.sentence, fatal=False)


def _check_photographs_for_training(config: Config) -> Iterator[PreflightFinding]:
    """What training would refuse of subjects whose files can be read, and what is doubtful."""
    trained_photographs = list[Photograph]()
    try:
        for subject in config.all_subjects:
            photographs, doubts = read_checked_photographs(config, subject)
            for key, text in doubts:
                yield PreflightFinding(key, text, fatal=False)
            trained_photographs += split_photographs(config, photographs)[0]
        list_class_shapes(config, trained_photographs)
    except DreamBoothError as error:
        key_match = re.match(r"(?:train|prior|validation|identifier)\.\w+", str(error))
        yield PreflightFinding(key_match[0] if key_match else "subject.photos", str(error))
        return
    if not config.train.has_one_shape:
        for text in describe_enlarged_photographs(trained_photographs):
            yield PreflightFinding("subject.photos", text, fatal=False)


def _find_unreadable(photo_paths: list[Path]) -> Iterator[PreflightFinding]:
    """Photographs and captions of a folder that training could not read."""
    for photo_path in photo_paths:
        try:
            read_photograph(photo_path)
        except DreamBoothError as error:
            yield PreflightFinding("subject.photos", str(error))
    try:
        find_captions(photo_paths)
    except DreamBoothError as error:
        yield PreflightFinding("subject.photos", str(error))
