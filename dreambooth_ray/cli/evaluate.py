"""`dreambooth evaluate`: how good a trained subject is, and what it cost the class."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_ray.errors import ConfigError

if TYPE_CHECKING:
    from dreambooth_ray.config.schema import Config
    from dreambooth_ray.evaluation.protocol import Protocol

# ruff: noqa: PLC0415  imports inside verbs keep --help quick


def evaluate(
    model: Annotated[str, typer.Argument(help="a run, a bundle, or a Stable Diffusion directory")],
    protocol: Annotated[
        str, typer.Option(help="dreambench, toyworld, or a YAML file of the same form")
    ] = "dreambench",
    photos: Annotated[str, typer.Option(help="the subject's photographs; a run knows them")] = "",
    identifier: Annotated[str, typer.Option(help="a bundle knows it")] = "",
    class_noun: Annotated[str, typer.Option(help="a bundle knows it")] = "",
    dino: Annotated[str, typer.Option(help="another encoder for fidelity, PRES and DIV")] = "",
    clip: Annotated[str, typer.Option(help="another CLIP for CLIP-I and CLIP-T")] = "",
    actors: Annotated[int, typer.Option(min=1, help="Ray actors that draw")] = 1,
    gpus: Annotated[bool, typer.Option("--gpus", help="one GPU for each actor")] = False,
    address: Annotated[str, typer.Option(help="Ray address; a local Ray if not given")] = "",
    out: Annotated[str, typer.Option(help="folder or URI; the run's own, or out/evaluations")] = "",
) -> None:
    """Generate a protocol's images, score them, write JSON and a page; run again to go on."""
    from cluster.session import session
    from dreambooth_ray.display import Stage
    from dreambooth_ray.evaluation.checkpoint_follower import plot_run
    from dreambooth_ray.evaluation.model_evaluation import (
        REPORT,
        RESULTS,
        build_case,
        evaluate_model,
    )
    from dreambooth_ray.evaluation.protocol import load_protocol
    from dreambooth_ray.export.bundle import read_bundle_about
    from dreambooth_ray.models.source import model_directory
    from dreambooth_ray.storage.store import Store

    loaded_protocol = _with_encoders(load_protocol(protocol), dino, clip)
    directory = model_directory(model, key="MODEL")
    about, run_config = read_bundle_about(directory), _read_run_config(model)
    subject_options = {
        "--photos": photos or (run_config.subject.photos if run_config else ""),
        "--identifier": identifier or about.get("identifier", ""),
        "--class-noun": class_noun or about.get("class_noun", ""),
    }
    for option, value in subject_options.items():
        if not value:
            raise ConfigError(f"{option} is not given, and {model} does not know it; give it")
    size_px = int(about["resolution"]) if "resolution" in about else None
    case = build_case(
        directory,
        Path(subject_options["--photos"]),
        subject_options["--identifier"],
        subject_options["--class-noun"],
        size_px,
    )
    out_store = Store(out or (f"{model}/evaluations" if run_config else "out/evaluations"))
    out_store.check_writable()
    with session(_make_session_config(subject_options, actors, gpus, address)):
        results = evaluate_model(
            case,
            loaded_protocol,
            out_store,
            actors=actors,
            gpu=gpus,
            on_progress=Stage("evaluation"),
            front=plot_run(Store(model), run_config.choice) if run_config else None,
        )
    totals = json.loads(results.read(RESULTS))["totals"]
    print(json.dumps({name: round(s["value"], 4) for name, s in totals.items()}, indent=1))
    print(f"{results.uri}/{REPORT}")


def _with_encoders(protocol: "Protocol", dino: str, clip: str) -> "Protocol":
    encoder_names = {"dino": dino} if dino else {}
    encoder_names |= {"clip_i": clip, "clip_t": clip} if clip else {}
    encoders = protocol.encoders.model_copy(update=encoder_names)
    return protocol.model_copy(update={"encoders": encoders})


def _read_run_config(model: str) -> "Config | None":
    from dreambooth_ray.runs import read_run_config
    from dreambooth_ray.storage import paths
    from dreambooth_ray.storage.store import Store

    folder = Path(model).expanduser()
    if not (folder / paths.CONFIG).is_file():
        return None
    return read_run_config(Store(str(folder)))


def _make_session_config(
    subject_options: dict[str, str], actors: int, gpus: bool, address: str
) -> "Config":
    """Configuration of a session: where it runs, and for how many actors."""
    from dreambooth_ray.config.machines import ClusterConfig
    from dreambooth_ray.config.schema import Config, PriorConfig, SubjectConfig

    subject = SubjectConfig(
        photos=subject_options["--photos"],
        identifier=subject_options["--identifier"],
        class_noun=subject_options["--class-noun"],
    )
    cluster = ClusterConfig(address=address or None, gpus=gpus)
    return Config(subject=subject, prior=PriorConfig(actors=actors), cluster=cluster)
