"""Scores models of one subject by two protocols, the toy world's made short."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.photographs import find_photographs, read_photograph
from dreambooth_ray.evaluation import scores
from dreambooth_ray.evaluation.encoders import load_encoder, load_text_encoder
from dreambooth_ray.evaluation.image_metrics import diversity
from dreambooth_ray.evaluation.protocol import (
    EvaluationSpec,
    Protocol,
    evaluation_prompts,
    load_protocol,
)
from dreambooth_ray.models.components import Components
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.toyworld.evaluator import load_evaluator

# Half the UNet's evaluations; benchmarks/results/savers.json shows no loss of quality.
CACHE_EVERY = 2
_BRIEF = {"num_inference_steps": 10, "solver": "dpmpp_2m", "images_per_other": 1}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "chosen": {**_BRIEF, "seed": 0, "images_per_prompt": 1, "class_images": 8, "other_prompts": ()},
    "judged": {**_BRIEF, "seed": 1, "images_per_prompt": 2, "class_images": 16},
}
# Each takes every other of the toy world's 25 prompts; both hold all kinds of them.
_FIRST = {"chosen": 1, "judged": 0}
Scores = dict[str, dict[str, float]]


def load_brief_protocol(name: str) -> Protocol:
    """The toy world's protocol, made short."""
    base = load_protocol("toyworld")
    prompts = {kind: kind_prompts[_FIRST[name] :: 2] for kind, kind_prompts in base.prompts.items()}
    return Protocol.model_validate({**base.model_dump(), **PROTOCOLS[name], "prompts": prompts})


class StudyScorer:
    """Scores models of one subject by both protocols."""

    def __init__(self, config: Config) -> None:
        paths = find_photographs(Path(config.subject.photos))
        self._photographs = [read_photograph(p) for p in paths]
        self._evaluator = load_evaluator()
        self._words = config.subject.identifier, config.subject.class_noun

    def __call__(self, parts: Components) -> Scores:
        """Every total, by protocol."""
        return {name: self.score(parts, load_brief_protocol(name)) for name in PROTOCOLS}

    def score(self, parts: Components, protocol: Protocol) -> dict[str, float]:
        """Every total of one protocol."""
        return self._score_protocol(Engine(copy_for_sampling(parts)), protocol)

    def _score_protocol(self, engine: Engine, protocol: Protocol) -> dict[str, float]:
        prompts = evaluation_prompts(EvaluationSpec(protocol, "", *self._words, (), None))
        requests = [
            Request(
                q.prompt, q.seed, params=protocol.sampling_params, cache_every=CACHE_EVERY,
            )
            for q in prompts
        ]  # fmt: skip
        images = [output.image for output in engine.sample(requests)]
        encoders = {u: load_encoder(uri) for u, uri in protocol.encoders.model_dump().items()}
        image_embeddings = {use: e.embed_images(images) for use, e in encoders.items()}
        photograph_embeddings = {
            use: e.embed_images(self._photographs) for use, e in encoders.items()
        }
        texts = load_text_encoder(protocol.encoders.clip_t).embed_texts(
            [q.plain_prompt for q in prompts]
        )
        totals = scores.compute_scores(
            protocol,
            scores.ImageEmbeddings(prompts, image_embeddings, photograph_embeddings, texts),
        ).totals
        totals |= scores.compute_toy_scores(prompts, images, self._photographs, self._evaluator)
        bare = image_embeddings["dino"][[i for i, q in enumerate(prompts) if q.kind == "class"]]
        values = {key: one.value for key, one in totals.items()}
        values["class_div"] = diversity([bare])
        return {key: round(value, 4) for key, value in values.items()}


def copy_for_sampling(parts: Components) -> Components:
    """A copy for sampling only: adapters merged into the weights, layout for the engine."""
    unet, text_encoder = deepcopy(parts.unet), deepcopy(parts.text_encoder)
    for part in (unet, text_encoder):
        for layer in part.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
    return replace(
        parts,
        denoiser=unet.to(memory_format=torch.channels_last),
        text_encoders={"text_encoder": text_encoder},
    )
