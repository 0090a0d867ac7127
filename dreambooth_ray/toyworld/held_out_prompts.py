"""Prompts that name all of an image's attributes, with the truth, for scoring a model."""

from dreambooth_ray.toyworld.attributes import BACKGROUNDS, CLASSES, COLOUR_NAMES, PATTERNS


def attribute_prompts(count: int) -> list[tuple[str, dict[str, str]]]:
    """`count` held-out prompts naming class, colour, pattern and background, with the truth.

    Attributes run through their values at strides that share no factor, so each appears
    equally often and no combination repeats within 400 prompts.
    """
    backgrounds = list(BACKGROUNDS)
    prompts = []
    for k in range(count):
        truth = {
            "class": CLASSES[k % 10],
            "colour": COLOUR_NAMES[(k + k // 10) % 10],
            "pattern": PATTERNS[(k + k // 4) % 4],
            "background": backgrounds[(3 * k + k // 100) % 10],
        }
        words = f"a {truth['colour']} {truth['pattern']} {truth['class']}"
        prompts.append((f"{words} {BACKGROUNDS[truth['background']]}", truth))
    return prompts
