"""The verbs as functions: train, generate, evaluate, export.

They start a local Ray where they need one and none is connected, and show progress on standard
error unless `quiet`. Heavy modules are imported by the function that needs them.
"""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.evaluation_request import (
    fill_evaluated_model,
    load_evaluation_protocol,
    make_ray_session_config,
    read_local_run_config,
)
from dreambooth_ray.imports import pause_garbage_collection

if TYPE_CHECKING:
    from PIL import Image

# ruff: noqa: PLC0415


def train(
    recipe: str | Path | Config, *overrides: str, force: bool = False, quiet: bool = False
) -> str:
    """Fine-tune on a folder of photographs; returns the run's URI.

    A run that is there already goes on where it stood.

    recipe: a YAML file, a shipped recipe, or a configuration
    overrides: `key.path=value`, for example "train.steps=200"
    force: go on though the run's configuration was another
    raises: DreamBoothError; ConfigError names the key at fault
    """
    from cluster.session import check_run_cluster_is_reachable
    from dreambooth_ray.display import QuietDisplay, TrainingDisplay
    from dreambooth_ray.preparation import fit_into_memory, prepare_run
    from dreambooth_ray.runs import is_finished, open_run
    from dreambooth_ray.storage.version_catalog import publish_run

    config = _load_recipe_config(recipe, list(overrides))
    training_display = QuietDisplay() if quiet else TrainingDisplay()
    check_run_cluster_is_reachable(config)
    prepared_run = fit_into_memory(prepare_run(config, training_display), training_display.say)
    run_store = open_run(
        prepared_run.config, force, prepared_run.inputs, training_display.say, requested=config
    )
    training_display.say(f"run {run_store.uri}")
    if not is_finished(run_store):
        with _connect_ray(prepared_run.config, _import_training_pipeline, imports_ahead=True):
            from dreambooth_ray import pipeline

            pipeline.train(prepared_run, run_store, training_display)
    else:
        # Its process may have ended between the bundle and this.
        publish_run(run_store)
    return run_store.uri


def generate(
    model: str | Path,
    prompt: str = "",
    *,
    num_images: int = 1,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    loras: Sequence[str] = (),
    quiet: bool = False,
    **settings: Any,
) -> "list[Image.Image]":
    """Generate images with a trained subject, image k with seed + k.

    `Engine(model)` keeps a model loaded for more than one call.

    model: a run, a bundle, or a model as model.uri
    prompt: a bundle's own if empty
    device: auto (a GPU where there is one), cpu, cuda or cuda:N
    dtype: auto (half on a GPU, else float32), float32, bfloat16 or float16
    loras: adapters to add, each a file of any trainer or a run, as "style.safetensors:0.8"
    settings: further fields of `sampling.request.Request`, such as guidance_scale=5.0
    raises: ConfigError naming the setting, CheckpointError, StorageError
    """
    from dreambooth_ray.adapters.adapter_source import locate_adapters
    from dreambooth_ray.models.model_directory import model_outline

    adapters = locate_adapters(loras, model_outline(str(model), "MODEL"), "loras")
    with pause_garbage_collection():
        from dreambooth_ray.display import ProgressStage
        from dreambooth_ray.generation import (
            build_adapter_uses,
            create_engine,
            default_to_bundle_prompt,
            load_adapters,
            resolve_model_directory,
        )
        from dreambooth_ray.sampling.request import Request

    model_folder = resolve_model_directory(str(model))
    prompt_text = default_to_bundle_prompt(prompt, model_folder, str(model))
    try:
        adapter_uses = build_adapter_uses(adapters)
        image_requests = [
            Request(prompt_text, seed + index, adapters=adapter_uses, **settings)
            for index in range(num_images)
        ]
    except TypeError as error:
        raise ConfigError(f"generate: {error}; see sampling.request.Request") from error
    sampling_engine = create_engine(model_folder, device, dtype)
    load_adapters(sampling_engine, adapters)
    image_outputs = sampling_engine.sample(
        image_requests, None if quiet else ProgressStage("images")
    )
    return [image_output.image for image_output in image_outputs]


@dataclass(frozen=True)
class Evaluation:
    """Where an evaluation lies, and its totals by measure."""

    uri: str
    report: str
    totals: dict[str, float]


