"""`dreambooth evaluate`: how good a trained subject is, and what it cost the class."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_ray.errors import ConfigError

if TYPE_CHECKING:
    from dreambooth_ray.api import Evaluation

# ruff: noqa: PLC0415  imports inside verbs keep --help quick


def evaluate(
    model: Annotated[str, typer.Argument(help="a run, a bundle, or a model as model.uri")],
    protocol: Annotated[
        str, typer.Option(help="dreambench, toyworld, or a YAML file of the same form")
    ] = "dreambench",
    photos: Annotated[str, typer.Option(help="the subject's photographs; a run knows them")] = "",
    identifier: Annotated[str, typer.Option(help="a bundle knows it")] = "",
    class_noun: Annotated[str, typer.Option(help="a bundle knows it")] = "",
    dino: Annotated[str, typer.Option(help="another encoder for fidelity, PRES and DIV")] = "",
    clip: Annotated[str, typer.Option(help="another CLIP for CLIP-I and CLIP-T")] = "",
    together: Annotated[
        bool,
        typer.Option("--together", help="of a run of several subjects, every two in one image"),
    ] = False,
    actors: Annotated[int, typer.Option(min=1, help="Ray actors that draw")] = 1,
    gpus: Annotated[bool, typer.Option("--gpus", help="one GPU for each actor")] = False,
    address: Annotated[str, typer.Option(help="Ray address; a local Ray if not given")] = "",
    out: Annotated[str, typer.Option(help="folder or URI; the run's own, or out/evaluations")] = "",
) -> None:
    """Generate a protocol's images, score them, write JSON and a page; run again to go on."""
    from dreambooth_ray import api

    if together:
        subject_options = {"photos": photos, "identifier": identifier, "class-noun": class_noun}
        for option_name in [
            name for name, value in {**subject_options, "clip": clip}.items() if value
        ]:
            raise ConfigError(
                f"--{option_name} is not for --together: leave it out; the run knows it"
            )
        evaluation = api.evaluate_pairs(
            model, protocol, dino=dino, actors=actors, gpus=gpus, address=address, out=out
        )
        _print_evaluation(evaluation)
        return
    evaluation = api.evaluate(
        model,
        protocol,
        photos=photos,
        identifier=identifier,
        class_noun=class_noun,
        dino=dino,
        clip=clip,
        actors=actors,
        gpus=gpus,
        address=address,
        out=out,
    )
    _print_evaluation(evaluation)


def _print_evaluation(evaluation: "Evaluation") -> None:
    print(json.dumps({name: round(v, 4) for name, v in evaluation.totals.items()}, indent=1))
    print(evaluation.report)
