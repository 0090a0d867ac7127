import pytest

from dreambooth_ray.data.caption_words import remove_word


@pytest.mark.parametrize(
    ("caption", "word", "expected"),
    [
        ("a sks dog", "sks", "a dog"),
        ("a photo of a SKS dog, in snow", "sks", "a photo of a dog, in snow"),
        ("a dog, sks, asleep", "sks", "a dog, asleep"),
        ("two skss beside a sks-like dog", "sks", "two skss beside a like dog"),
        ("a <sks> dog", "<sks>", "a dog"),
        ("a (x+y) dog", "(x+y)", "a dog"),
        ("sks", "sks", ""),
        ("ein sks Dackel, sks", "sks", "ein Dackel"),
    ],
)
def test_an_identifier_is_taken_out_where_it_stands_alone(
    caption: str, word: str, expected: str
) -> None:
    assert remove_word(caption, word) == expected
