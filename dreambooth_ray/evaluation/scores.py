"""From images, vectors and prompts to an evaluation's scores. Pure."""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dreambooth_ray.evaluation import image_metrics
from dreambooth_ray.evaluation.encoders import parse_attributes
from dreambooth_ray.evaluation.protocol import EvaluationPrompt, Protocol
from dreambooth_ray.toyworld.attributes import COLOUR_NAMES
from dreambooth_ray.toyworld.evaluator import Evaluator, fidelity, read_images

NUM_WORST = 5


@dataclass(frozen=True)
class Score:
    """A mean with its deviation over images; higher_is_better is None where neither is."""

    value: float
    deviation: float | None
    higher_is_better: bool
    meaning: str


@dataclass(frozen=True)
class Scores:
    """All numbers of one evaluation.

    rows: one a subject image; prompts: one a prompt; worst: indices of images
    """

    totals: dict[str, Score]
    prompts: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    worst: list[int]

    def as_json(self) -> dict[str, object]:
        """For a file."""
        return asdict(self)


@dataclass(frozen=True)
class ImageEmbeddings:
    """What scores are computed from; vectors by encoder use, one row for each prompt."""

    prompts: list[EvaluationPrompt]
    images: dict[str, Tensor]
    photographs: dict[str, Tensor]
    texts: Tensor

    def indices_of(self, kind: str) -> list[int]:
        """Indices of the prompts of one kind."""
        return [i for i, q in enumerate(self.prompts) if q.kind == kind]


def compute_scores(protocol: Protocol, embeddings: ImageEmbeddings) -> Scores:
    """The paper's measures over one evaluation. texts: (B, D), one for each prompt."""
    rows = _score_images(protocol, embeddings)
    indices_by_prompt = _group_by_prompt(embeddings, "subject")
    class_vectors = embeddings.images["dino"][embeddings.indices_of("class")]
    totals = {
        "dino": _mean_score(
            rows, "dino", True, "likeness to the photographs, by the subject encoder"
        ),
        "clip_i": _mean_score(
            rows, "clip_i", True, "likeness to the photographs, by the second encoder"
        ),
        "clip_t": _mean_score(rows, "clip_t", True, "agreement with the prompt"),
        "pres": Score(
            image_metrics.prior_preservation(class_vectors, embeddings.photographs["dino"]),
            None, False, "likeness of the bare class to the subject: what the class has lost",
        ),
        "memorised": Score(
            statistics.fmean(r["copied"] for r in rows),
            None, False, "share of images that copy a photograph",
        ),
    }  # fmt: skip
    if any(len(g) > 1 for g in indices_by_prompt.values()):
        diversity = image_metrics.diversity(
            [embeddings.images["dino"][g] for g in indices_by_prompt.values()]
        )
        totals["div"] = Score(diversity, None, True, "spread of images of one prompt")
    prompts = [
        {"prompt": prompt, **{
            key: statistics.fmean(rows[i][key] for i in range(len(rows)) if rows[i]["index"] in g)
            for key in ("dino", "clip_i", "clip_t")
        }, "pictures": g}
        for prompt, g in indices_by_prompt.items()
    ]  # fmt: skip
    return Scores(totals, prompts, rows, find_worst(rows))


def _score_images(protocol: Protocol, embeddings: ImageEmbeddings) -> list[dict[str, Any]]:
    subject_indices = embeddings.indices_of("subject")
    dino = image_metrics.photograph_similarity(
        embeddings.images["dino"][subject_indices], embeddings.photographs["dino"]
    )
    clip_i = image_metrics.photograph_similarity(
        embeddings.images["clip_i"][subject_indices], embeddings.photographs["clip_i"]
    )
    clip_t = image_metrics.prompt_agreement(
        embeddings.images["clip_t"][subject_indices], embeddings.texts[subject_indices]
    )
    nearest = image_metrics.nearest_photographs(
        embeddings.images["copies"][subject_indices],
        embeddings.photographs["copies"],
        protocol.copy_bound,
    )
    return [
        {
            "index": i,
            "prompt": embeddings.prompts[i].prompt,
            "seed": embeddings.prompts[i].seed,
            "dino": float(d),
            "clip_i": float(c),
            "clip_t": float(t),
            "nearest_photograph": n.photograph,
            "nearest_cosine": n.cosine,
            "copied": n.copied,
        }
        for i, d, c, t, n in zip(subject_indices, dino, clip_i, clip_t, nearest, strict=True)
    ]


def _group_by_prompt(embeddings: ImageEmbeddings, kind: str) -> dict[str, list[int]]:
    indices_by_prompt: dict[str, list[int]] = {}
    for i in embeddings.indices_of(kind):
        indices_by_prompt.setdefault(embeddings.prompts[i].prompt, []).append(i)
    return indices_by_prompt


def _mean_score(rows: list[dict[str, Any]], key: str, better: bool, meaning: str) -> Score:
    values = [r[key] for r in rows]
    return Score(statistics.fmean(values), statistics.pstdev(values), better, meaning)


def find_worst(rows: list[dict[str, Any]], count: int = NUM_WORST) -> list[int]:
    """Indices of the images that are worst in likeness and agreement together.

    By the sum of both, each in its own deviations, so that neither scale decides.
    """
    standardized_sums = [0.0] * len(rows)
    for key in ("dino", "clip_t"):
        values = [r[key] for r in rows]
        mean, deviation = statistics.fmean(values), statistics.pstdev(values) or 1.0
        standardized_sums = [
            s + (v - mean) / deviation for s, v in zip(standardized_sums, values, strict=True)
        ]
    ranked_rows = sorted(range(len(rows)), key=lambda k: (standardized_sums[k], k))
    return [rows[k]["index"] for k in ranked_rows[:count]]


def compute_toy_scores(
    prompts: list[EvaluationPrompt],
    images: list[Image.Image],
    photographs: list[Image.Image],
    network: Evaluator,
) -> dict[str, Score]:
    """What only the toy world can know: its evaluator's readings against the prompts."""
    image_reading = read_images(network, images)
    photograph_reading = read_images(network, photographs)

    def share_correct(kind: str, heads: Callable[[str], bool]) -> float:
        correct_flags = [
            image_reading.attributes[head][i] == name
            for i, prompt in enumerate(prompts)
            if prompt.kind == kind
            for head, name in parse_attributes(prompt.plain_prompt).items()
            if heads(head)
        ]
        return statistics.fmean(correct_flags) if correct_flags else 0.0

    is_subject = torch.tensor([q.kind == "subject" for q in prompts])
    class_colours = [c for c, q in zip(image_reading.attributes["colour"], prompts, strict=True)
               if q.kind == "class"]  # fmt: skip
    identity_fidelity = fidelity(image_reading.identity[is_subject], photograph_reading.identity)
    toy_scores = {
        "subject_fidelity": Score(
            identity_fidelity, None, True, "identity cosine to the photographs",
        ),
        "prompt_fidelity": Score(
            share_correct("subject", lambda head: head != "class"),
            None, True, "share of places, hats, colours and patterns drawn as asked",
        ),
        "diversity": Score(
            image_metrics.entropy(class_colours, len(COLOUR_NAMES)),
            None, True, "entropy of the colours of the bare class, 1 if all are equally frequent",
        ),
    }  # fmt: skip
    if any(q.kind == "other" for q in prompts):
        drift = 1 - share_correct("other", lambda head: head == "class")
        toy_scores["drift"] = Score(drift, None, False, "share of other classes no longer drawn")
    return toy_scores
