import io
from typing import Any

import pytest
from rich.console import Console

from dreambooth_ray.config.prior import PriorConfig
from dreambooth_ray.display import (
    ImageRate,
    ProgressBoard,
    ProgressStage,
    _LineMeter,
    describe_step_losses,
)


def test_rate_is_the_mean_since_the_first_look_and_restarts_after_a_rewind() -> None:
    rate = ImageRate()
    assert rate.update(10.0, 100) == 0.0
    assert rate.update(12.0, 140) == 20.0
    assert rate.update(14.0, 120) == 5.0
    assert rate.update(15.0, 60) == 0.0
    assert rate.update(16.0, 70) == 10.0


@pytest.mark.parametrize(
    ("prior", "parts"),
    [
        ({}, "subject 0.1000 + class 0.2000"),
        ({"weight": 0.5}, "subject 0.1000 + 0.5 x class 0.2000"),
        ({"kind": "output"}, "subject 0.1000 + 5 x output 0.2000"),
        ({"kind": "both"}, "subject 0.1000 + class 0.2000 + 5 x output 0.3000"),
    ],
)
def test_a_line_names_the_parts_with_their_weights_and_the_speed(
    prior: dict[str, Any], parts: str
) -> None:
    record = {"loss": 0.4, "instance_loss": 0.1, "prior_loss": 0.2}
    if prior.get("kind") == "both":
        record["output_loss"] = 0.3
    text = describe_step_losses(record, 12.34, PriorConfig.model_validate(prior))
    assert text == f"loss 0.4000 = {parts}, 12.3 images/s"


def test_a_record_of_before_a_change_of_what_is_kept_is_shown_too() -> None:
    record = {"loss": 0.4, "instance_loss": 0.1, "prior_loss": 0.2}
    both = PriorConfig(kind="both")
    assert "class 0.2000," in describe_step_losses(record, 1.0, both)
    assert "5 x output 0.3000," in describe_step_losses(
        {**record, "output_loss": 0.3}, 1.0, PriorConfig()
    )


def test_lines_are_sparse_but_the_last_step_is_always_said() -> None:
    said: list[str] = []
    meter = _LineMeter(said.append, 100)
    for step in (1, 2, 3, 100, 100):
        meter.show(step, "x")
    assert [line.split()[1] for line in said] == ["1/100", "100/100"]


def test_time_left_is_told_from_the_steps_since_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    clock = iter([0.0, 10.0, 70.0, 80.0])
    monkeypatch.setattr("dreambooth_ray.display.time.monotonic", lambda: next(clock))
    meter = _LineMeter(said.append, 100)
    for step in (1, 51, 11, 21):
        meter.show(step, "x")
    assert said == ["step 51/100 x, 10 s left", "step 11/100 x", "step 21/100 x, 79 s left"]


def test_bars_of_several_stages_share_a_terminal() -> None:
    out = io.StringIO()
    board = ProgressBoard(Console(file=out, force_terminal=True, width=100))
    images, other_stage = board.add_stage("class images"), board.add_stage("others")
    images(1, 2)
    other_stage(1, 3)
    images(2, 2)
    with board.show_during() as bars:
        assert [task.description for task in bars.tasks] == ["class images", "others"]
        other_stage(3, 3)
    assert bars.finished
    assert not bars.live.is_started
    assert "class images" in out.getvalue()


def test_a_stage_prints_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stage = ProgressStage("images")
    stage(1, 2)
    stage(2, 2)
    assert capsys.readouterr().err == "images 1/2\nimages 2/2\n"
