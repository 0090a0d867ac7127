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
from dreambooth_ray.evaluation.protocol import EvaluationPrompt, EvaluationProtocol
from dreambooth_ray.toyworld.attributes import COLOUR_NAMES
from dreambooth_ray.toyworld.evaluator import Evaluator, fidelity, predict_attributes

NUM_WORST = 5


@dataclass(frozen=True)
class MetricSummary:
    """A mean with its deviation over images; higher_is_better is None where neither is."""

    value: float
    deviation: float | None
    higher_is_better: bool
    meaning: str


@dataclass(frozen=True)
class EvaluationScores:
    """All numbers of one evaluation.

    rows: one a subject image; prompts: one a prompt; worst: indices of images
    """

    totals: dict[str, MetricSummary]
    prompts: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    worst: list[int]

    def as_json(self) -> dict[str, object]:
        """For a file."""
        return asdict(self)


@dataclass(frozen=True)
class EvaluationEmbeddings:
    """What scores are computed from; vectors by encoder use, one row for each prompt."""

    prompts: list[EvaluationPrompt]
    images: dict[str, Tensor]
    photographs: dict[str, Tensor]
    texts: Tensor

    def prompt_indices_of_kind(self, kind: str) -> list[int]:
        """Indices of the prompts of one kind."""
        return [i for i, q in enumerate(self.prompts) if q.kind == kind]


def compute_scores(
    protocol: EvaluationProtocol, embeddings: EvaluationEmbeddings
) -> EvaluationScores:
    """The paper's measures over one evaluation."""
    image_rows = _score_subject_images(protocol, embeddings)
    image_indices_by_prompt = _group_by_prompt(embeddings, "subject")
    class_vectors = embeddings.images["dino"][embeddings.prompt_indices_of_kind("class")]
    total_scores = {
        "dino": _mean_score(
            image_rows, "dino", True, "likeness to the photographs, by the subject encoder"
        ),
        "clip_i": _mean_score(
            image_rows, "clip_i", True, "likeness to the photographs, by the second encoder"
        ),
        "clip_t": _mean_score(image_rows, "clip_t", True, "agreement with the prompt"),
        "pres": MetricSummary(
            image_metrics.prior_preservation_score(class_vectors, embeddings.photographs["dino"]),
            None, False, "likeness of the bare class to the subject: what the class has lost",
        ),
        "memorised": MetricSummary(
            statistics.fmean(r["copied"] for r in image_rows),
            None, False, "share of images that copy a photograph",
        ),
    }  # fmt: skip
    if any(len(g) > 1 for g in image_indices_by_prompt.values()):
        diversity = image_metrics.diversity(
            [embeddings.images["dino"][g] for g in image_indices_by_prompt.values()]
        )
        total_scores["div"] = MetricSummary(diversity, None, True, "spread of images of one prompt")
    prompt_rows = [
        {"prompt": prompt, **{
            key: statistics.fmean(
                image_rows[i][key] for i in range(len(image_rows)) if image_rows[i]["index"] in g
            )
            for key in ("dino", "clip_i", "clip_t")
        }, "pictures": g}
        for prompt, g in image_indices_by_prompt.items()
    ]  # fmt: skip
    return EvaluationScores(total_scores, prompt_rows, image_rows, find_worst_images(image_rows))


def _score_subject_images(
    protocol: EvaluationProtocol, embeddings: EvaluationEmbeddings
) -> list[dict[str, Any]]:
    subject_image_indices = embeddings.prompt_indices_of_kind("subject")
    dino_scores = image_metrics.photograph_similarity(
        embeddings.images["dino"][subject_image_indices], embeddings.photographs["dino"]
    )
    clip_i_scores = image_metrics.photograph_similarity(
        embeddings.images["clip_i"][subject_image_indices], embeddings.photographs["clip_i"]
    )
    clip_t_scores = image_metrics.prompt_agreement(
        embeddings.images["clip_t"][subject_image_indices], embeddings.texts[subject_image_indices]
    )
    nearest_photographs = image_metrics.nearest_photographs(
        embeddings.images["copies"][subject_image_indices],
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
        for i, d, c, t, n in zip(
            subject_image_indices,
            dino_scores,
            clip_i_scores,
            clip_t_scores,
            nearest_photographs,
            strict=True,
        )
    ]


