from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.config.captions import CaptionsConfig
from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.caption_variants import (
    find_variant_warning,
    list_caption_variants,
    vary_tags,
)

TAGS = "sks dog, snow, from above, smiling, at night"


def make_config(*overrides: str) -> Config:
    return parse_config("subject: {photos: p, class_noun: dog}", "x", list(overrides))


def list_of(own_caption: str, *overrides: str) -> tuple[str, ...]:
    config = make_config(*overrides)
    return list_caption_variants(config, config.subject, own_caption)


def test_captions_are_as_they_were_written_unless_asked_otherwise() -> None:
    assert list_of(TAGS) == (TAGS,)
    assert list_of("a  b,c") == ("a  b,c",)
    assert list_of("", "train.prompt=one {identifier}") == ("one sks",)


def test_templates_go_around_a_photographs_own_caption_alone() -> None:
    templates = 'captions.templates=["{caption}", "photo of {identifier} {class_noun}, {caption}"]'
    assert list_of("snow", templates) == ("snow", "photo of sks dog, snow")
    assert list_of("", templates) == ("a sks dog",)


def test_shuffled_tags_are_all_there_behind_those_that_stay() -> None:
    captions = list_of(TAGS, "captions.shuffle=true", "captions.variants=400")
    assert len(captions) == 400
    orders = Counter(tuple(caption.split(", ")) for caption in captions)
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(TAGS.split(", ")))}
    assert {order[0] for order in orders} == {"sks dog"}
    # 24 orders, each of them 17 times in the mean.
    assert len(orders) == 24
    assert max(orders.values()) < 40


def test_tags_are_left_out_at_the_rate_asked_for_in_their_order() -> None:
    captions = list_of(TAGS, "captions.tag_dropout=0.3", "captions.variants=500")
    counts = Counter(tag for caption in captions for tag in caption.split(", "))
    assert counts.pop("sks dog") == 500
    assert all(300 < count < 400 for count in counts.values())
    assert all(sorted(c.split(", "), key=TAGS.index) == c.split(", ") for c in captions)


def test_an_identifier_is_never_left_out_and_may_move() -> None:
    settings = "captions.tag_dropout=1", "captions.keep_tokens=0"
    assert list_of("snow, a SKS dog, night", *settings) == ("a SKS dog",)
    assert list_of("snow, night", *settings) == ("",)
    shuffled = list_of(TAGS, "captions.shuffle=true", "captions.keep_tokens=0")
    assert len({caption.split(", ")[0] for caption in shuffled}) > 2


def test_templates_take_turns_and_lose_commas_around_nothing() -> None:
    templates = 'captions.templates=["a {identifier} dog, {caption}", "{caption}, a photo"]'
    settings = "captions.tag_dropout=1", "captions.keep_tokens=0", "captions.variants=4", templates
    assert list_of("snow", *settings) == ("a sks dog", "a photo") * 2


def test_prompts_of_the_recipe_vary_as_captions_do() -> None:
    prompts = 'subject.prompts=["{identifier} {class_noun}, a, b, c", one]'
    captions = list_of("", prompts, "captions.shuffle=true", "captions.variants=8")
    assert (len(captions), captions.count("one")) == (16, 8)
    assert len(set(captions)) > 3
    assert all(caption.startswith(("sks dog, ", "one")) for caption in captions)


@given(
    tags=st.lists(st.text("abc ,;", min_size=1, max_size=6), max_size=6),
    seed=st.integers(0, 2**63 - 1),
    index=st.integers(0, 30),
    shuffle=st.booleans(),
    dropout=st.floats(0, 1),
    num_kept=st.integers(0, 7),
)
def test_a_variant_is_a_function_of_its_address_and_adds_no_tag(
    tags: list[str], seed: int, index: int, shuffle: bool, dropout: float, num_kept: int
) -> None:
    settings = CaptionsConfig(shuffle=shuffle, tag_dropout=dropout, keep_tokens=num_kept)
    caption = ",".join(tags)
    variant = vary_tags(settings, seed, caption, "sks", index)
    assert variant == vary_tags(settings, seed, caption, "sks", index)
    plain = [tag.strip() for tag in caption.split(",") if tag.strip()]
    varied = [tag.strip() for tag in variant.split(",") if tag.strip()]
    assert varied[:num_kept] == plain[:num_kept]
    assert not Counter(varied) - Counter(plain)
    if not dropout:
        assert Counter(varied) == Counter(plain)


@pytest.mark.parametrize(
    ("own_captions", "overrides", "match"),
    [
        (["a dog in snow"], ["captions.shuffle=true"], "captions.shuffle: no caption has a tag"),
        (["", ""], ["captions.tag_dropout=0.5"], "captions.tag_dropout: no caption has a tag"),
        (["sks, a"], ["captions.shuffle=true"], "behind the first 1 (captions.keep_tokens)"),
        ([TAGS], ["captions.shuffle=true", "captions.separator=;"], "captions.separator=';' parts"),
        (["", ""], ['captions.templates=["x {caption}"]'], "and none has one"),
        ([TAGS, ""], ["captions.shuffle=true", "captions.variants=1"], None),
        (["", "x"], ['captions.templates=["x {caption}"]'], None),
        (["", "x"], [], None),
        (
            [f"sks dog, {n}, a, b, c, d, e" for n in range(9)],
            ["captions.shuffle=true", "captions.variants=100"],
            "captions.variants=100 makes 8",
        ),
    ],
)
def test_a_setting_that_is_doubtful_is_told(
    own_captions: list[str], overrides: list[str], match: str | None
) -> None:
    config = make_config(*overrides)
    text = find_variant_warning(config, config.subject, own_captions)
    assert (text is None) if match is None else (match in str(text))
