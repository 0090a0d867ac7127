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
from dreambooth_ray.evaluation.encoders import load_encoder, load_text_encoder
from dreambooth_ray.evaluation.evaluation_report import report_page
from dreambooth_ray.evaluation.protocol import EvaluationPrompt, Protocol, Spec, evaluation_prompts
from dreambooth_ray.evaluation.sample_actor import collect, encoder_uris, generate_samples
from dreambooth_ray.models.source import model_hash
from dreambooth_ray.storage.manifest import file_hash
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.evaluator import load_evaluator

RESULTS, REPORT = "results.json", "report.html"
_VERSIONED = ("dreambooth-ray", "torch", "diffusers", "transformers", "numpy", "pillow")


@dataclass(frozen=True)
class Case:
    """What is to be evaluated: a model, its words, and the photographs it learnt from."""

    directory: Path
    identifier: str
    class_noun: str
    photographs: list[Path]
    size_px: int | None


@dataclass(frozen=True)
class Known:
    """What is known before anything is drawn."""

    photographs: list[Image.Image]
    vectors: dict[str, Tensor]
    texts: Tensor


def make_spec(case: Case, protocol: Protocol) -> Spec:
    """All that the numbers depend on."""
    return Spec(
        protocol=protocol,
        model_hash=model_hash(case.directory),
        identifier=case.identifier,
        class_noun=case.class_noun,
        photographs=tuple(file_hash(p) for p in case.photographs),
        size_px=case.size_px,
    )


def find_case(
    directory: Path, photos: Path, identifier: str, class_noun: str, size_px: int | None
) -> Case:
    """raises DataError if the photographs can't be read."""
    return Case(directory, identifier, class_noun, find_photographs(photos), size_px)


def look_ahead(case: Case, protocol: Protocol, asked: list[EvaluationPrompt]) -> Known:
    """Load every encoder and read photographs and prompts: refuses early what can't be used.

    raises: ConfigError naming the encoder, DataError naming the photograph
    """
    photographs = [read_photograph(p) for p in case.photographs]
    vectors = {
        use: load_encoder(uri, key=f"encoders.{use}").embed_images(photographs)
        for use, uri in encoder_uris(protocol.encoders).items()
    }
    reader = load_text_encoder(protocol.encoders.clip_t, key="encoders.clip_t")
    texts = reader.embed_texts([q.asked for q in asked]) if asked else torch.zeros(0, 0)
    return Known(photographs, vectors, texts)


def evaluate(
    case: Case,
    protocol: Protocol,
    store: Store,
    *,
    actors: int,
    gpu: bool,
    on_progress: Callable[[int, int], None],
    front: Image.Image | None = None,
) -> Store:
    """Draw what is missing, score it, write results.json and report.html; Ray must be there.

    store: the evaluations' folder; returns this one's, named after its specification
    front: for the page, the plot of the checkpoints that the run chose from
    raises: ConfigError, DataError, DreamBoothError
    """
    spec = make_spec(case, protocol)
    asked = evaluation_prompts(spec)
    known = look_ahead(case, protocol, asked)
    place = store.sub(spec.digest)
    generate_samples(spec, asked, case.directory, place, actors, gpu, on_progress)
    with tempfile.TemporaryDirectory(prefix="dreambooth-results-") as folder:
        images, vectors = collect(place, len(asked), Path(folder))
    made = {use: vectors[uri] for use, uri in encoder_uris(protocol.encoders).items()}
    found = scores.score(protocol, scores.ImageEmbeddings(asked, made, known.vectors, known.texts))
    if protocol.truths:
        truths = scores.truths(asked, images, known.photographs, load_evaluator())
        found = scores.Scores(found.totals | truths, found.prompts, found.rows, found.worst)
    results = {
        "conditions": {
            **spec.as_json(),
            "versions": {name: version(name) for name in _VERSIONED},
            "python": platform.python_version(),
            "device": "cuda" if gpu else "cpu",
        },
        **found.as_json(),
    }
    place.write(RESULTS, json.dumps(results, indent=1).encode())
    page = report_page(spec, asked, images, known.photographs, found, results["conditions"], front)
    place.write(REPORT, page.encode())
    return place
