"""Checkpoints evaluated while the run trains on, by a Ray actor of its own."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch

from dreambooth_ray.config.load import dump_config, parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.remote_images import photographs_folder
from dreambooth_ray.errors import ConfigError, DreamBoothError
from dreambooth_ray.evaluation import scores
from dreambooth_ray.evaluation.checkpoint_follower import CheckpointFollower, scored
from dreambooth_ray.evaluation.encoders import load_encoder
from dreambooth_ray.evaluation.model_evaluation import Case, find_case, look_ahead
from dreambooth_ray.evaluation.pareto_front import Scored
from dreambooth_ray.evaluation.protocol import Protocol, Spec, evaluation_prompts, load_protocol
from dreambooth_ray.evaluation.ray_actor import actor_of
from dreambooth_ray.evaluation.sample_actor import as_request, encoder_uris
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.trainable_params import apply_method, load_trained
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store, use_options
from dreambooth_ray.toyworld.evaluator import load_evaluator
from dreambooth_ray.training.checkpoint.convert import trained_weights
from dreambooth_ray.training.checkpoint.retention import restore_step, tidy


def check_choice(config: Config, directory: Path) -> None:
    """Refuse before any work what checkpoints can't be evaluated with; raises ConfigError."""
    protocol = load_protocol(config.choice.protocol, "choice.protocol")
    if config.choice.drift == "drift" and not (protocol.truths and protocol.other_prompts):
        raise ConfigError(
            f"choice.drift=drift is not told by choice.protocol={config.choice.protocol}, "
            "which has no truths and other_prompts; set choice.drift=pres"
        )
    look_ahead(run_case(config, directory), protocol, [])


@contextmanager
def evaluated_beside(config: Config, run: Store, directory: Path) -> Iterator[None]:
    """Every checkpoint is evaluated beside what happens inside.

    config: with photographs that are found from anywhere
    raises: what an evaluation failed with, once the training is done
    """
    judge = RemoteEvaluator(config, run, directory)
    try:
        with CheckpointFollower(run, config.choice, judge):
            yield
        tidy(run, config)
    finally:
        judge.close()


def run_case(config: Config, directory: Path) -> Case:
    """What a run's own evaluations are of: its first subject."""
    subject = config.subject
    return find_case(
        directory,
        photographs_folder(subject.photos),
        config.word(subject),
        subject.class_noun,
        config.train.resolution,
    )


class CheckpointEvaluator:
    """Evaluates one checkpoint at a time; the encoders and photographs are read once."""

    def __init__(
        self,
        config: str,
        run_uri: str,
        directory: str,
        protocol: Protocol,
        storage_options: dict[str, Any],
    ) -> None:
        """config: as YAML. raises: ConfigError, DataError for what can't be read on this host"""
        use_options(run_uri, storage_options)
        torch.set_num_threads(1)
        self._config, self._run = parse_config(config, run_uri, []), Store(run_uri)
        self._directory, self._protocol = Path(directory), protocol
        self._device = "cuda" if self._config.cluster.gpus else "cpu"
        case = run_case(self._config, self._directory)
        photographs = tuple(str(p) for p in case.photographs)
        spec = Spec(protocol, "", case.identifier, case.class_noun, photographs, case.size_px)
        self._size_px = case.size_px
        self._asked = evaluation_prompts(spec)
        self._known = look_ahead(case, protocol, self._asked)
        self._uses = encoder_uris(protocol.encoders)
        self._encoders = {u: load_encoder(u, self._device) for u in set(self._uses.values())}

    def judge(self, step: int) -> Scored:
        """Draw and score the protocol with a checkpoint; its numbers go into the run.

        raises: CheckpointError if it is damaged
        """
        totals = self._totals(self._parts(step))
        record = {"step": step, "protocol": self._protocol.name, "totals": totals}
        self._run.write(paths.evaluation(step), json.dumps(record, indent=1).encode())
        return scored(step, totals, self._config.choice)

    def _parts(self, step: int) -> Components:
        parts = load_components(self._directory)
        apply_method(self._config, parts)
        with tempfile.TemporaryDirectory(prefix="dreambooth-judge-") as folder:
            load_trained(parts, trained_weights(restore_step(self._run, step, Path(folder))))
        return parts

    def _totals(self, parts: Components) -> dict[str, float]:
        """Every total of the protocol for a model in memory."""
        engine = Engine(parts, device=self._device)
        requests = [as_request(q, self._protocol, self._size_px) for q in self._asked]
        images = [one.image for one in engine.draw(requests)]
        vectors = {uri: e.embed_images(images) for uri, e in self._encoders.items()}
        made = {use: vectors[uri] for use, uri in self._uses.items()}
        evidence = scores.ImageEmbeddings(self._asked, made, self._known.vectors, self._known.texts)
        totals = scores.score(self._protocol, evidence).totals
        if self._protocol.truths:
            known = self._known.photographs
            totals = totals | scores.truths(self._asked, images, known, load_evaluator())
        return {name: s.value for name, s in totals.items()}


class RemoteEvaluator:
    """A Judge in a Ray actor, started when first asked and again if it dies."""

    def __init__(self, config: Config, run: Store, directory: Path) -> None:
        protocol = load_protocol(config.choice.protocol, "choice.protocol")
        options = dict(config.storage.options)
        self._arguments = (dump_config(config), run.uri, str(directory), protocol, options)
        self._gpu = config.cluster.gpus
        self._actor: Any = None

    def __call__(self, step: int) -> Scored:
        """Judge the checkpoint of a step. raises: what the Judge raised, DreamBoothError"""
        if self._actor is None:
            self._actor = actor_of(CheckpointEvaluator, self._gpu).remote(*self._arguments)
        try:
            found: Scored = ray.get(self._actor.judge.remote(step))
        except ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            raise cause if isinstance(cause, DreamBoothError) else error from None
        except ray.exceptions.RayError as error:
            raise DreamBoothError(
                f"the checkpoint of step {step} can't be evaluated: {error}; `dreambooth resume` "
                "tries again, and choice.rule=last does without"
            ) from error
        return found

    def close(self) -> None:
        """End the actor."""
        if self._actor is not None:
            ray.kill(self._actor)
