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
from dreambooth_ray.evaluation.protocol import Protocol, Spec, evaluation_prompts, load_protocol
from dreambooth_ray.models.components import Components
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.toyworld.evaluator import load_evaluator

# Half the UNet's evaluations; benchmarks/results/savers.json has what that costs: nothing seen.
CACHE_EVERY = 2
_BRIEF = {"num_inference_steps": 10, "solver": "dpmpp_2m", "images_per_other": 1}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "chosen": {**_BRIEF, "seed": 0, "images_per_prompt": 1, "class_images": 8, "other_prompts": ()},
    "judged": {**_BRIEF, "seed": 1, "images_per_prompt": 2, "class_images": 16},
}
# Each takes every other of the toy world's 25 prompts; both hold all kinds of them.
_FIRST = {"chosen": 1, "judged": 0}
Scores = dict[str, dict[str, float]]


def brief(name: str) -> Protocol:
    """The toy world's protocol, made short."""
    base = load_protocol("toyworld")
    prompts = {kind: asked[_FIRST[name] :: 2] for kind, asked in base.prompts.items()}
    return Protocol.model_validate({**base.model_dump(), **PROTOCOLS[name], "prompts": prompts})


class Judge:
    """Scores models of one subject by both protocols."""

    def __init__(self, config: Config) -> None:
        paths = find_photographs(Path(config.subject.photos))
        self._photographs = [read_photograph(p) for p in paths]
        self._network = load_evaluator()
        self._words = config.subject.identifier, config.subject.class_noun

    def __call__(self, parts: Components) -> Scores:
        """Every total, by protocol."""
        engine = Engine(fast_copy(parts))
        return {name: self._score(engine, brief(name)) for name in PROTOCOLS}

    def _score(self, engine: Engine, protocol: Protocol) -> dict[str, float]:
        asked = evaluation_prompts(Spec(protocol, "", *self._words, (), None))
        requests = [
            Request(
                q.prompt, q.seed, num_inference_steps=protocol.num_inference_steps,
                guidance_scale=protocol.guidance_scale, solver=protocol.solver,
                cache_every=CACHE_EVERY,
            )
            for q in asked
        ]  # fmt: skip
        images = [drawn.image for drawn in engine.draw(requests)]
        encoders = {u: load_encoder(uri) for u, uri in protocol.encoders.model_dump().items()}
        made = {use: e.embed_images(images) for use, e in encoders.items()}
        known = {use: e.embed_images(self._photographs) for use, e in encoders.items()}
        texts = load_text_encoder(protocol.encoders.clip_t).embed_texts([q.asked for q in asked])
        totals = scores.score(protocol, scores.ImageEmbeddings(asked, made, known, texts)).totals
        totals |= scores.truths(asked, images, self._photographs, self._network)
        bare = made["dino"][[i for i, q in enumerate(asked) if q.kind == "class"]]
        found = {key: one.value for key, one in totals.items()}
        found["class_div"] = diversity([bare])
        return {key: round(value, 4) for key, value in found.items()}


def fast_copy(parts: Components) -> Components:
    """For drawing alone: adapters added into the weights, layout as the engine likes it."""
    unet, text_encoder = deepcopy(parts.unet), deepcopy(parts.text_encoder)
    for part in (unet, text_encoder):
        for layer in part.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
    return replace(
        parts, unet=unet.to(memory_format=torch.channels_last), text_encoder=text_encoder
    )
