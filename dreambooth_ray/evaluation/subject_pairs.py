"""All pairs of a run's subjects in one image each, from its bundle to scores and a page."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

from PIL import Image

from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.photographs import find_photographs, read_photograph
from dreambooth_ray.data.remote_images import photographs_folder
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.evaluation.encoders import load_encoder
from dreambooth_ray.evaluation.html_page import image_uri, render_page
from dreambooth_ray.evaluation.protocol import (
    EvaluationPrompt,
    EvaluationSpec,
    Protocol,
    sampling_seed,
)
from dreambooth_ray.evaluation.sample_actor import collect_samples, generate_samples
from dreambooth_ray.evaluation.subject_pair_scores import PairScores, crop_parts, score_pair
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_directory import base_directory, model_hash
from dreambooth_ray.storage.manifest import file_hash
from dreambooth_ray.storage.store import Store

RESULTS, REPORT = "pairs.json", "pairs.html"
_SUBJECT, _TILE_PX = "a {identifier} {class_noun}", 160


@dataclass(frozen=True)
class LearnedSubject:
    """One of the subjects that a run has learnt. phrase: as prompts name it, "a sks dog" """

    identifier: str
    phrase: str
    photographs: tuple[Path, ...]


@dataclass(frozen=True)
class PairPrompts:
    """Positions, among all prompts, of the images of two subjects: of both, and of each alone."""

    first: int
    second: int
    together: list[int]


def list_subjects(config: Config) -> list[LearnedSubject]:
    """A run's subjects; raises ConfigError where it has one alone, DataError for photographs."""
    if len(config.all_subjects) < 2:
        raise ConfigError(
            "--together: the run has one subject; a run of several has `subjects` in its recipe"
        )
    return [
        LearnedSubject(
            config.word(subject),
            f"a {config.word(subject)} {subject.class_noun}".strip(),
            tuple(find_photographs(photographs_folder(subject.photos))),
        )
        for subject in config.all_subjects
    ]


def list_prompts(
    subjects: list[LearnedSubject], protocol: Protocol
) -> tuple[list[EvaluationPrompt], list[list[int]], list[PairPrompts]]:
    """Every image: of each subject alone, and of every two; which are whose.

    Prompts are the protocol's that begin with the subject, one after the other.
    raises: ConfigError where it has none
    """
    templates = [
        template
        for template in protocol.prompts[protocol.choose_prompt_set("")]
        if template.startswith(_SUBJECT)
    ]
    if not templates:
        raise ConfigError(f"--protocol={protocol.name!r} has no prompt that begins {_SUBJECT!r}")
    prompts: list[EvaluationPrompt] = []

    def add_prompts(phrase: str) -> list[int]:
        first_index = len(prompts)
        for template in templates:
            prompt = template.replace(_SUBJECT, phrase)
            prompts.extend(
                EvaluationPrompt(
                    "subject", prompt, prompt, sampling_seed(protocol.seed, "subject", prompt, k)
                )
                for k in range(protocol.images_per_prompt)
            )
        return list(range(first_index, len(prompts)))

    alone_positions = [add_prompts(subject.phrase) for subject in subjects]
    pairs = [
        PairPrompts(i, k, add_prompts(f"{subjects[i].phrase} and {subjects[k].phrase}"))
        for i, k in combinations(range(len(subjects)), 2)
    ]
    return prompts, alone_positions, pairs


