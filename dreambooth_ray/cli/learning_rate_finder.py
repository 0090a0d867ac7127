"""`dreambooth lr`: which learning rate to begin with, by a short ramp."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_ray.errors import ConfigError

if TYPE_CHECKING:
    from dreambooth_ray.training.learning_rate_range_test import RateCurve

# ruff: noqa: PLC0415  imports inside verbs keep --help quick


def lr(
    recipe: Annotated[str, typer.Argument(help="a YAML file, or a shipped recipe")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value")] = None,
    lowest: Annotated[float, typer.Option(help="rate that the ramp begins with")] = 1e-7,
    highest: Annotated[float, typer.Option(help="rate that it ends with")] = 0.1,
    steps: Annotated[int, typer.Option(min=30, help="of the ramp")] = 120,
    plot: Annotated[Path | None, typer.Option(help="also draw the curve into this PNG")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
) -> None:
    """Ramp train.lr up on your photographs, and say at which rate to train; trains nothing else."""
    if not 0 < lowest < highest < math.inf:
        raise ConfigError(
            f"--lowest={lowest:g} --highest={highest:g}: give two rates above 0, the lower first"
        )
    from dreambooth_ray.bundles.new_path import check_file_is_writable, explained_writing
    from dreambooth_ray.config.learning_rate_rules import refuse_prodigy_range_test
    from dreambooth_ray.config.load import load_config
    from dreambooth_ray.imports import pause_garbage_collection

    config = load_config(recipe, overrides or [])
    refuse_prodigy_range_test(config)
    if plot:
        import matplotlib  # noqa: F401  now, not after minutes: it comes with an extra

        check_file_is_writable(plot, "--plot", [subject.photos for subject in config.all_subjects])
    with pause_garbage_collection():
        from dreambooth_ray.display import TrainingDisplay
        from dreambooth_ray.preparation import prepare_run
        from dreambooth_ray.training.learning_rate_range_test import (
            LearningRateRangeTest,
            draw_curve,
        )
    prepared_run = prepare_run(config, TrainingDisplay())
    ramp_trainer = LearningRateRangeTest(prepared_run.config, prepared_run.directory, device)
    loss_by_rate = ramp_trainer.run((lowest, highest), steps)
    if plot:
        with explained_writing(plot, "--plot"):
            draw_curve(loss_by_rate, plot)
    suggested_rate = loss_by_rate.suggest_rate()
    if as_json:
        print(json.dumps({"suggestion": suggested_rate, **loss_by_rate.as_json()}, indent=1))
    else:
        _print_curve(loss_by_rate, suggested_rate)


def _print_curve(loss_by_rate: "RateCurve", suggested_rate: float) -> None:
    print(f"before the first step: loss {loss_by_rate.first_loss:.4f}")
    for rate_point in loss_by_rate.points:
        print(f"{rate_point.rate:.1e}  {rate_point.loss:.4f}")
    print(f"train.lr={suggested_rate:.1e}")
