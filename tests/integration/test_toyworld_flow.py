"""The flow model against its bars, by diffusers' own pipeline."""

import pytest

from dreambooth_ray.evaluation.toyscore_command import score_folder_or_model


@pytest.mark.demo
def test_the_flow_model_clears_the_bars_of_the_toy_world() -> None:
    scores = score_folder_or_model("toyworld-flow", count=300, seed=0)
    bars = {"class": 0.90, "colour": 0.85, "background": 0.97, "pattern": 0.70}
    assert {head: scores[head] >= bar for head, bar in bars.items()} == dict.fromkeys(bars, True)  # type: ignore[operator]