def _group_by_prompt(embeddings: EvaluationEmbeddings, kind: str) -> dict[str, list[int]]:
    image_indices_by_prompt: dict[str, list[int]] = {}
    for i in embeddings.prompt_indices_of_kind(kind):
        image_indices_by_prompt.setdefault(embeddings.prompts[i].prompt, []).append(i)
    return image_indices_by_prompt


def _mean_score(rows: list[dict[str, Any]], key: str, better: bool, meaning: str) -> MetricSummary:
    score_values = [r[key] for r in rows]
    return MetricSummary(
        statistics.fmean(score_values), statistics.pstdev(score_values), better, meaning
    )


def find_worst_images(rows: list[dict[str, Any]], count: int = NUM_WORST) -> list[int]:
    """Indices of the images that are worst in likeness and agreement together.

    By the sum of both, each in its own deviations, so that neither scale decides.
    """
    standardized_score_sums = [0.0] * len(rows)
    for key in ("dino", "clip_t"):
        score_values = [r[key] for r in rows]
        mean_score, score_deviation = (
            statistics.fmean(score_values),
            statistics.pstdev(score_values) or 1.0,
        )
        standardized_score_sums = [
            s + (v - mean_score) / score_deviation
            for s, v in zip(standardized_score_sums, score_values, strict=True)
        ]
    ranked_row_indices = sorted(range(len(rows)), key=lambda k: (standardized_score_sums[k], k))
    return [rows[k]["index"] for k in ranked_row_indices[:count]]


def compute_toy_scores(
    prompts: list[EvaluationPrompt],
    images: list[Image.Image],
    photographs: list[Image.Image],
    network: Evaluator,
) -> dict[str, MetricSummary]:
    """What only the toy world can know: its evaluator's readings against the prompts."""
    image_predictions = predict_attributes(network, images)
    photograph_predictions = predict_attributes(network, photographs)

    def measure_correct_attribute_share(kind: str, heads: Callable[[str], bool]) -> float:
        correct_flags = [
            image_predictions.attributes[head][i] == name
            for i, prompt in enumerate(prompts)
            if prompt.kind == kind
            for head, name in parse_attributes(prompt.plain_prompt).items()
            if heads(head)
        ]
        return statistics.fmean(correct_flags) if correct_flags else 0.0

    is_subject_prompt = torch.tensor([q.kind == "subject" for q in prompts])
    class_image_colours = [c for c, q in zip(
        image_predictions.attributes["colour"], prompts, strict=True)
               if q.kind == "class"]  # fmt: skip
    identity_fidelity = fidelity(
        image_predictions.identity[is_subject_prompt], photograph_predictions.identity
    )
    toy_scores = {
        "subject_fidelity": MetricSummary(
            identity_fidelity, None, True, "identity cosine to the photographs",
        ),
        "prompt_fidelity": MetricSummary(
            measure_correct_attribute_share("subject", lambda head: head != "class"),
            None, True, "share of places, hats, colours and patterns drawn as asked",
        ),
        "diversity": MetricSummary(
            image_metrics.entropy(class_image_colours, len(COLOUR_NAMES)),
            None, True, "entropy of the colours of the bare class, 1 if all are equally frequent",
        ),
    }  # fmt: skip
    if any(q.kind == "other" for q in prompts):
        drift = 1 - measure_correct_attribute_share("other", lambda head: head == "class")
        toy_scores["drift"] = MetricSummary(
            drift, None, False, "share of other classes no longer drawn"
        )
    return toy_scores
