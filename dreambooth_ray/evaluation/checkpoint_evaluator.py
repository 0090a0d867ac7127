"""Evaluates checkpoints while the run trains on, in a Ray actor of its own."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch

from dreambooth_ray.actor_pool import find_own_error
from dreambooth_ray.config.load import dump_config, parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.remote_images import photographs_folder
from dreambooth_ray.errors import ConfigError, DreamBoothError
from dreambooth_ray.evaluation import scores
from dreambooth_ray.evaluation.actor_resources import build_actor_class, has_room_beside
from dreambooth_ray.evaluation.checkpoint_follower import CheckpointFollower, scored_from_totals
from dreambooth_ray.evaluation.checkpoint_model import load_checkpoint_model
from dreambooth_ray.evaluation.encoders import load_encoder
from dreambooth_ray.evaluation.model_evaluation import EvaluationCase, build_case, load_references
from dreambooth_ray.evaluation.pareto_front import ScoredCheckpoint
from dreambooth_ray.evaluation.protocol import (
    EvaluationSpec,
    Protocol,
    evaluation_prompts,
    load_protocol,
)
from dreambooth_ray.evaluation.sample_actor import as_request, encoder_uris
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.model_directory import model_hash
from dreambooth_ray.models.model_mirror import locate_model
from dreambooth_ray.models.precision import resolve_device, resolve_sampling_dtype
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.storage.fence import find_checkpoint
from dreambooth_ray.storage.store import Store, use_options
from dreambooth_ray.toyworld.evaluator import load_evaluator
from dreambooth_ray.training.checkpoint.retention import remove_old_checkpoints
from dreambooth_ray.training.worker_messages import post_message


def check_choice(config: Config, directory: Path) -> None:
    """Refuse early a choice that checkpoints can't be evaluated by; raises ConfigError."""
    protocol = load_protocol(config.choice.protocol, "choice.protocol")
    if config.choice.drift == "drift" and not (protocol.truths and protocol.other_prompts):
        raise ConfigError(
            f"choice.drift=drift is not told by choice.protocol={config.choice.protocol}, "
            "which has no truths and other_prompts; set choice.drift=pres"
        )
    load_references(run_case(config, directory), protocol, [])


@contextmanager
def evaluate_checkpoints(
    config: Config, run: Store, directory: Path, lease: int = 1
) -> Iterator[None]:
    """Evaluate every checkpoint while the block trains.

    config: with photographs that every host can read; lease: number of the run's lease
    raises: what an evaluation failed with, once the training is done
    """
    evaluator = RemoteEvaluator(config, run, directory)
    cluster = config.cluster
    if not has_room_beside(cluster, ray.cluster_resources()):
        post_message(
            run,
            f"the cluster's {'GPUs' if cluster.gpus else 'CPUs'} are all for cluster.workers: "
            "checkpoints are kept, and evaluated once the training has ended"
            + ("; choice.patience can't end it earlier" if config.choice.patience else ""),
        )
    try:
        with CheckpointFollower(
            run,
            config.choice,
            evaluator,
            lease,
            lambda: has_room_beside(cluster, ray.cluster_resources()),
            evaluator.close,
        ):
            yield
        remove_old_checkpoints(run, config, lease)
    finally:
        evaluator.close()


def run_case(config: Config, directory: Path) -> EvaluationCase:
    """What a run's own evaluations are of: its model and first subject."""
    subject = config.subject
    return build_case(
        directory,
        photographs_folder(subject.photos),
        config.word(subject),
        subject.class_noun,
        config.train.side_px,
    )


class CheckpointEvaluator:
    """Evaluates one checkpoint at a time; the encoders and photographs are read once."""

    def __init__(
        self,
        config: str,
        run_uri: str,
        model: tuple[str, str],
        protocol: Protocol,
        storage_options: dict[str, Any],
    ) -> None:
        """config: as YAML; model: the base model's directory, and its hash

        raises: CheckpointError, ConfigError, DataError for what can't be read on this host
        """
        use_options(run_uri, storage_options)
        torch.set_num_threads(1)
        self._config, self._run = parse_config(config, run_uri, []), Store(run_uri)
        self._directory, self._protocol = locate_model(*model, run_uri), protocol
        self._device = "cuda" if self._config.cluster.gpus else "cpu"
        case = run_case(self._config, self._directory)
        photographs = tuple(str(p) for p in case.photographs)
        spec = EvaluationSpec(
            protocol, "", case.identifier, case.class_noun, photographs, case.size_px
        )
        self._size_px = case.size_px
        self._prompts = evaluation_prompts(spec)
        self._references = load_references(case, protocol, self._prompts)
        self._encoder_uris = encoder_uris(protocol.encoders)
        self._encoders = {
            u: load_encoder(u, self._device) for u in set(self._encoder_uris.values())
        }

    def evaluate(self, step: int) -> ScoredCheckpoint:
        """Generate and score the protocol's images with a checkpoint; its scores go into the run.

        raises: CheckpointError if it is damaged
        """
        checkpoint = find_checkpoint(self._run, step)
        totals = self._compute_totals(
            load_checkpoint_model(self._config, self._directory, self._run, checkpoint)
        )
        record = {"step": step, "protocol": self._protocol.name, "totals": totals}
        self._run.write(checkpoint.evaluation, json.dumps(record, indent=1).encode())
        return scored_from_totals(step, totals, self._config.choice)

    def _compute_totals(self, parts: Components) -> dict[str, float]:
        """Every total of the protocol for a model in memory."""
        dtype = resolve_sampling_dtype(resolve_device(self._device), parts.family)
        engine = Engine(parts, device=self._device, dtype=dtype)
        requests = [as_request(q, self._protocol, self._size_px) for q in self._prompts]
        images = [sample.image for sample in engine.sample(requests)]
        vectors = {uri: e.embed_images(images) for uri, e in self._encoders.items()}
        image_vectors = {use: vectors[uri] for use, uri in self._encoder_uris.items()}
        embeddings = scores.ImageEmbeddings(
            self._prompts, image_vectors, self._references.vectors, self._references.texts
        )
        totals = scores.compute_scores(self._protocol, embeddings).totals
        if self._protocol.truths:
            photographs = self._references.photographs
            totals = totals | scores.compute_toy_scores(
                self._prompts, images, photographs, load_evaluator()
            )
        return {name: s.value for name, s in totals.items()}


class RemoteEvaluator:
    """A CheckpointEvaluator in a Ray actor, started at the first call and again if it dies."""

    def __init__(self, config: Config, run: Store, directory: Path) -> None:
        protocol = load_protocol(config.choice.protocol, "choice.protocol")
        options = dict(config.storage.options)
        model = str(directory), model_hash(directory)
        self._arguments = (dump_config(config), run.uri, model, protocol, options)
        self._gpu = config.cluster.gpus
        self._actor: Any = None

    def __call__(self, step: int) -> ScoredCheckpoint:
        """Evaluate the checkpoint of a step. raises: what the actor raised, DreamBoothError"""
        if self._actor is None:
            self._actor = build_actor_class(CheckpointEvaluator, self._gpu).remote(*self._arguments)
        try:
            scored: ScoredCheckpoint = ray.get(self._actor.evaluate.remote(step))
        except ray.exceptions.RayTaskError as error:
            raise find_own_error(error) from None
        except ray.exceptions.RayError as error:
            raise DreamBoothError(
                f"the checkpoint of step {step} can't be evaluated: {error}; `dreambooth resume` "
                "tries again, and choice.rule=last does without"
            ) from error
        return scored

    def close(self) -> None:
        """End the actor; the next call starts another."""
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None
