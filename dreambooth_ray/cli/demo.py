"""`dreambooth demo`: one subject learnt in minutes, and what came of it."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dreambooth_ray.imports import pause_garbage_collection

if TYPE_CHECKING:
    from dreambooth_ray.config.schema import Config

# ruff: noqa: PLC0415  imports inside verbs keep --help quick

_RECIPES = {"toyworld": "toy-robot.yaml", "toyworld-flow": "toy-robot-flow.yaml"}
# The same subject once more, by adapters and what the base model predicts instead of class images.
_OUTPUT_STEPS = 150
_OUTPUT = ("prior.kind=output", "sample.every=0")
_SHARED_SECTIONS = ("seed", "model", "subject", "cluster", "memory", "storage", "checkpoint")
_OUTPUT_RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "toyworld": ("toy-robot-lora.yaml", ()),
    "toyworld-flow": (
        "toy-robot-flow.yaml",
        (
            "train.method=lora",
            "train.lora.target_modules=[to_q,to_k,to_v,to_out.0,w1,w2,w3]",
            "train.lr=1e-3",
        ),
    ),
}
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.path=value, for example train.steps=200")
]


def demo(
    out: Annotated[Path, typer.Option(help="folder for images and report")] = Path("out/demo"),
    model: Annotated[
        Literal["toyworld", "toyworld-flow"],
        typer.Option(help="a UNet that predicts noise, or a transformer that predicts velocity"),
    ] = "toyworld",
    overrides: Overrides = None,
) -> None:
    """Learn one toy robot from five images, in two ways, and show what came of it."""
    started_s = time.monotonic()
    from rich.console import Console
    from rich.table import Table

    from cluster.session import session
    from dreambooth_ray.display import TrainingDisplay

    config, output_preservation_config = load_demo_training_configs(model, out, overrides or [])
    training_display = TrainingDisplay()
    with session(config, meanwhile=_import_demo, imports_ahead=True):
        from dreambooth_ray.demo_report import compare_models, train_demo, write_report_json

        demo_runs = train_demo(config, output_preservation_config, out, training_display)
    model_comparison = compare_models(demo_runs, out, training_display)
    model_comparison["wall_s"] = round(time.monotonic() - started_s, 1)
    write_report_json(model_comparison, out)
    report_table = Table(
        "measure", "before", "after", "output preservation",
        title="What the model learnt, and what it kept",
    )  # fmt: skip
    for measure_name, measure_value in model_comparison.items():
        values_by_column = (
            measure_value if isinstance(measure_value, dict) else {"after": measure_value}
        )
        measurement_cells = (
            str(values_by_column.get(key, "")) for key in ("before", "after", "output")
        )
        report_table.add_row(measure_name.replace("_", " "), *measurement_cells)
    Console().print(report_table)
    print(f"look at {out / 'contact_sheet.png'}")


def load_demo_training_configs(
    model: str, out: Path, overrides: list[str]
) -> "tuple[Config, Config]":
    """Of the training with class images, and of the one with output preservation.

    overrides: of the first; the second shares what says where and what is trained, and is no longer
    """
    from dreambooth_ray.config.load import load_config

    path_overrides = [f"subject.photos={out / 'photos'}", f"storage.uri={out / 'storage'}"]
    config = load_config(_RECIPES[model], [*path_overrides, *overrides])
    inherited_overrides = [
        text for text in overrides if re.split("[.=]", text)[0] in _SHARED_SECTIONS
    ]
    recipe_name, recipe_overrides = _OUTPUT_RECIPES[model]
    steps_override = f"train.steps={min(_OUTPUT_STEPS, config.train.steps)}"
    return config, load_config(
        recipe_name,
        [*path_overrides, *recipe_overrides, *inherited_overrides, steps_override, *_OUTPUT],
    )


def _import_demo() -> None:
    with pause_garbage_collection():
        import dreambooth_ray.demo_report  # noqa: F401
