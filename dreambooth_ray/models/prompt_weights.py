r"""Weights in prompts, by the rules of AUTOMATIC1111's web UI, which most prompts are written for.

(red) counts 1.1 times, [red] 1/1.1 times, (red:1.3) 1.3 times; brackets nest and multiply, and one
that is left open holds to the end. \( \) \[ \] \\ are the characters themselves. What is no weight
is text: ":)", "(10:30)", "(aspect 16:9)".
"""

import re
from itertools import groupby

from dreambooth_ray.errors import ConfigError

MAX_WEIGHT = 5.0
_ROUND, _SQUARE = 1.1, 1 / 1.1
_TOKEN = re.compile(
    r"(?P<escaped>\\[()\[\]\\])|:\s*(?P<weight>[+-]?[0-9.]+)\s*\)|[^\\()\[\]:]+|.", re.DOTALL
)


class _Fragments:
    """Texts and their weights, with the places where brackets have opened."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.weights: list[float] = []
        self.round_starts: list[int] = []
        self.square_starts: list[int] = []

    def add_text(self, text: str) -> None:
        self.texts.append(text)
        self.weights.append(1.0)

    def multiply_from(self, start: int, factor: float) -> None:
        for k in range(start, len(self.weights)):
            self.weights[k] *= factor

    def close_weighted(self, token: str, weight_text: str) -> None:
        """At ":1.3)": a weight for what the bracket holds, or text, the bracket included."""
        if not self.round_starts:
            self.add_text(token)
            return
        start_index, weight = self.round_starts.pop(), _read_weight(weight_text)
        if weight is None:
            self.texts[start_index] = "("
            self.add_text(token)
        else:
            self.multiply_from(start_index, weight)


def _read_weight(text: str) -> float | None:
    """A number from 0 to MAX_WEIGHT, or None for what is no weight: 30 of a clock, 9 of 16:9."""
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if 0 <= weight <= MAX_WEIGHT else None


def split_prompt(prompt: str, field: str = "prompt") -> list[tuple[str, float]]:
    """Text and weight of each part: "a (red:1.3) car" is three parts.

    field: to name in an error
    raises: ConfigError where brackets multiply to a weight above MAX_WEIGHT
    """
    fragments = _Fragments()
    for match in _TOKEN.finditer(prompt):
        matched_text = match[0]
        if match["escaped"]:
            fragments.add_text(matched_text[1:])
        elif match["weight"] is not None:
            fragments.close_weighted(matched_text, match["weight"])
        elif matched_text in "([":
            bracket_starts = (
                fragments.round_starts if matched_text == "(" else fragments.square_starts
            )
            bracket_starts.append(len(fragments.texts))
            fragments.add_text("")
        elif matched_text == ")" and fragments.round_starts:
            fragments.multiply_from(fragments.round_starts.pop(), _ROUND)
        elif matched_text == "]" and fragments.square_starts:
            fragments.multiply_from(fragments.square_starts.pop(), _SQUARE)
        else:
            fragments.add_text(matched_text)
    for start_index in fragments.round_starts:
        fragments.multiply_from(start_index, _ROUND)
    for start_index in fragments.square_starts:
        fragments.multiply_from(start_index, _SQUARE)
    return _join_equal_weights(fragments, field)


def _join_equal_weights(fragments: _Fragments, field: str) -> list[tuple[str, float]]:
    """Neighbours of one weight are one part; parts without a word are left out."""
    weighted_texts = [
        (text, round(weight, 9))
        for text, weight in zip(fragments.texts, fragments.weights, strict=True)
        if text
    ]
    prompt_parts = [
        ("".join(text for text, _ in group).strip(), weight)
        for weight, group in groupby(weighted_texts, lambda pair: pair[1])
    ]
    for text, weight in prompt_parts:
        if weight > MAX_WEIGHT:
            raise ConfigError(
                f"{field} weights {text!r} by {weight:g}; at most {MAX_WEIGHT:g} is taken"
            )
    return [(text, weight) for text, weight in prompt_parts if text] or [("", 1.0)]
