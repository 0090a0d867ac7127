import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from dreambooth_ray.toyworld.attributes import BACKGROUNDS, CLASSES, HAT_PHRASE, RARE_WORDS
from dreambooth_ray.toyworld.world import random_scene_layout, random_subject
from dreambooth_ray.toyworld.world_captions import WINDOW, random_caption, write_tokenizer


@pytest.fixture(scope="module", params=["made anew", "shipped"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, toy_model: Path
) -> CLIPTokenizer:
    if request.param == "shipped":
        return CLIPTokenizer.from_pretrained(toy_model / "tokenizer")
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder)


@given(st.integers(0, 2**31), st.integers(0, 10**6))
def test_captions_say_only_what_is_true_and_fit_the_window(
    tokenizer: CLIPTokenizer, seed: int, index: int
) -> None:
    subject, scene = random_subject(seed, index), random_scene_layout(seed, index)
    caption = random_caption(subject, scene, seed, index)
    hat = HAT_PHRASE if scene.hat else ""
    place = BACKGROUNDS[scene.background]
    truth = f"a {subject.colour} {subject.pattern} {subject.class_noun} {hat} {place}".split()
    extra = [w for w in caption.split() if w not in truth]
    assert set(extra) <= {*RARE_WORDS, "photo", "of"}
    assert subject.class_noun in caption.split()
    assert len(tokenizer(caption).input_ids) <= WINDOW


def test_words_of_the_world_are_single_tokens(tokenizer: CLIPTokenizer) -> None:
    for word in [*CLASSES, *" ".join(BACKGROUNDS.values()).split()]:
        assert len(tokenizer(word).input_ids) == 3, word


@settings(max_examples=50)
@given(
    st.text(
        st.characters(min_codepoint=33, max_codepoint=0x17F, categories=["L", "N"]),
        min_size=1,
        max_size=8,
    )
)
def test_no_word_is_unknown(tokenizer: CLIPTokenizer, word: str) -> None:
    ids = tokenizer(word).input_ids
    back = tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "")
    assert unicodedata.normalize("NFC", back) == unicodedata.normalize("NFC", word.lower())
