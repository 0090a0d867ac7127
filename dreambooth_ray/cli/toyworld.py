"""`dreambooth toyworld`: the image world whose tiny Stable Diffusion ships with the package."""

import json
import os
import time
from pathlib import Path
from typing import Annotated

import typer

# ruff: noqa: PLC0415  imports inside verbs keep --help quick

app = typer.Typer(
    name="toyworld",
    help="The image world whose tiny Stable Diffusion ships with the package.",
)


@app.command()
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


@app.command()
def score(
    targets: Annotated[list[str], typer.Argument(help="folders of images, bundles or runs")],
    count: Annotated[int, typer.Option(min=1, max=400, help="prompts drawn for a model")] = 100,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Read images, or a model's answers to held-out prompts, with the evaluator; prints JSON."""
    from dreambooth_ray.evaluation.toyscore_command import score_folder_or_model

    print(
        json.dumps(
            {target: score_folder_or_model(target, count, seed) for target in targets}, indent=1
        )
    )


@app.command()
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
    from dreambooth_ray.toyworld.pretrain import PretrainBudget
    from dreambooth_ray.toyworld.pretrain import pretrain as run_pretrain

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    pretraining_budget = PretrainBudget(
        num_images, num_reconstructions, vae_steps, evaluator_steps, denoiser_steps, processes
    )
    run_pretrain(work, weights, pretraining_budget, seed)
    print(weights)


@app.command()
def pretrain_flow(
    work: Annotated[Path, typer.Option(help="folder for latents and the checkpoint")] = Path(
        "out/pretrain-flow"
    ),
    weights: Annotated[Path, typer.Option(help="gets flow-pipeline/")] = Path("out/weights"),
    snapshots: Annotated[
        Path | None, typer.Option(help="newest averaged weights, log and scores; {work}/snapshots")
    ] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="snapshots of another training to begin at")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 20261122,
    num_images: Annotated[int, typer.Option(min=512)] = 60_000,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    learning_rate: Annotated[float, typer.Option(min=0)] = 1e-3,
    budget_seconds: Annotated[
        float, typer.Option(min=1, help="for everything, what was trained before counted in")
    ] = 4 * 3600,
    reserve_seconds: Annotated[
        float, typer.Option(min=0, help="of the budget, for samples and scores at the end")
    ] = 300,
    workers: Annotated[int, typer.Option(min=1, help="processes that render")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda; by what there is if not given")] = "",
    compiled: Annotated[bool, typer.Option(help="compile the transformer's blocks")] = False,
    num_scored: Annotated[int, typer.Option(min=0, max=400, help="held-out prompts")] = 300,
) -> None:
    """Make the flow model, a Z-Image of toy size, from nothing; stop and start it at will."""
    started_s = time.monotonic()
    import torch

    from dreambooth_ray.toyworld.pretrain_flow import FlowPretrainSettings
    from dreambooth_ray.toyworld.pretrain_flow import pretrain_flow as run_pretrain_flow

    chosen_device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    flow_run = FlowPretrainSettings(
        work=work,
        weights=weights,
        snapshots=snapshots or work / "snapshots",
        seed=seed,
        num_images=num_images,
        batch_size=batch_size,
        learning_rate=learning_rate,
        started=started_s,
        budget_s=budget_seconds,
        reserve_s=reserve_seconds,
        workers=workers,
        device=torch.device(chosen_device),
        compiled=compiled,
        num_scored=num_scored,
        start_from=start_from,
    )
    run_pretrain_flow(flow_run)
    print(weights / "flow-pipeline")


@app.command()
def export_flow(
    snapshots: Annotated[Path, typer.Argument(help="folder of pretrain-flow's snapshots")],
    weights: Annotated[Path, typer.Option(help="gets flow-pipeline/")] = Path("out/weights"),
) -> None:
    """Make a diffusers directory of a snapshot, of a training that was cut or ran elsewhere."""
    from dreambooth_ray.toyworld.pretrain_flow import export_flow as run_export_flow

    print(run_export_flow(snapshots, weights))
