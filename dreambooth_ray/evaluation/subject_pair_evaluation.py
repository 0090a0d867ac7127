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
from dreambooth_ray.data.remote_images import fetch_photographs_folder
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.evaluation.encoders import load_image_encoder
from dreambooth_ray.evaluation.html_page import image_data_uri, render_page
from dreambooth_ray.evaluation.protocol import (
    EvaluationPrompt,
    EvaluationProtocol,
    EvaluationSpec,
    sampling_seed,
)
from dreambooth_ray.evaluation.sample_actor import collect_samples, generate_samples
from dreambooth_ray.evaluation.subject_pair_scores import (
    SubjectPairScores,
    crop_image_parts,
    score_pair_likeness_and_bleed,
)
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
class PairPromptIndices:
    """Positions, among all prompts, of the images of two subjects: of both, and of each alone."""

    first: int
    second: int
    together: list[int]


def list_subjects(config: Config) -> list[LearnedSubject]:
    """A run's subjects; raises ConfigError where it has one alone, DataError for photographs."""
    if len(config.all_subjects) < 2:
        raise ConfigError("the run has one subject; a run of several has `subjects` in its recipe")
    return [
        LearnedSubject(
            config.word(subject),
            f"a {config.word(subject)} {subject.class_noun}".strip(),
            tuple(find_photographs(fetch_photographs_folder(subject.photos))),
        )
        for subject in config.all_subjects
    ]


def list_pair_prompts(
    subjects: list[LearnedSubject], protocol: EvaluationProtocol
) -> tuple[list[EvaluationPrompt], list[list[int]], list[PairPromptIndices]]:
    """Every image: of each subject alone, and of every two; which are whose.

    Prompts are the protocol's that begin with the subject, one after the other.
    raises: ConfigError where it has none
    """
    prompt_templates = [
        prompt_template
        for prompt_template in protocol.prompts[protocol.choose_prompt_set("")]
        if prompt_template.startswith(_SUBJECT)
    ]
    if not prompt_templates:
        raise ConfigError(f"--protocol={protocol.name!r} has no prompt that begins {_SUBJECT!r}")
    prompts: list[EvaluationPrompt] = []

    def add_prompts(phrase: str) -> list[int]:
        first_prompt_index = len(prompts)
        for prompt_template in prompt_templates:
            prompt = prompt_template.replace(_SUBJECT, phrase)
            prompts.extend(
                EvaluationPrompt(
                    "subject", prompt, prompt, sampling_seed(protocol.seed, "subject", prompt, k)
                )
                for k in range(protocol.images_per_prompt)
            )
        return list(range(first_prompt_index, len(prompts)))

    alone_prompt_indices = [add_prompts(subject.phrase) for subject in subjects]
    pair_prompts = [
        PairPromptIndices(i, k, add_prompts(f"{subjects[i].phrase} and {subjects[k].phrase}"))
        for i, k in combinations(range(len(subjects)), 2)
    ]
    return prompts, alone_prompt_indices, pair_prompts


def evaluate_subject_pairs(
    directory: Path,
    subjects: list[LearnedSubject],
    protocol: EvaluationProtocol,
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
    prompts, alone_prompt_indices, pair_prompts = list_pair_prompts(subjects, protocol)
    image_encoder = load_image_encoder(protocol.encoders.dino, key="encoders.dino")
    photographs_by_subject = [[read_photograph(path) for path in s.photographs] for s in subjects]
    photograph_vectors = [image_encoder.embed_images(images) for images in photographs_by_subject]
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
        images, vectors_by_encoder = collect_samples(evaluation_store, len(prompts), Path(folder))
    image_part_vectors = [image_encoder.embed_images(crop_image_parts(image)) for image in images]
    image_vectors = vectors_by_encoder[protocol.encoders.dino]
    pair_scores = []
    for pair in pair_prompts:
        first_alone_indices = alone_prompt_indices[pair.first]
        second_alone_indices = alone_prompt_indices[pair.second]
        pair_scores.append(
            score_pair_likeness_and_bleed(
                (photograph_vectors[pair.first], photograph_vectors[pair.second]),
                (image_vectors[first_alone_indices], image_vectors[second_alone_indices]),
                [image_part_vectors[i] for i in pair.together],
                [image_part_vectors[i] for i in (*first_alone_indices, *second_alone_indices)],
            )
        )
    identifier_pairs = [
        (subjects[pair.first].identifier, subjects[pair.second].identifier) for pair in pair_prompts
    ]
    tiles = [[(images[i], prompts[i].prompt) for i in pair.together] for pair in pair_prompts]
    _write_pair_results(evaluation_store, spec, identifier_pairs, pair_scores, tiles)
    return evaluation_store


def _write_pair_results(
    evaluation_store: Store,
    spec: EvaluationSpec,
    identifier_pairs: list[tuple[str, str]],
    pair_scores: list[SubjectPairScores],
    tiles: list[list[tuple[Image.Image, str]]],
) -> None:
    named_scores = {
        name: value
        for pair_words, scores_of_pair in zip(identifier_pairs, pair_scores, strict=True)
        for name, value in name_pair_scores(pair_words, scores_of_pair).items()
    }
    results_record = {"conditions": spec.as_json(), "totals": named_scores}
    evaluation_store.write(RESULTS, json.dumps(results_record, indent=1).encode())
    evaluation_store.write(
        REPORT, _render_pairs_page(spec, identifier_pairs, pair_scores, tiles).encode()
    )


def name_pair_scores(words: tuple[str, str], scores: SubjectPairScores) -> dict[str, float]:
    """Every number of a pair by its name: "sks + zwx: bleed of sks" is how far sks's part is zwx.

    words: identifiers
    """
    pair_name = " + ".join(words)
    named_scores = {f"{pair_name}: both": scores.both}
    for measure_name, subject_values in asdict(scores).items():
        if measure_name != "both":
            for identifier, subject_value in zip(words, subject_values, strict=True):
                named_scores[f"{pair_name}: {measure_name.replace('_', ' ')} of {identifier}"] = (
                    subject_value
                )
    return named_scores


def _render_pairs_page(
    spec: EvaluationSpec,
    identifier_pairs: list[tuple[str, str]],
    pair_scores: list[SubjectPairScores],
    tiles: list[list[tuple[Image.Image, str]]],
) -> str:
    page_rows = [
        {
            "words": pair_words,
            "scores": scores_of_pair,
            "tiles": [(image_data_uri(image, _TILE_PX), prompt) for image, prompt in pair_tiles],
        }
        for pair_words, scores_of_pair, pair_tiles in zip(
            identifier_pairs, pair_scores, tiles, strict=True
        )
    ]
    return render_page(
        "pairs.html.j2",
        title=spec.identifier,
        protocol=spec.protocol.name,
        encoder=spec.protocol.encoders.dino,
        rows=page_rows,
    )
