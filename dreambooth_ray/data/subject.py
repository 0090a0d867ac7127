"""The subject to learn: photographs with captions, an identifier and a class noun."""

from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from dreambooth_ray.config.count_text import describe_count
from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.training import SubjectConfig
from dreambooth_ray.data.caption_files import find_captions
from dreambooth_ray.data.caption_variants import list_caption_variants
from dreambooth_ray.data.caption_words import caption_has_word
from dreambooth_ray.data.image_shapes import ImageShape, ShapeRule
from dreambooth_ray.data.masks import MASK_SUFFIX, find_mask, is_mask, read_mask
from dreambooth_ray.data.photographs import find_photographs, list_files, read_photograph
from dreambooth_ray.data.remote_images import fetch_photographs_folder
from dreambooth_ray.errors import DataError

# Words so common that every model has a strong meaning for them.
_ORDINARY = """
a an the my this that one two red blue green black white big small new old good nice dog cat toy
car man woman boy girl person people house tree flower robot fish bird horse bear duck boat ball
shoe sneaker backpack teapot cup bottle book chair table star photo picture image thing object
special unique subject animal pet friend baby food cake love happy
"""
ORDINARY_WORDS = frozenset(_ORDINARY.split())


@dataclass(frozen=True)
class Photograph:
    """One training photograph, cut to its shape, with the captions it may get.

    original_px: width and height before it was resized and cut; None where it was not
    own_caption: what it came with, before it is varied; "" where it gets the recipe's prompts
    corner_px: left and top of the cut, after resizing
    smaller: the same one at the lower resolutions, the smallest first
    mask: where the subject is, "L", of the image's size; None where masks are not used, or it has
        none
    """

    path: Path
    image: Image.Image
    captions: tuple[str, ...]
    original_px: tuple[int, int] | None = None
    own_caption: str = ""
    corner_px: tuple[int, int] = (0, 0)
    smaller: tuple["Photograph", ...] = ()
    mask: Image.Image | None = None

    @property
    def at_all_resolutions(self) -> tuple["Photograph", ...]:
        """At each resolution, the smallest first."""
        return (*self.smaller, self)

    @property
    def shape(self) -> ImageShape:
        """Of what was cut out."""
        return ImageShape(*self.image.size)

    @property
    def size_conditioning(self) -> tuple[int, int, int, int, int, int]:
        """Original height and width, top and left of the cut after resizing, height and width."""
        width, height = self.original_px or self.image.size
        left, top = self.corner_px
        return height, width, top, left, self.image.height, self.image.width

    @property
    def crop_box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of what was cut out, in pixels of the original."""
        scale = self.enlargement
        crop_left_px, crop_top_px = (round(corner / scale) for corner in self.corner_px)
        width, height = (round(side / scale) for side in self.image.size)
        return crop_left_px, crop_top_px, crop_left_px + width, crop_top_px + height

    @property
    def enlargement(self) -> float:
        """How many times it was enlarged before it was cut."""
        width, height = self.original_px or self.image.size
        return max(self.image.width / width, self.image.height / height)

    @property
    def caption(self) -> str:
        """The first of its captions."""
        return self.captions[0]


def read_subject_photographs(
    folder: Path, prompts: str | tuple[str, ...], rule: ShapeRule
) -> list[Photograph]:
    """All photographs of a folder, cut by a rule, each with its captions.

    A file `photo.txt` or `photo.caption` beside `photo.jpg` is its caption, or its line of the
    folder's metadata.jsonl; without one, `prompts` are its captions.
    raises: DataError naming the first file that can't be used
    """
    default_captions = (prompts,) if isinstance(prompts, str) else prompts
    photographs, photograph_paths = [], find_photographs(folder)
    captions_by_path = find_captions(photograph_paths)
    for path in photograph_paths:
        caption = captions_by_path[path].text if path in captions_by_path else ""
        caption_choices = (caption,) if caption else default_captions
        photograph = _read_cropped_photograph(path, caption_choices, rule)
        photographs.append(replace(photograph, own_caption=caption))
    return photographs


def _read_cropped_photograph(path: Path, captions: tuple[str, ...], rule: ShapeRule) -> Photograph:
    image = read_photograph(path)
    mask = None if rule.train.mask_background is None else read_mask(path, image.size)
    crop_shapes = rule.choose_shape_per_resolution(image.size, str(path))
    crops = [rule.cut(image, shape, mask) for shape in crop_shapes]
    for crop in crops:
        if crop.mask is not None and crop.mask.getextrema() == (0, 0):
            raise DataError(
                f"{path}: its mask lies outside of what train.crop={rule.train.crop} cuts out; "
                "take train.crop=smart, which goes by the mask, or crop the photograph"
            )
    *smaller_photographs, largest_photograph = (
        Photograph(
            path, crop.image, captions, image.size, corner_px=(crop.left, crop.top), mask=crop.mask
        )
        for crop in crops
    )
    return replace(largest_photograph, smaller=tuple(smaller_photographs))


def read_photographs_for_subject_config(config: Config, subject: SubjectConfig) -> list[Photograph]:
    """The photographs of a configuration's subject, in its shapes.

    {identifier} and {class_noun} are filled in, and captions are varied as `captions` has it.
    """
    photographs = read_subject_photographs(
        fetch_photographs_folder(subject.photos),
        config.instance_prompts(subject),
        ShapeRule(config.train),
    )
    filled_captions = [config.fill(p.own_caption, subject) for p in photographs]
    return [
        replace(
            p, own_caption=own_caption, captions=list_caption_variants(config, subject, own_caption)
        )
        for p, own_caption in zip(photographs, filled_captions, strict=True)
    ]


def describe_enlarged_photographs(photographs: list[Photograph]) -> list[str]:
    """The photographs that are smaller than their shape, each in words."""
    return [
        f"{photograph.path.name} is enlarged {photograph.enlargement:.2f} times to fill "
        f"{photograph.shape.text}; what it lacks in detail the model learns as softness"
        for photograph in photographs
        if photograph.enlargement > 1
    ]


def find_mask_warnings(config: Config, photographs: list[Photograph]) -> list[str]:
    """What is doubtful about a subject's masks, each in words.

    raises: DataError where masks are asked for and no photograph has one
    """
    folder, background_weight = photographs[0].path.parent, config.train.mask_background
    mask_names = {p.name for p in list_files(folder) if is_mask(p)}
    used_mask_names = {p.name for photo in photographs if (p := find_mask(photo.path)) is not None}
    mask_warnings = [
        f"{name} is the mask of no photograph" for name in sorted(mask_names - used_mask_names)
    ]
    mask_warnings += [
        f"{photo.path.name} is taken for a photograph; the name of a mask ends in {MASK_SUFFIX}"
        for photo in photographs
        if photo.path.stem.lower().endswith(".mask")
    ]
    unmasked_names = [photograph.path.name for photograph in photographs if photograph.mask is None]
    if background_weight is None:
        if used_mask_names:
            mask_warnings.append(
                f"masks are not used, {min(used_mask_names)} for one; set train.mask_background"
            )
        return mask_warnings
    if len(unmasked_names) == len(photographs):
        raise DataError(
            f"train.mask_background={background_weight:g} and no photograph in {folder} has a "
            f"mask; put {photographs[0].path.stem}.mask.png beside {unmasked_names[0]}, "
            "or leave it out"
        )
    if unmasked_names:
        mask_warnings.append(
            f"{', '.join(unmasked_names)}: without a mask, all of it counts as the subject"
        )
    return mask_warnings


def check_identifier_use(
    config: Config, subject: SubjectConfig, photographs: list[Photograph]
) -> list[str]:
    """The photographs whose captions leave the identifier out, in words.

    raises: DataError where a word is to be learnt and stands in no caption
    """
    identifier_word = config.word(subject)
    photos_without_identifier = [
        p for p in photographs if not any(caption_has_word(c, identifier_word) for c in p.captions)
    ]
    if not photos_without_identifier:
        return []
    example_text = (
        f"{photos_without_identifier[0].path.name} for one, "
        f"{photos_without_identifier[0].caption!r}"
    )
    if len(photos_without_identifier) == len(photographs) and config.identifier.kind == "learned":
        raise DataError(
            f"identifier.kind=learned: no caption in {photos_without_identifier[0].path.parent} "
            f"has the word {identifier_word} ({example_text}), and nothing would teach it; write "
            f"{identifier_word} or {{identifier}} there"
        )
    caption_count_text = describe_count(len(photos_without_identifier), "caption")
    return [
        f"{caption_count_text} of {len(photographs)} without the identifier {identifier_word!r}, "
        f"{example_text}: what these show is learnt by their other words alone"
    ]


def split_photographs(
    config: Config, photographs: list[Photograph]
) -> tuple[list[Photograph], list[Photograph]]:
    """A subject's photographs to train on, and those for validation.

    raises: DataError if none would be left to train on
    """
    num_held_out = config.validation.held_out
    if not config.validation.every:
        return photographs, []
    if num_held_out >= len(photographs):
        folder = photographs[0].path.parent
        raise DataError(
            f"validation.held_out={num_held_out} leaves none of the {len(photographs)} photographs "
            f"in {folder} to train on; hold out fewer"
        )
    if not num_held_out:
        return photographs, photographs
    return photographs[:-num_held_out], photographs[-num_held_out:]


def identifier_warning(identifier: str, class_noun: str) -> str | None:
    """Why an identifier is a poor choice, or None."""
    identifier_word = identifier.strip().lower()
    if identifier_word == class_noun.strip().lower():
        return (
            f"subject.identifier={identifier!r} is the class noun itself: the whole class would "
            "become the subject; take a rare word such as 'sks'"
        )
    if identifier_word in ORDINARY_WORDS:
        return (
            f"subject.identifier={identifier!r} is an ordinary word: the model has a meaning for "
            "it that will fight the subject, and loses that meaning; take a rare word such as 'sks'"
        )
    return None
