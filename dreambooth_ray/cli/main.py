"""The verbs. Heavy modules are imported by the verb that needs them: --help stays quick."""

import json
import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_ray.cli import bench, doctor, evaluate, export, identifier, jobs, priors, serve
from dreambooth_ray.cli.cluster import app as local_cluster
from dreambooth_ray.cli.sampling_options import sampling_options
from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.errors import DreamBoothError
from dreambooth_ray.imports import large_imports

if TYPE_CHECKING:
    from dreambooth_ray.config.schema import Config

# ruff: noqa: PLC0415  imports inside verbs are this module's point

app = typer.Typer(
    name="dreambooth",
    help="Teach a text-to-image model your subject, and let it keep what it knew.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
toyworld = typer.Typer(help="The image world whose tiny Stable Diffusion ships with the package.")
app.add_typer(toyworld, name="toyworld")
export.register(app)
doctor.register(app)
evaluate.register(app)
identifier.register(app)
app.add_typer(local_cluster, name="cluster")
jobs.register(app)
priors.register(app)
serve.register(app)
bench.register(app)

Recipe = Annotated[
    str, typer.Argument(help="a YAML file, or a shipped recipe such as toy-robot.yaml")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.path=value, for example train.steps=200")
]
Force = Annotated[
    bool, typer.Option("--force", help="go on though the run's configuration was another")
]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]


@app.callback()
def _read_global_options(debug: Debug = False) -> None:
    """Options of every verb; --debug is read where errors are shown."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for images and report")] = Path("out/demo"),
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
    config = load_config("toy-robot.yaml", [*path_overrides, *(overrides or [])])
    display = TrainingDisplay()
    with session(config, meanwhile=_import_demo):
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


@app.command()
def train(recipe: Recipe, overrides: Overrides = None, force: Force = False) -> None:
    """Fine-tune on a folder of photographs; prints the run's URI."""
    from dreambooth_ray.config.load import load_config

    _train_run(load_config(recipe, overrides or []), force)


@app.command()
def resume(
    run: Annotated[str, typer.Argument(help="URI of a run, or with --cluster its run id")],
    overrides: Overrides = None,
    force: Force = False,
    cluster: Annotated[str, typer.Option(help="take it up again there: name of a cluster")] = "",
    clusters: jobs.Clusters = Path("clusters.yaml"),
) -> None:
    """Finish a run from its newest intact checkpoint; prints the run's URI."""
    if cluster:
        print(jobs.resume_on(run, cluster, clusters))
        return
    from dreambooth_ray.runs import find_run

    _train_run(find_run(run, overrides or []), force)


def _train_run(config: "Config", force: bool) -> None:
    from cluster.session import check_address, session
    from dreambooth_ray.display import TrainingDisplay
    from dreambooth_ray.preparation import prepare_run
    from dreambooth_ray.runs import is_finished, open_run

    display = TrainingDisplay()
    check_address(config)
    prepared = prepare_run(config, display)
    run = open_run(config, force)
    display.say(f"run {run.uri}")
    if not is_finished(run):
        with session(config, meanwhile=_import_pipeline):
            from dreambooth_ray import pipeline

            pipeline.train(prepared, run, display)
    print(run.uri)


def _import_demo() -> None:
    with large_imports():
        import dreambooth_ray.demo_report  # noqa: F401


def _import_pipeline() -> None:
    with large_imports():
        import dreambooth_ray.pipeline  # noqa: F401


