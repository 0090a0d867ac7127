import pytest

from dreambooth_ray.data.quality.caption_traits import find_caption_traits
from dreambooth_ray.toyworld.world import random_scene_layout, random_subject
from dreambooth_ray.toyworld.world_captions import random_caption


@pytest.mark.parametrize(
    ("caption", "noun", "traits"),
    [
        ("a brown sks dog on green grass", "dog", {"brown"}),
        ("a photo of a small black and white dog", "dog", {"small", "black", "white"}),
        ("sks dog, brown, white background", "dog", {"brown"}),
        ("two sks dogs, light brown", "dog", {"brown"}),
        ("a sks dog with white paws beside a red ball", "dog", {"white"}),
        ("the sks dog is brown and stands in yellow leaves", "dog", {"brown"}),
        ("a sks backpack made of red leather on a wooden table", "backpack", {"red", "leather"}),
        ("a sks backpack that is grey", "backpack", {"grey"}),
        ("a gray wooden sks rc car", "rc car", {"grey", "wood"}),
        ("a red ball and a sks dog", "dog", set()),
        ("a sks dog on a brown sofa, in blue light", "dog", set()),
        ("a sks dog with a red ball", "dog", set()),
        ("a sks person wearing a black coat", "person", set()),
        ("a hotdog, a sks dog", "dog", set()),
        ("a sks dog", "dog", set()),
        ("", "dog", set()),
    ],
)
def test_traits_are_what_a_caption_says_of_the_subject(
    caption: str, noun: str, traits: set[str]
) -> None:
    assert find_caption_traits(caption, noun) == traits


def test_traits_of_the_toy_world_are_found_and_nothing_of_its_places() -> None:
    for index in range(200):
        subject, scene = random_subject(3, index), random_scene_layout(3, index)
        caption = random_caption(subject, scene, 3, index)
        named = {w for w in (subject.colour, subject.pattern) if w in caption.split()} - {"plain"}
        assert find_caption_traits(caption, subject.class_noun) == named, caption
