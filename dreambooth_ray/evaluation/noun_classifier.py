"""How sure a text encoder is that an image shows what a noun names."""

from collections.abc import Callable

from PIL import Image

from dreambooth_ray.evaluation.encoders import TOY_ATTRIBUTES, ImageTextEncoder
from dreambooth_ray.toyworld.attributes import CLASSES

# What a subject could otherwise be; the class noun itself is added.
NOUNS = (
    "dog", "cat", "bird", "fish", "horse", "person", "baby", "flower", "tree", "house",
    "car", "bicycle", "boat", "airplane", "shoe", "hat", "dress", "bag", "backpack", "toy",
    "stuffed animal", "ball", "cup", "bottle", "teapot", "vase", "bowl", "clock", "candle",
    "glasses", "chair", "table", "lamp", "book", "phone", "computer", "guitar", "cake", "fruit",
    "landscape",
)  # fmt: skip
# CLIP's own temperature, the inverse of its learnt scale, which training clips at 100.
_SCALE = 100.0


def make_noun_classifier(
    encoder: ImageTextEncoder, class_noun: str
) -> Callable[[list[Image.Image]], list[tuple[float, str]]]:
    """A function of images: the probability of `class_noun` in each, and the likeliest noun."""
    is_toy = encoder.uri == TOY_ATTRIBUTES
    nouns = [class_noun, *(n for n in (CLASSES if is_toy else NOUNS) if n != class_noun)]
    noun_vectors = encoder.embed_texts([f"a {n}" if is_toy else f"a photo of a {n}" for n in nouns])

    def classify_images(images: list[Image.Image]) -> list[tuple[float, str]]:
        noun_probabilities = (_SCALE * encoder.embed_images(images) @ noun_vectors.T).softmax(dim=1)
        return [(float(row[0]), nouns[int(row.argmax())]) for row in noun_probabilities]

    return classify_images
