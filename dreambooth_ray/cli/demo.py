"""`dreambooth demo`: one subject learnt in minutes, and what came of it."""

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from dreambooth_ray.imports import large_imports

# ruff: noqa: PLC0415  imports inside verbs keep --help quick

_RECIPES = {"toyworld": "toy-robot.yaml", "toyworld-flow": "toy-robot-flow.yaml"}
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
    """Learn one toy robot from five images and show what came of it."""
    started_s = time.monotonic()
    from rich.console import Console
    from rich.table import Table

    from cluster.session import session
    from dreambooth_ray.config.load import load_config
    from dreambooth_ray.display import TrainingDisplay

    path_overrides = [f"subject.photos={out / 'photos'}", f"storage.uri={out / 'storage'}"]
    config = load_config(_RECIPES[model], [*path_overrides, *(overrides or [])])
    display = TrainingDisplay()
    with session(config, meanwhile=_import_demo, imports_ahead=True):
        from dreambooth_ray.demo_report import compare_models, train_demo, write_report

        prepared = train_demo(config, out, display)
    report = compare_models(prepared, out, display)
    report["wall_s"] = round(time.monotonic() - started_s, 1)
    write_report(report, out)
    table = Table("measure", "before", "after", title="What the model learnt, and what it kept")
    for name, value in report.items():
        cells = (value["before"], value["after"]) if isinstance(value, dict) else ("", value)
        table.add_row(name.replace("_", " "), *(str(cell) for cell in cells))
    Console().print(table)
    print(f"look at {out / 'contact_sheet.png'}")


def _import_demo() -> None:
    with large_imports():
        import dreambooth_ray.demo_report  # noqa: F401
