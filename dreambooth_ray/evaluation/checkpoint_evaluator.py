"""Evaluates checkpoints while the run trains on, in a Ray actor of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from dreambooth_ray.actor_pool import find_own_error
from dreambooth_ray.config.load import dump_config, parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError, DreamBoothError
from dreambooth_ray.evaluation.actor_resources import build_actor_class, has_spare_cluster_device
from dreambooth_ray.evaluation.checkpoint_follower import CheckpointFollower, scored_from_totals
from dreambooth_ray.evaluation.checkpoint_model import load_checkpoint_model
from dreambooth_ray.evaluation.model_evaluation import embed_photographs_and_prompts
from dreambooth_ray.evaluation.pareto_front import ScoredCheckpoint
from dreambooth_ray.evaluation.protocol import EvaluationProtocol
from dreambooth_ray.evaluation.protocol_scorer import (
    ProtocolImageScorer,
    build_evaluated_model_from_config,
    load_checkpoint_protocol,
)
from dreambooth_ray.evaluation.training_evaluator import TrainingEvaluator
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_directory import model_hash
from dreambooth_ray.models.model_mirror import locate_model
from dreambooth_ray.models.precision import resolve_device, resolve_sampling_dtype
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.storage.fence import find_checkpoint
from dreambooth_ray.storage.store import Store, use_storage_options
from dreambooth_ray.training.checkpoint.retention import remove_old_checkpoints
from dreambooth_ray.training.evaluation_decision import is_evaluation_due
from dreambooth_ray.training.step_evaluator import MakeStepEvaluator
from dreambooth_ray.training.worker_messages import post_message


def check_choice_protocol(config: Config, directory: Path) -> None:
    """Refuse early a choice that checkpoints can't be evaluated by; raises ConfigError.

    config: with the model's defaults; directory: as far as it is here
    """
    protocol = load_checkpoint_protocol(config)
    protocol.fill_sampling_defaults(find_family(directory), "choice.protocol")
    if config.choice.drift == "drift" and not (protocol.truths and protocol.other_prompts):
        raise ConfigError(
            f"choice.drift=drift is not told by choice.protocol={config.choice.protocol}, "
            "which has no truths and other_prompts; set choice.drift=pres"
        )
    embed_photographs_and_prompts(
        build_evaluated_model_from_config(config, directory), protocol, []
    )


@contextmanager
def evaluate_checkpoints_during_training(
    config: Config, run: Store, directory: Path, lease: int = 1
) -> Iterator[MakeStepEvaluator | None]:
    """Evaluate checkpoints while the block trains: choice.max_evaluations of them, and the last.

    Where the cluster has no room beside the workers, and the first of them has all weights, it does
    so between steps; what it could not is evaluated here once the block has ended. Yields what such
    a worker needs.

    config: with photographs that every host can read; lease: number of the run's lease
    raises: what an evaluation failed with, once the training is done
    """
    remote_evaluator = RemoteEvaluator(config, run, directory)
    cluster_config = config.cluster
    has_room = has_spare_cluster_device(cluster_config, ray.cluster_resources())
    follower = CheckpointFollower(
        run,
        config.choice,
        remote_evaluator,
        lease,
        lambda: has_spare_cluster_device(cluster_config, ray.cluster_resources()),
        remote_evaluator.close,
        partial(is_evaluation_due, config),
    )
    try:
        if not has_room and config.train.holds_unsharded_weights:
            yield TrainingEvaluator
            with follower:
                pass
        else:
            if not has_room:
                post_message(run, _describe_wait(config))
            with follower:
                yield None
        remove_old_checkpoints(run, config, lease)
    finally:
        remote_evaluator.close()


def _describe_wait(config: Config) -> str:
    device_kind = "GPUs" if config.cluster.gpus else "CPUs"
    return (
        f"the cluster's {device_kind} are all for cluster.workers, whose weights are sharded: "
        "checkpoints are kept, and evaluated once the training has ended"
        + ("; choice.patience can't end it earlier" if config.choice.patience else "")
    )


class CheckpointEvaluator:
    """Evaluates one checkpoint at a time; the encoders and photographs are read once."""

    def __init__(
        self,
        config: str,
        run_uri: str,
        model: tuple[str, str],
        protocol: EvaluationProtocol,
        storage_options: dict[str, Any],
    ) -> None:
        """config: as YAML; model: the base model's directory, and its hash

        raises: CheckpointError, ConfigError, DataError for what can't be read on this host
        """
        use_storage_options(run_uri, storage_options)
        torch.set_num_threads(1)
        self._config, self._run = parse_config(config, run_uri, []), Store(run_uri)
        self._directory = locate_model(*model, run_uri)
        self._device = "cuda" if self._config.cluster.gpus else "cpu"
        self._scorer = ProtocolImageScorer(self._config, self._directory, protocol, self._device)

    def evaluate(self, step: int) -> ScoredCheckpoint:
        """Generate and score the protocol's images with a checkpoint; its scores go into the run.

        raises: CheckpointError if it is damaged
        """
        checkpoint_id = find_checkpoint(self._run, step)
        components = load_checkpoint_model(self._config, self._directory, self._run, checkpoint_id)
        dtype = resolve_sampling_dtype(resolve_device(self._device), components.family)
        engine = Engine(components, device=self._device, dtype=dtype)
        sample_outputs = engine.sample(self._scorer.requests)
        total_scores = self._scorer.compute_total_scores(
            [sample.image for sample in sample_outputs]
        )
        self._scorer.write_checkpoint_scores(self._run, checkpoint_id, total_scores)
        return scored_from_totals(step, total_scores, self._config.choice)


class RemoteEvaluator:
    """A CheckpointEvaluator in a Ray actor, started at the first call and again if it dies."""

    def __init__(self, config: Config, run: Store, directory: Path) -> None:
        protocol = load_checkpoint_protocol(config)
        storage_options = dict(config.storage.options)
        model_directory_and_hash = str(directory), model_hash(directory)
        self._arguments = (
            dump_config(config),
            run.uri,
            model_directory_and_hash,
            protocol,
            storage_options,
        )
        self._gpu = config.cluster.gpus
        self._actor: Any = None

    def __call__(self, step: int) -> ScoredCheckpoint:
        """Evaluate the checkpoint of a step. raises: what the actor raised, DreamBoothError"""
        if self._actor is None:
            self._actor = build_actor_class(CheckpointEvaluator, self._gpu).remote(*self._arguments)
        try:
            scored_checkpoint: ScoredCheckpoint = ray.get(self._actor.evaluate.remote(step))
        except ray.exceptions.RayTaskError as error:
            raise find_own_error(error) from None
        except ray.exceptions.RayError as error:
            raise DreamBoothError(
                f"the checkpoint of step {step} can't be evaluated: {error}; `dreambooth resume` "
                "tries again, and choice.rule=last does without"
            ) from error
        return scored_checkpoint

    def close(self) -> None:
        """End the actor; the next call starts another."""
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None
