"""One evaluation from a model's directory to its results; run again, it goes on."""

import json
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dreambooth_ray.data.photographs import find_photographs, read_photograph
from dreambooth_ray.evaluation import scores
from dreambooth_ray.evaluation.encoders import load_image_encoder, load_image_text_encoder
from dreambooth_ray.evaluation.evaluation_report import render_evaluation_page
from dreambooth_ray.evaluation.protocol import (
    EvaluationPrompt,
    EvaluationProtocol,
    EvaluationSpec,
    build_evaluation_prompts,
)
from dreambooth_ray.evaluation.sample_actor import collect_samples, encoder_uris, generate_samples
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_directory import base_directory, model_hash
from dreambooth_ray.storage.manifest import file_hash
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.evaluator import load_evaluator

RESULTS, REPORT = "results.json", "report.html"
_VERSIONED = ("dreambooth-ray", "torch", "diffusers", "transformers", "numpy", "pillow")


@dataclass(frozen=True)
class EvaluatedModel:
    """What to evaluate: a model, its words, and the photographs it learnt from."""

    directory: Path
    identifier: str
    class_noun: str
    photographs: list[Path]
    size_px: int | None


@dataclass(frozen=True)
class PhotographAndPromptEmbeddings:
    """What generated images are compared with. vectors: of the photographs, by encoder use."""

    photographs: list[Image.Image]
    vectors: dict[str, Tensor]
    texts: Tensor


def make_evaluation_spec(case: EvaluatedModel, protocol: EvaluationProtocol) -> EvaluationSpec:
    """All that the numbers depend on; raises as `fill_sampling_defaults`."""
    return EvaluationSpec(
        protocol=protocol.fill_sampling_defaults(find_family(base_directory(case.directory))),
        model_hash=model_hash(case.directory),
        identifier=case.identifier,
        class_noun=case.class_noun,
        photographs=tuple(file_hash(p) for p in case.photographs),
        size_px=case.size_px,
    )


def build_evaluated_model(
    directory: Path, photos: Path, identifier: str, class_noun: str, size_px: int | None
) -> EvaluatedModel:
    """The case of a model and its photographs; raises DataError if they can't be read."""
    return EvaluatedModel(directory, identifier, class_noun, find_photographs(photos), size_px)


def embed_photographs_and_prompts(
    case: EvaluatedModel, protocol: EvaluationProtocol, prompts: list[EvaluationPrompt]
) -> PhotographAndPromptEmbeddings:
    """Load every encoder, embed photographs and prompts: refuses early what can't be used.

    raises: ConfigError naming the encoder, DataError naming the photograph
    """
    photographs = [read_photograph(p) for p in case.photographs]
    photograph_vectors = {
        use: load_image_encoder(uri, key=f"encoders.{use}").embed_images(photographs)
        for use, uri in encoder_uris(protocol.encoders).items()
    }
    image_text_encoder = load_image_text_encoder(protocol.encoders.clip_t, key="encoders.clip_t")
    prompt_vectors = (
        image_text_encoder.embed_texts([q.plain_prompt for q in prompts])
        if prompts
        else torch.zeros(0, 0)
    )
    return PhotographAndPromptEmbeddings(photographs, photograph_vectors, prompt_vectors)


def evaluate_model(
    case: EvaluatedModel,
    protocol: EvaluationProtocol,
    store: Store,
    *,
    actors: int,
    gpu: bool,
    on_progress: Callable[[int, int], None],
    front: Image.Image | None = None,
) -> Store:
    """Generate what is missing, score it, write results.json and report.html; needs Ray.

    store: the evaluations' folder; returns this one's, named after its specification
    front: for the page, the plot of the checkpoints that the run chose from
    raises: ConfigError, DataError, DreamBoothError
    """
    spec = make_evaluation_spec(case, protocol)
    prompts = build_evaluation_prompts(spec)
    references = embed_photographs_and_prompts(case, protocol, prompts)
    evaluation_store = store.sub(spec.digest)
    generate_samples(spec, prompts, case.directory, evaluation_store, actors, gpu, on_progress)
    with tempfile.TemporaryDirectory(prefix="dreambooth-results-") as folder:
        images, vectors_by_encoder = collect_samples(evaluation_store, len(prompts), Path(folder))
    image_vectors = {
        use: vectors_by_encoder[uri] for use, uri in encoder_uris(protocol.encoders).items()
    }
    all_scores = scores.compute_scores(
        protocol,
        scores.EvaluationEmbeddings(prompts, image_vectors, references.vectors, references.texts),
    )
    if protocol.truths:
        toy_scores = scores.compute_toy_scores(
            prompts, images, references.photographs, load_evaluator()
        )
        all_scores = scores.EvaluationScores(
            all_scores.totals | toy_scores, all_scores.prompts, all_scores.rows, all_scores.worst
        )
    results = {
        "conditions": {
            **spec.as_json(),
            "versions": {name: version(name) for name in _VERSIONED},
            "python": platform.python_version(),
            "device": "cuda" if gpu else "cpu",
        },
        **all_scores.as_json(),
    }
    evaluation_store.write(RESULTS, json.dumps(results, indent=1).encode())
    report_html = render_evaluation_page(
        spec, prompts, images, references.photographs, all_scores, results["conditions"], front
    )
    evaluation_store.write(REPORT, report_html.encode())
    return evaluation_store
