import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Tokenizer

from dreambooth_ray.toyworld.attributes import BACKGROUNDS, CLASSES, COLOUR_NAMES, PATTERNS
from dreambooth_ray.toyworld.captioned_images import tokenize_captions
from dreambooth_ray.toyworld.flow_dataset import make_caption_tokenizer_spec
from dreambooth_ray.toyworld.flow_tokenizer import WINDOW, apply_chat_format, new_flow_tokenizer
from dreambooth_ray.toyworld.world import random_scene_layout, random_subject
from dreambooth_ray.toyworld.world_captions import random_caption


@pytest.fixture(scope="module")
def tokenizer() -> Qwen2Tokenizer:
    return new_flow_tokenizer()


def test_it_is_the_same_each_time_and_after_saving(tmp_path: Path) -> None:
    new_flow_tokenizer().save_pretrained(tmp_path)
    loaded, again = Qwen2Tokenizer.from_pretrained(tmp_path), new_flow_tokenizer()
    assert loaded.get_vocab() == again.get_vocab()
    assert loaded.chat_template == again.chat_template
    prompt = "a photo of a Zwx red robot at night"
    texts = [apply_chat_format(one, prompt) for one in (loaded, again)]
    assert texts[0] == texts[1]
    assert loaded(texts[0]).input_ids == again(texts[0]).input_ids


def test_words_of_the_world_are_single_tokens_wherever_they_stand(
    tokenizer: Qwen2Tokenizer,
) -> None:
    empty = len(tokenizer(apply_chat_format(tokenizer, "a")).input_ids)
    for word in [*CLASSES, *COLOUR_NAMES, *PATTERNS, *" ".join(BACKGROUNDS.values()).split()]:
        for prompt in (word, word.capitalize()):
            assert len(tokenizer(apply_chat_format(tokenizer, prompt)).input_ids) == empty, prompt
        assert len(tokenizer(apply_chat_format(tokenizer, f"a {word}")).input_ids) == empty + 1


@given(st.integers(0, 2**31), st.integers(0, 10**6))
def test_captions_are_tokenized_as_the_pipeline_would_and_fit(
    tokenizer: Qwen2Tokenizer, seed: int, index: int
) -> None:
    subject, scene = random_subject(seed, index), random_scene_layout(seed, index)
    caption = random_caption(subject, scene, seed, index)
    token_ids = tokenize_captions([caption], make_caption_tokenizer_spec(tokenizer))
    by_pipeline = tokenizer(
        apply_chat_format(tokenizer, caption), padding="max_length", max_length=WINDOW
    )
    assert token_ids[0].tolist() == by_pipeline.input_ids


@settings(max_examples=50)
@given(
    st.text(
        st.characters(min_codepoint=33, max_codepoint=0x17F, categories=["L", "N"]),
        min_size=1,
        max_size=8,
    )
)
def test_no_word_is_unknown(tokenizer: Qwen2Tokenizer, word: str) -> None:
    back = tokenizer.decode(tokenizer(word).input_ids)
    assert back == unicodedata.normalize("NFC", word)