def evaluate(
    model: str | Path,
    protocol: str = "dreambench",
    *,
    photos: str | Path = "",
    identifier: str = "",
    class_noun: str = "",
    dino: str = "",
    clip: str = "",
    actors: int = 1,
    gpus: bool = False,
    address: str = "",
    out: str | Path = "",
    quiet: bool = False,
) -> Evaluation:
    """Generate a protocol's images and score them; called again, it goes on where it stood.

    model: a run, a bundle, or a model as model.uri
    protocol: dreambench, toyworld, or a YAML file; dino, clip: other encoders than its own
    photos, identifier, class_noun: the subject; a run knows its own
    actors, gpus: Ray actors that draw, and whether each has a GPU; address: of a Ray cluster
    out: folder or URI; the run's own, or out/evaluations
    raises: ConfigError, DataError, DreamBoothError
    """
    from dreambooth_ray.models.model_directory import model_outline

    model_outline(str(model), "MODEL")
    from dreambooth_ray.display import ProgressStage
    from dreambooth_ray.evaluation.checkpoint_follower import plot_run_front
    from dreambooth_ray.evaluation.model_evaluation import REPORT, RESULTS, evaluate_model
    from dreambooth_ray.storage import paths
    from dreambooth_ray.storage.store import Store

    model_uri = str(model)
    loaded_protocol = load_evaluation_protocol(protocol, dino, clip)
    run_config = read_local_run_config(model_uri)
    photo_folder = str(photos) or (run_config.subject.photos if run_config else "")
    model_to_evaluate = fill_evaluated_model(model_uri, photo_folder, identifier, class_noun)
    evaluations_store = Store(
        str(out) or (f"{model_uri}/{paths.EVALUATIONS}" if run_config else "out/evaluations")
    )
    evaluations_store.check_writable()
    with _connect_ray(make_ray_session_config(actors, gpus, address)):
        results_store = evaluate_model(
            model_to_evaluate,
            loaded_protocol,
            evaluations_store,
            actors=actors,
            gpu=gpus,
            on_progress=(lambda *_: None) if quiet else ProgressStage("evaluation"),
            front=plot_run_front(Store(model_uri), run_config.choice) if run_config else None,
        )
    score_totals = json.loads(results_store.read(RESULTS))["totals"]
    value_by_measure = {name: score["value"] for name, score in score_totals.items()}
    return Evaluation(results_store.uri, f"{results_store.uri}/{REPORT}", value_by_measure)


def evaluate_pairs(
    run: str | Path,
    protocol: str = "dreambench",
    *,
    dino: str = "",
    actors: int = 1,
    gpus: bool = False,
    address: str = "",
    out: str | Path = "",
    quiet: bool = False,
) -> Evaluation:
    """Ask for every two subjects of a run in one image; score how far one bleeds into the other.

    run: of several subjects, by its folder
    protocol, dino, actors, gpus, address, out: as of `evaluate`
    returns: totals are by pair, measure and subject
    raises: ConfigError, DataError, DreamBoothError
    """
    from dreambooth_ray.display import ProgressStage
    from dreambooth_ray.evaluation import subject_pair_evaluation
    from dreambooth_ray.models.model_directory import model_directory
    from dreambooth_ray.storage import paths
    from dreambooth_ray.storage.store import Store

    config = read_local_run_config(str(run))
    if config is None:
        raise ConfigError(f"{run} is no folder of a run; give that of a run of several subjects")
    subjects = subject_pair_evaluation.list_subjects(config)
    loaded_protocol = load_evaluation_protocol(protocol, dino, "")
    model_folder = model_directory(str(run), key="MODEL")
    evaluations_store = Store(str(out) or f"{run}/{paths.EVALUATIONS}")
    evaluations_store.check_writable()
    with _connect_ray(make_ray_session_config(actors, gpus, address)):
        results_store = subject_pair_evaluation.evaluate_subject_pairs(
            model_folder,
            subjects,
            loaded_protocol,
            evaluations_store,
            size_px=config.train.side_px,
            actors=actors,
            gpu=gpus,
            on_progress=(lambda *_: None) if quiet else ProgressStage("evaluation"),
        )
    score_totals = json.loads(results_store.read(subject_pair_evaluation.RESULTS))["totals"]
    return Evaluation(
        results_store.uri, f"{results_store.uri}/{subject_pair_evaluation.REPORT}", score_totals
    )


def export(
    run: str | Path, out: str | Path, format: str = "diffusers", *, half: bool = False
) -> Path:
    """Write a trained subject as other programs read it; returns the path.

    run: a run, a bundle, or a model as model.uri
    out: a folder for diffusers, else a .safetensors file; neither may be there yet
    format: diffusers, lora, kohya or single-file
    half: float16 instead of float32
    raises: ConfigError, StorageError
    """
    from dreambooth_ray.models.model_directory import model_outline

    model_outline(str(run), "RUN")
    from dreambooth_ray.bundles.export_formats import export_run
    from dreambooth_ray.models.components import quiet_libraries

    quiet_libraries()
    return export_run(str(run), format, Path(out).expanduser(), half)


def _load_recipe_config(recipe: str | Path | Config, overrides: list[str]) -> Config:
    from dreambooth_ray.config.load import load_config, override_config

    if not isinstance(recipe, Config):
        return load_config(str(recipe), overrides)
    return override_config(recipe, overrides) if overrides else recipe


def _connect_ray(
    config: Config, meanwhile: Callable[[], object] = lambda: None, *, imports_ahead: bool = False
) -> AbstractContextManager[None]:
    """Ray as `session` has it; who has connected to one already keeps that."""
    from cluster.session import session

    ray_module = sys.modules.get("ray")
    if ray_module is not None and ray_module.is_initialized():
        return nullcontext()
    return session(config, meanwhile, imports_ahead=imports_ahead)


def _import_training_pipeline() -> None:
    with pause_garbage_collection():
        import dreambooth_ray.pipeline  # noqa: F401
