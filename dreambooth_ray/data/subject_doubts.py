"""What is doubtful about a subject, as `train` and `preflight` both tell it."""

from typing import NamedTuple

from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.training import SubjectConfig
from dreambooth_ray.data.caption_variants import find_doubt
from dreambooth_ray.data.output_preservation_captions import check_preserved_captions
from dreambooth_ray.data.subject import (
    Photograph,
    check_identifier_use,
    check_masks,
    identifier_warning,
    read_configured_subject,
)


class SubjectDoubt(NamedTuple):
    """key: the setting to change; text: for the person"""

    key: str
    text: str


def read_checked_subject(
    config: Config, subject: SubjectConfig
) -> tuple[list[Photograph], list[SubjectDoubt]]:
    """The photographs of a configuration's subject, in its shapes, and what is doubtful of them.

    raises: DataError for what can't be trained on
    """
    photographs = read_configured_subject(config, subject)
    check_preserved_captions(config, subject, photographs)
    doubts = [
        SubjectDoubt("subject.photos", text)
        for text in check_identifier_use(config, subject, photographs)
        + check_masks(config, photographs)
    ]
    if text := find_doubt(config, subject, [photo.own_caption for photo in photographs]):
        doubts.append(SubjectDoubt("captions", text))
    if text := identifier_warning(config.word(subject), subject.class_noun):
        doubts.append(SubjectDoubt("subject.identifier", text))
    return photographs, doubts
