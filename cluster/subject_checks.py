"""A preflight of the subjects: their photographs, captions and identifiers."""

from collections.abc import Iterator
from pathlib import Path

from cluster.preflight_finding import PreflightFinding
from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.training import SubjectConfig
from dreambooth_ray.data.caption_files import find_captions
from dreambooth_ray.data.class_shapes import list_class_shapes
from dreambooth_ray.data.photographs import find_photographs, read_photograph
from dreambooth_ray.data.preserved_captions import check_preserved_captions
from dreambooth_ray.data.quality.inspection import inspect_photographs
from dreambooth_ray.data.remote_images import photographs_folder
from dreambooth_ray.data.subject import (
    Photograph,
    check_identifier_use,
    check_masks,
    describe_enlarged,
    identifier_warning,
    read_configured_subject,
    split_photographs,
)
from dreambooth_ray.errors import DreamBoothError


def check_subjects(config: Config) -> Iterator[PreflightFinding]:
    """What training could not read, and what is doubtful, of all subjects."""
    findings = list(_check_photographs(config))
    yield from findings
    if not any(finding.fatal for finding in findings):
        yield from _check_images(config)
    yield from _check_identifiers(config)


def _check_photographs(config: Config) -> Iterator[PreflightFinding]:
    for subject in config.all_subjects:
        try:
            folder = photographs_folder(subject.photos)
            paths = find_photographs(folder)
        except DreamBoothError as error:
            yield PreflightFinding("subject.photos", str(error))
            continue
        unreadable = list(_find_unreadable(paths))
        yield from unreadable
        if not unreadable:
            yield from _check_captions(config, subject)
            side_px, word = config.train.side_px, config.word(subject)
            for photo_finding in inspect_photographs(
                folder, side_px, word, subject.class_noun
            ).issues:
                if photo_finding.severity != "note":
                    yield PreflightFinding("subject.photos", photo_finding.sentence, fatal=False)


def _check_images(config: Config) -> Iterator[PreflightFinding]:
    """Photographs that no bucket fits, bad masks, and too few class images for all shapes."""
    trained_photographs, doubts = list[Photograph](), list[str]()
    try:
        for subject in config.all_subjects:
            photographs = read_configured_subject(config, subject)
            doubts += check_identifier_use(config, subject, photographs)
            doubts += check_masks(config, photographs)
            trained_photographs += split_photographs(config, photographs)[0]
        list_class_shapes(config, trained_photographs)
    except DreamBoothError as error:
        key = str(error).partition("=")[0]
        is_key = key.startswith(("train.", "prior.", "validation.", "identifier."))
        yield PreflightFinding(key if is_key else "subject.photos", str(error))
        return
    if not config.train.has_one_shape:
        doubts += describe_enlarged(trained_photographs)
    for doubt in doubts:
        yield PreflightFinding("subject.photos", doubt, fatal=False)


def _find_unreadable(paths: list[Path]) -> Iterator[PreflightFinding]:
    """Photographs and captions of a folder that training could not read."""
    for path in paths:
        try:
            read_photograph(path)
        except DreamBoothError as error:
            yield PreflightFinding("subject.photos", str(error))
    try:
        find_captions(paths)
    except DreamBoothError as error:
        yield PreflightFinding("subject.photos", str(error))


def _check_captions(config: Config, subject: SubjectConfig) -> Iterator[PreflightFinding]:
    if not config.prior.keeps_output:
        return
    try:
        check_preserved_captions(config, subject, read_configured_subject(config, subject))
    except DreamBoothError as error:
        yield PreflightFinding("prior.captions", str(error))


def _check_identifiers(config: Config) -> Iterator[PreflightFinding]:
    for subject in config.all_subjects:
        warning = identifier_warning(config.word(subject), subject.class_noun)
        if warning:
            yield PreflightFinding("subject.identifier", warning, fatal=False)
