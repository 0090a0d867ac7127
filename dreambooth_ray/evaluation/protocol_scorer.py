"""A protocol's images of one model after another, scored: prompts and photographs are read once."""

import json
from pathlib import Path

from PIL import Image

from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.remote_images import fetch_photographs_folder
from dreambooth_ray.evaluation import scores
from dreambooth_ray.evaluation.encoders import load_image_encoder
from dreambooth_ray.evaluation.model_evaluation import (
    EvaluatedModel,
    build_evaluated_model,
    embed_photographs_and_prompts,
)
from dreambooth_ray.evaluation.protocol import (
    EvaluationProtocol,
    EvaluationSpec,
    build_evaluation_prompts,
    load_protocol,
)
from dreambooth_ray.evaluation.sample_actor import build_sampling_request, encoder_uris
from dreambooth_ray.models.family import find_family
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.storage.fence import CheckpointId
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.evaluator import load_evaluator


def build_evaluated_model_from_config(config: Config, directory: Path) -> EvaluatedModel:
    """What a run's own evaluations are of: its model and first subject."""
    subject_config = config.subject
    return build_evaluated_model(
        directory,
        fetch_photographs_folder(subject_config.photos),
        config.word(subject_config),
        subject_config.class_noun,
        config.train.side_px,
    )


def load_checkpoint_protocol(config: Config) -> EvaluationProtocol:
    """The protocol that checkpoints are evaluated by; raises ConfigError.

    config: with the model's defaults
    """
    return load_protocol(config.choice.protocol or "", "choice.protocol")


class ProtocolImageScorer:
    """What images of a run's model are asked for, and what they are worth."""

    def __init__(
        self, config: Config, directory: Path, protocol: EvaluationProtocol, device: str
    ) -> None:
        """directory: the base model's; device: of the encoders

        raises: ConfigError, DataError for what can't be read on this host
        """
        self.protocol = protocol.fill_sampling_defaults(find_family(directory), "choice.protocol")
        evaluation_case = build_evaluated_model_from_config(config, directory)
        photograph_paths = tuple(str(p) for p in evaluation_case.photographs)
        evaluation_spec = EvaluationSpec(
            self.protocol,
            "",
            evaluation_case.identifier,
            evaluation_case.class_noun,
            photograph_paths,
            evaluation_case.size_px,
        )
        self._size_px, self._prompts = (
            evaluation_case.size_px,
            build_evaluation_prompts(evaluation_spec),
        )
        self._references = embed_photographs_and_prompts(
            evaluation_case, self.protocol, self._prompts
        )
        self._encoder_uris = encoder_uris(self.protocol.encoders)
        self._encoders = {
            u: load_image_encoder(u, device) for u in set(self._encoder_uris.values())
        }

    @property
    def requests(self) -> list[Request]:
        """All images of the protocol, in its order."""
        return [build_sampling_request(q, self.protocol, self._size_px) for q in self._prompts]

    def compute_total_scores(self, images: list[Image.Image]) -> dict[str, float]:
        """Every total of the protocol. images: those of `requests`, one each"""
        vectors_by_encoder = {uri: e.embed_images(images) for uri, e in self._encoders.items()}
        image_vectors = {use: vectors_by_encoder[uri] for use, uri in self._encoder_uris.items()}
        image_embeddings = scores.EvaluationEmbeddings(
            self._prompts, image_vectors, self._references.vectors, self._references.texts
        )
        total_scores = scores.compute_scores(self.protocol, image_embeddings).totals
        if self.protocol.truths:
            photographs = self._references.photographs
            total_scores = total_scores | scores.compute_toy_scores(
                self._prompts, images, photographs, load_evaluator()
            )
        return {name: s.value for name, s in total_scores.items()}

    def write_checkpoint_scores(
        self, run: Store, checkpoint: CheckpointId, totals: dict[str, float]
    ) -> None:
        """Store the scores of a checkpoint in its run."""
        scores_record = {"step": checkpoint.step, "protocol": self.protocol.name, "totals": totals}
        run.write(checkpoint.evaluation, json.dumps(scores_record, indent=1).encode())
