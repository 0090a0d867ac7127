"""Scores models of one subject by two protocols, the toy world's made short."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image

from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.photographs import find_photographs, read_photograph
from dreambooth_ray.evaluation import scores
from dreambooth_ray.evaluation.encoders import load_image_encoder, load_image_text_encoder
from dreambooth_ray.evaluation.image_metrics import diversity
from dreambooth_ray.evaluation.protocol import (
    EvaluationPrompt,
    EvaluationProtocol,
    EvaluationSpec,
    build_evaluation_prompts,
    load_protocol,
)
from dreambooth_ray.models.components import Components
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.toyworld.evaluator import load_evaluator
from dreambooth_ray.toyworld.flow_samples import contact_sheet
from dreambooth_ray.toyworld.world_images import SIZE_PX

# Half the UNet's evaluations; benchmarks/results/savers.json shows no loss of quality.
CACHE_EVERY = 2
_BRIEF = {"num_inference_steps": 10, "solver": "dpmpp_2m", "images_per_other": 1}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "chosen": {**_BRIEF, "seed": 0, "images_per_prompt": 1, "class_images": 8, "other_prompts": ()},
    "judged": {**_BRIEF, "seed": 1, "images_per_prompt": 2, "class_images": 16},
    "judged briefly": {
        **_BRIEF, "num_inference_steps": 6, "seed": 1, "images_per_prompt": 2, "class_images": 10,
    },
}  # fmt: skip
# Each takes every other of the toy world's 25 prompts, the brief one every fourth; all hold all
# kinds of them.
_PICKED = {"chosen": slice(1, None, 2), "judged": slice(0, None, 2)}
_PICKED["judged briefly"] = slice(0, None, 4)
Scores = dict[str, dict[str, float]]


def load_brief_protocol(name: str) -> EvaluationProtocol:
    """The toy world's protocol, made short."""
    base_protocol = load_protocol("toyworld")
    prompts_by_kind = {
        kind: kind_prompts[_PICKED[name]] for kind, kind_prompts in base_protocol.prompts.items()
    }
    return EvaluationProtocol.model_validate(
        {**base_protocol.model_dump(), **PROTOCOLS[name], "prompts": prompts_by_kind}
    )


class StudyScorer:
    """Scores models of one subject by both protocols."""

    def __init__(self, config: Config, photographs: Path | None = None) -> None:
        """photographs: what images are compared with; the training's own if None"""
        photograph_paths = find_photographs(photographs or Path(config.subject.photos))
        self._photographs = [read_photograph(p) for p in photograph_paths]
        self.evaluator = load_evaluator()
        self._words = config.subject.identifier, config.subject.class_noun
        self.images: dict[EvaluationPrompt, Image.Image] = {}

    def __call__(self, parts: Components) -> Scores:
        """Every total, by protocol."""
        return {n: self.score(parts, load_brief_protocol(n)) for n in ("chosen", "judged")}

    def score(self, parts: Components, protocol: EvaluationProtocol) -> dict[str, float]:
        """Every total of one protocol."""
        cache_every = CACHE_EVERY if parts.family.can("deepcache") else 1
        sampling_params = protocol.sampling_params.model_copy(update={"cache_every": cache_every})
        return self._score_protocol(Engine(copy_for_sampling(parts)), protocol, sampling_params)

    def draw_sheet(self, path: Path) -> None:
        """Write the photographs, and the first image that was scored last of each prompt."""
        first_image_by_prompt = {q.prompt: image for q, image in reversed(self.images.items())}
        photographs = [photo.resize((SIZE_PX, SIZE_PX)) for photo in self._photographs]
        path.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet([*photographs, *reversed(first_image_by_prompt.values())]).save(path)

    def _score_protocol(
        self, engine: Engine, protocol: EvaluationProtocol, params: SamplingParams
    ) -> dict[str, float]:
        prompts = build_evaluation_prompts(EvaluationSpec(protocol, "", *self._words, (), None))
        sampling_requests = [Request(q.prompt, q.seed, params=params) for q in prompts]
        images = [output.image for output in engine.sample(sampling_requests)]
        self.images = dict(zip(prompts, images, strict=True))
        encoder_by_use = {
            u: load_image_encoder(uri) for u, uri in protocol.encoders.model_dump().items()
        }
        image_embeddings = {use: e.embed_images(images) for use, e in encoder_by_use.items()}
        photograph_embeddings = {
            use: e.embed_images(self._photographs) for use, e in encoder_by_use.items()
        }
        text_embeddings = load_image_text_encoder(protocol.encoders.clip_t).embed_texts(
            [q.plain_prompt for q in prompts]
        )
        score_by_metric = scores.compute_scores(
            protocol,
            scores.EvaluationEmbeddings(
                prompts, image_embeddings, photograph_embeddings, text_embeddings
            ),
        ).totals
        score_by_metric |= scores.compute_toy_scores(
            prompts, images, self._photographs, self.evaluator
        )
        class_image_embeddings = image_embeddings["dino"][
            [i for i, q in enumerate(prompts) if q.kind == "class"]
        ]
        value_by_metric = {key: one.value for key, one in score_by_metric.items()}
        value_by_metric["class_div"] = diversity([class_image_embeddings])
        return {key: round(value, 4) for key, value in value_by_metric.items()}


def copy_for_sampling(parts: Components) -> Components:
    """A copy for sampling only: adapters merged into the weights, layout for the engine."""
    denoiser, text_encoders = deepcopy(parts.denoiser), deepcopy(parts.text_encoders)
    for component_network in (denoiser, *text_encoders.values()):
        for submodule in component_network.modules():
            if isinstance(submodule, BaseTunerLayer):
                submodule.merge()
    return replace(
        parts,
        denoiser=denoiser.to(memory_format=torch.channels_last),
        text_encoders=text_encoders,
    )
