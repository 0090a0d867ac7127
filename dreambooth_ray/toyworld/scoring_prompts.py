"""Prompts that name all of an image's attributes, with the truth, for scoring a model."""

from dreambooth_ray.toyworld.attributes import BACKGROUNDS, CLASSES, COLOUR_NAMES, PATTERNS


def attribute_prompts(count: int) -> list[tuple[str, dict[str, str]]]:
    """`count` held-out prompts naming class, colour, pattern and background, with the truth.

    Attributes run through their values at strides that share no factor, so each appears
    equally often and no combination repeats within 400 prompts.
    """
    backgrounds = list(BACKGROUNDS)
    prompts_and_attributes = []
    for k in range(count):
        true_attributes = {
            "class": CLASSES[k % 10],
            "colour": COLOUR_NAMES[(k + k // 10) % 10],
            "pattern": PATTERNS[(k + k // 4) % 4],
            "background": backgrounds[(3 * k + k // 100) % 10],
        }
        subject_phrase = (
            f"a {true_attributes['colour']} {true_attributes['pattern']} {true_attributes['class']}"
        )
        prompts_and_attributes.append(
            (f"{subject_phrase} {BACKGROUNDS[true_attributes['background']]}", true_attributes)
        )
    return prompts_and_attributes