@app.command()
@sampling_options()
def generate(
    model: Annotated[str, typer.Argument(help="a run, a bundle, or a Stable Diffusion directory")],
    prompt: Annotated[
        str, typer.Option(help="what to draw; a bundle's own prompt if not given")
    ] = "",
    negative_prompt: Annotated[str, typer.Option(help="what to keep away from")] = "",
    num_images: Annotated[int, typer.Option(min=1, help="image k has seed + k")] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in pixels; the model's own")] = "",
    image: Annotated[Path | None, typer.Option(help="image to start from")] = None,
    mask: Annotated[Path | None, typer.Option(help="white is drawn anew")] = None,
    strength: Annotated[float, typer.Option(help="share of the steps done on the image")] = 0.8,
    grid: Annotated[bool, typer.Option("--grid", help="also one image of all")] = False,
    out: Annotated[Path, typer.Option(help="folder for the PNG files")] = Path("out/images"),
    *,
    params: SamplingParams,
) -> None:
    """Generate images with a trained subject; prints their paths."""
    with large_imports():
        from dreambooth_ray.display import Stage
        from dreambooth_ray.generation import generate_files, parse_size

    paths = generate_files(
        model,
        out,
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_images=num_images,
        seed=seed,
        params=params,
        size_px=parse_size(size),
        image=image,
        mask=mask,
        strength=strength,
        grid=grid,
        on_progress=Stage("images"),
    )
    for path in paths:
        print(path)


@toyworld.command()
def render(
    out: Annotated[Path, typer.Option(help="folder for the photographs")],
    subject_seed: Annotated[int, typer.Option(min=0, help="which individual")] = 7,
    class_noun: Annotated[
        str, typer.Option(help="robot, car, teapot, ...; by seed if not given")
    ] = "",
    count: Annotated[int, typer.Option(min=1, max=100)] = 5,
    size_px: Annotated[int, typer.Option(min=16, max=2048)] = 256,
) -> None:
    """Render photographs of one toy-world subject; prints what it is."""
    from dreambooth_ray.toyworld.photoshoot import write_photographs

    print(write_photographs(out, subject_seed, class_noun, count, size_px))


@toyworld.command()
def score(
    targets: Annotated[list[str], typer.Argument(help="folders of images, bundles or runs")],
    count: Annotated[int, typer.Option(min=1, max=400, help="prompts drawn for a model")] = 100,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Read images, or a model's answers to held-out prompts, with the evaluator; prints JSON."""
    from dreambooth_ray.evaluation.toyscore import score_target

    print(json.dumps({target: score_target(target, count, seed) for target in targets}, indent=1))


@toyworld.command()
def pretrain(
    work: Annotated[Path, typer.Option(help="folder for intermediate results")] = Path(
        "out/pretrain"
    ),
    weights: Annotated[Path, typer.Option(help="where the weights go")] = Path("out/weights"),
    seed: Annotated[int, typer.Option(min=0)] = 20261122,
    num_images: Annotated[int, typer.Option(min=600)] = 60_000,
    num_reconstructions: Annotated[int, typer.Option(min=300)] = 6_000,
    vae_steps: Annotated[int, typer.Option(min=1)] = 3_600,
    evaluator_steps: Annotated[int, typer.Option(min=1)] = 3_000,
    denoiser_steps: Annotated[int, typer.Option(min=1)] = 3_600,
    processes: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Make the toy world's weights from nothing; stop and start it at will."""
    from dreambooth_ray.toyworld.pretrain import Budget
    from dreambooth_ray.toyworld.pretrain import pretrain as run_pretrain

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    budget = Budget(
        num_images, num_reconstructions, vae_steps, evaluator_steps, denoiser_steps, processes
    )
    run_pretrain(work, weights, budget, seed)
    print(weights)


def main() -> None:
    """Run a verb; exit code 0 done, 2 the caller's mistake, 1 anything else."""
    # Before any of its modules is imported, or it warns of what nobody here needs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # DeepSpeed, where it is installed, says on stdout which device it has found.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    debug = "--debug" in sys.argv
    # Accepted anywhere on the line, not only before the verb.
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        app(arguments)
    except DreamBoothError as error:
        # A plain DreamBoothError is work that failed; its kinds are input at fault.
        _exit_with_error(error, 1 if type(error) is DreamBoothError else 2, debug)
    except KeyboardInterrupt as error:
        _exit_with_error(DreamBoothError("stopped; what was committed is kept"), 1, debug, error)
    except Exception as error:  # the edge: everything else becomes one line
        text = f"{type(error).__name__}: {error} (--debug shows where)"
        _exit_with_error(DreamBoothError(text), 1, debug, error)


def _exit_with_error(
    error: DreamBoothError, code: int, debug: bool, cause: BaseException | None = None
) -> None:
    if debug:
        traceback.print_exception(cause or error)
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)
