import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.prompt_weights import MAX_WEIGHT, split_prompt


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a (red:1.3) car (on grass:0.5)",
         [("a", 1), ("red", 1.3), ("car", 1), ("on grass", 0.5)]),
        ("", [("", 1)]),
        ("a (red) car", [("a", 1), ("red", 1.1), ("car", 1)]),
        ("a ((red)) car", [("a", 1), ("red", 1.21), ("car", 1)]),
        ("a [red] car", [("a", 1), ("red", 1 / 1.1), ("car", 1)]),
        ("a (very (red:2):1.5) car", [("a", 1), ("very", 1.5), ("red", 3), ("car", 1)]),
        ("a (house:1.3) [on] a (hill:0.5), sun, (((sky)))",  # of A1111's own documentation
         [("a", 1), ("house", 1.3), ("on", 1 / 1.1), ("a", 1), ("hill", 0.5), (", sun,", 1),
          ("sky", 1.331)]),
        ("a (red: 1.3 ) car", [("a", 1), ("red", 1.3), ("car", 1)]),
        ("a (red:.5) car", [("a", 1), ("red", 0.5), ("car", 1)]),
        ("a (x:0) car", [("a", 1), ("x", 0), ("car", 1)]),
        # What is no weight is text.
        ("a clock showing (10:30)", [("a clock showing (10:30)", 1)]),
        ("(aspect 16:9)", [("(aspect 16:9)", 1)]),
        ("a car (aspect 16:9), (red:1.2)", [("a car (aspect 16:9),", 1), ("red", 1.2)]),
        ("((at 10:30))", [("(at 10:30)", 1.1)]),
        ("(red:99)", [("(red:99)", 1)]),
        ("(red:-1)", [("(red:-1)", 1)]),
        ("(red:1.2.3)", [("(red:1.2.3)", 1)]),
        ("(version 1.2:..)", [("(version 1.2:..)", 1)]),
        ("(red:big)", [("red:big", 1.1)]),
        ("happy :) dog 10:30)", [("happy :) dog 10:30)", 1)]),
        ("photo: a dog", [("photo: a dog", 1)]),
        ("a] b", [("a] b", 1)]),
        ("a (red car", [("a", 1), ("red car", 1.1)]),
        ("a [red car", [("a", 1), ("red car", 1 / 1.1)]),
        # Escapes.
        (r"a \(red\) car", [("a (red) car", 1)]),
        (r"a \(red:1.3\) car", [("a (red:1.3) car", 1)]),
        (r"a (\(red\):1.3) car", [("a", 1), ("(red)", 1.3), ("car", 1)]),
        (r"\[x\] \\ y", [(r"[x] \ y", 1)]),
        (r"c:\dir", [(r"c:\dir", 1)]),
        ("trailing \\", [("trailing \\", 1)]),
        ("()", [("", 1)]),
        ("a\n(b:1.2)", [("a", 1), ("b", 1.2)]),
    ],
)  # fmt: skip
def test_weights_are_read_as_a1111_reads_them(prompt: str, parts: list[tuple[str, float]]) -> None:
    split = split_prompt(prompt)
    assert [text for text, _ in split] == [text for text, _ in parts]
    assert [weight for _, weight in split] == pytest.approx([weight for _, weight in parts])


def test_brackets_that_multiply_too_far_are_refused_by_field() -> None:
    with pytest.raises(ConfigError, match="negative_prompt weights 'red' by 16"):
        split_prompt("((red:4):4)", "negative_prompt")


@given(st.text())
def test_escaped_text_comes_back_as_it_is(text: str) -> None:
    escaped = "".join(f"\\{c}" if c in "()[]\\" else c for c in text)
    assert split_prompt(escaped) == [(text.strip(), 1.0)]


@given(st.text(alphabet="ab (:)[]\\1.", max_size=40))
def test_no_text_breaks_it(text: str) -> None:
    try:
        parts = split_prompt(text)
    except ConfigError:
        return
    assert all(0 <= weight <= MAX_WEIGHT for _, weight in parts)
    assert parts
