"""The ramp of the learning rate."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import ConfigError, DreamBoothError
from dreambooth_ray.training.learning_rate_range_test import (
    LearningRateRangeTest,
    RateCurve,
    RatePoint,
    draw_curve,
)

RATES = [10 ** (-6 + 0.25 * i) for i in range(20)]


def curve(losses: list[float], first: float = 1.0) -> RateCurve:
    points = [RatePoint(rate, loss) for rate, loss in zip(RATES, losses, strict=False)]
    return RateCurve(first, tuple(points))


def test_the_suggestion_lies_between_the_steepest_fall_and_the_lowest_loss() -> None:
    steady, falls, rises = [1.0] * 6, [0.97, 0.9, 0.7, 0.5, 0.42, 0.4], [0.6, 0.9, 1.9]
    suggestion = curve(steady + falls + rises).suggest_rate()
    assert RATES[8] <= suggestion <= RATES[11]


@given(st.lists(st.floats(0.1, 3), min_size=5, max_size=20))
def test_a_suggestion_is_a_rate_of_the_ramp_where_the_loss_fell_or_there_is_none(
    losses: list[float],
) -> None:
    try:
        suggestion = curve(losses).suggest_rate()
    except DreamBoothError as error:
        assert "--steps" in str(error)
    else:
        assert RATES[0] <= suggestion <= RATES[len(losses) - 1]
        assert min(losses) < 1.0


@pytest.mark.parametrize(("method", "kind"), [("lora", "images"), ("full", "output")])
def test_the_loss_of_a_real_model_falls_and_then_runs_away(
    toy_model: Path, photos: Path, tmp_path: Path, method: str, kind: str
) -> None:
    config = parse_config(
        f"subject: {{photos: '{photos}', class_noun: robot}}", "x",
        [f"train.method={method}", "train.resolution=64", "train.batch_size=2",
         "train.accumulate=2", f"prior.kind={kind}", "train.strategy=fsdp2"],
    )  # fmt: skip
    measured = LearningRateRangeTest(config, toy_model).run((1e-5, 1.0), 24)
    losses = [point.loss for point in measured.points]
    assert min(losses) < measured.first_loss < losses[-1]
    assert len(losses) < 8, "it ends where the loss has run away"
    assert 1e-5 < measured.suggest_rate() < 0.05
    draw_curve(measured, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert all(map(math.isfinite, losses))


def test_an_optimizer_that_finds_its_rate_is_refused(toy_model: Path) -> None:
    config = parse_config(
        "subject: {photos: p, class_noun: robot}", "x", ["train.optimizer=prodigy"]
    )
    with pytest.raises(ConfigError, match=r"train\.optimizer=prodigy"):
        LearningRateRangeTest(config, toy_model)
