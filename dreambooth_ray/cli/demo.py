"""`dreambooth demo`: one subject learnt in minutes, and what came of it."""

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from dreambooth_ray.imports import large_imports

# ruff: noqa: PLC0415  imports inside verbs keep --help quick

_RECIPES = {"toyworld": "toy-robot.yaml", "toyworld-flow": "toy-robot-flow.yaml"}
# The same subject once more, by adapters and what the base model predicts instead of class images.
_OUTPUT_STEPS = 150
_OUTPUT = ("prior.kind=output", "sample.every=0")
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
    from dreambooth_ray.config.load import load_config
    from dreambooth_ray.display import TrainingDisplay

    path_overrides = [f"subject.photos={out / 'photos'}", f"storage.uri={out / 'storage'}"]
    config = load_config(_RECIPES[model], [*path_overrides, *(overrides or [])])
    recipe, settings = _OUTPUT_RECIPES[model]
    own = [f"train.steps={min(_OUTPUT_STEPS, config.train.steps)}", *_OUTPUT]
    if config.run_id:
        own.append(f"run_id={config.run_id}-output")
    output_config = load_config(recipe, [*path_overrides, *settings, *(overrides or []), *own])
    display = TrainingDisplay()
    with session(config, meanwhile=_import_demo, imports_ahead=True):
        from dreambooth_ray.demo_report import compare_models, train_demo, write_report

        runs = train_demo(config, output_config, out, display)
    report = compare_models(runs, out, display)
    report["wall_s"] = round(time.monotonic() - started_s, 1)
    write_report(report, out)
    table = Table(
        "measure", "before", "after", "output preservation",
        title="What the model learnt, and what it kept",
    )  # fmt: skip
    for name, value in report.items():
        values = value if isinstance(value, dict) else {"after": value}
        cells = (str(values.get(key, "")) for key in ("before", "after", "output"))
        table.add_row(name.replace("_", " "), *cells)
    Console().print(table)
    print(f"look at {out / 'contact_sheet.png'}")


def _import_demo() -> None:
    with large_imports():
        import dreambooth_ray.demo_report  # noqa: F401
