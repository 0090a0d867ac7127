"""What is doubtful about a subject, as `train` and `preflight` both tell it."""

from typing import NamedTuple

from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.training import SubjectConfig
from dreambooth_ray.data.caption_variants import find_variant_warning
from dreambooth_ray.data.output_preservation_captions import check_preserved_captions
from dreambooth_ray.data.subject import (
    Photograph,
    check_identifier_use,
    find_mask_warnings,
    identifier_warning,
    read_photographs_for_subject_config,
)


class SubjectDoubt(NamedTuple):
    """key: the setting to change; text: for the person"""

    key: str
    text: str


def read_checked_photographs(
    config: Config, subject: SubjectConfig
) -> tuple[list[Photograph], list[SubjectDoubt]]:
    """The photographs of a configuration's subject, in its shapes, and what is doubtful of them.

    raises: DataError for what can't be trained on
    """
    photographs = read_photographs_for_subject_config(config, subject)
    check_preserved_captions(config, subject, photographs)
    subject_doubts = [
        SubjectDoubt("subject.photos", doubt_text)
        for doubt_text in check_identifier_use(config, subject, photographs)
        + find_mask_warnings(config, photographs)
    ]
    if doubt_text := find_variant_warning(
        config, subject, [photo.own_caption for photo in photographs]
    ):
        subject_doubts.append(SubjectDoubt("captions", doubt_text))
    if doubt_text := identifier_warning(config.word(subject), subject.class_noun):
        subject_doubts.append(SubjectDoubt("subject.identifier", doubt_text))
    return photographs, subject_doubts