def evaluate_subject_pairs(
    directory: Path,
    subjects: list[LearnedSubject],
    protocol: Protocol,
    store: Store,
    *,
    size_px: int,
    actors: int,
    gpu: bool,
    on_progress: Callable[[int, int], None],
) -> Store:
    """Generate what is missing, score it, write pairs.json and pairs.html; needs Ray.

    directory: of the model; size_px: side of the images; store: the evaluations' folder; returns
    this one's
    raises: ConfigError, DataError, DreamBoothError
    """
    protocol = protocol.fill_sampling_defaults(find_family(base_directory(directory)))
    prompts, alone_positions, pairs = list_prompts(subjects, protocol)
    encoder = load_encoder(protocol.encoders.dino, key="encoders.dino")
    photographs = [[read_photograph(path) for path in s.photographs] for s in subjects]
    photograph_vectors = [encoder.embed_images(images) for images in photographs]
    spec = EvaluationSpec(
        protocol,
        model_hash(directory),
        " and ".join(subject.phrase for subject in subjects),
        "",
        tuple(file_hash(path) for subject in subjects for path in subject.photographs),
        size_px,
    )
    evaluation_store = store.sub(spec.digest)
    generate_samples(spec, prompts, directory, evaluation_store, actors, gpu, on_progress)
    with tempfile.TemporaryDirectory(prefix="dreambooth-results-") as folder:
        images, image_vectors = collect_samples(evaluation_store, len(prompts), Path(folder))
    part_vectors = [encoder.embed_images(crop_parts(image)) for image in images]
    whole_vectors = image_vectors[protocol.encoders.dino]
    pair_scores = []
    for pair in pairs:
        first_positions = alone_positions[pair.first]
        second_positions = alone_positions[pair.second]
        pair_scores.append(
            score_pair(
                (photograph_vectors[pair.first], photograph_vectors[pair.second]),
                (whole_vectors[first_positions], whole_vectors[second_positions]),
                [part_vectors[i] for i in pair.together],
                [part_vectors[i] for i in (*first_positions, *second_positions)],
            )
        )
    identifier_pairs = [
        (subjects[pair.first].identifier, subjects[pair.second].identifier) for pair in pairs
    ]
    tiles = [[(images[i], prompts[i].prompt) for i in pair.together] for pair in pairs]
    _write_results(evaluation_store, spec, identifier_pairs, pair_scores, tiles)
    return evaluation_store


def _write_results(
    evaluation_store: Store,
    spec: EvaluationSpec,
    identifier_pairs: list[tuple[str, str]],
    pair_scores: list[PairScores],
    tiles: list[list[tuple[Image.Image, str]]],
) -> None:
    totals = {
        name: value
        for pair_words, scores in zip(identifier_pairs, pair_scores, strict=True)
        for name, value in list_totals(pair_words, scores).items()
    }
    record = {"conditions": spec.as_json(), "totals": totals}
    evaluation_store.write(RESULTS, json.dumps(record, indent=1).encode())
    evaluation_store.write(
        REPORT, _render_pairs(spec, identifier_pairs, pair_scores, tiles).encode()
    )


def list_totals(words: tuple[str, str], scores: PairScores) -> dict[str, float]:
    """Every number of a pair by its name: "sks + zwx: bleed of sks" is how far sks's part is zwx.

    words: identifiers
    """
    pair_name = " + ".join(words)
    totals = {f"{pair_name}: both": scores.both}
    for measure_name, values in asdict(scores).items():
        if measure_name != "both":
            for identifier, value in zip(words, values, strict=True):
                totals[f"{pair_name}: {measure_name.replace('_', ' ')} of {identifier}"] = value
    return totals


def _render_pairs(
    spec: EvaluationSpec,
    identifier_pairs: list[tuple[str, str]],
    pair_scores: list[PairScores],
    tiles: list[list[tuple[Image.Image, str]]],
) -> str:
    page_rows = [
        {
            "words": pair_words,
            "scores": scores,
            "tiles": [(image_uri(image, _TILE_PX), prompt) for image, prompt in pair_tiles],
        }
        for pair_words, scores, pair_tiles in zip(identifier_pairs, pair_scores, tiles, strict=True)
    ]
    return render_page(
        "pairs.html.j2",
        title=spec.identifier,
        protocol=spec.protocol.name,
        encoder=spec.protocol.encoders.dino,
        rows=page_rows,
    )
