"""A protocol's images of one model after another, scored: prompts and photographs are read once."""

import json
from pathlib import Path

from PIL import Image

from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.remote_images import photographs_folder
from dreambooth_ray.evaluation import scores
from dreambooth_ray.evaluation.encoders import load_encoder
from dreambooth_ray.evaluation.model_evaluation import EvaluationCase, build_case, load_references
from dreambooth_ray.evaluation.protocol import (
    EvaluationSpec,
    Protocol,
    evaluation_prompts,
    load_protocol,
)
from dreambooth_ray.evaluation.sample_actor import as_request, encoder_uris
from dreambooth_ray.models.family import find_family
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.storage.fence import CheckpointId
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.evaluator import load_evaluator


def build_run_case(config: Config, directory: Path) -> EvaluationCase:
    """What a run's own evaluations are of: its model and first subject."""
    subject = config.subject
    return build_case(
        directory,
        photographs_folder(subject.photos),
        config.word(subject),
        subject.class_noun,
        config.train.side_px,
    )


def load_checkpoint_protocol(config: Config) -> Protocol:
    """The protocol that checkpoints are evaluated by; raises ConfigError.

    config: with the model's defaults
    """
    return load_protocol(config.choice.protocol or "", "choice.protocol")


class ProtocolScorer:
    """What images of a run's model are asked for, and what they are worth."""

    def __init__(self, config: Config, directory: Path, protocol: Protocol, device: str) -> None:
        """directory: the base model's; device: of the encoders

        raises: ConfigError, DataError for what can't be read on this host
        """
        self.protocol = protocol.fill_sampling_defaults(find_family(directory), "choice.protocol")
        case = build_run_case(config, directory)
        photographs = tuple(str(p) for p in case.photographs)
        spec = EvaluationSpec(
            self.protocol, "", case.identifier, case.class_noun, photographs, case.size_px
        )
        self._size_px, self._prompts = case.size_px, evaluation_prompts(spec)
        self._references = load_references(case, self.protocol, self._prompts)
        self._encoder_uris = encoder_uris(self.protocol.encoders)
        self._encoders = {u: load_encoder(u, device) for u in set(self._encoder_uris.values())}

    @property
    def requests(self) -> list[Request]:
        """All images of the protocol, in its order."""
        return [as_request(q, self.protocol, self._size_px) for q in self._prompts]

    def compute_totals(self, images: list[Image.Image]) -> dict[str, float]:
        """Every total of the protocol. images: those of `requests`, one each"""
        vectors = {uri: e.embed_images(images) for uri, e in self._encoders.items()}
        image_vectors = {use: vectors[uri] for use, uri in self._encoder_uris.items()}
        embeddings = scores.ImageEmbeddings(
            self._prompts, image_vectors, self._references.vectors, self._references.texts
        )
        totals = scores.compute_scores(self.protocol, embeddings).totals
        if self.protocol.truths:
            photographs = self._references.photographs
            totals = totals | scores.compute_toy_scores(
                self._prompts, images, photographs, load_evaluator()
            )
        return {name: s.value for name, s in totals.items()}

    def write_totals(self, run: Store, checkpoint: CheckpointId, totals: dict[str, float]) -> None:
        """Store the scores of a checkpoint in its run."""
        record = {"step": checkpoint.step, "protocol": self.protocol.name, "totals": totals}
        run.write(checkpoint.evaluation, json.dumps(record, indent=1).encode())
