"""Evaluates a training's weights between two of its steps, where no other machine could."""

from pathlib import Path

from dreambooth_ray.config.schema import Config
from dreambooth_ray.evaluation.checkpoint_follower import (
    log_evaluation,
    read_scored_checkpoints,
    scored_from_totals,
    select_checkpoint,
)
from dreambooth_ray.evaluation.protocol_scorer import ProtocolImageScorer, load_checkpoint_protocol
from dreambooth_ray.storage.fence import CheckpointId
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.evaluation_decision import is_evaluation_due, write_selection
from dreambooth_ray.training.step_evaluator import SampleImages, StepEvaluator
from dreambooth_ray.training.worker_job import WorkerJob


class TrainingEvaluator(StepEvaluator):
    """On a run's first worker: scores the weights that the checkpoint of the step will hold.

    What can't be evaluated here is evaluated after the training, by the process that started it.
    """

    def __init__(self, job: WorkerJob, config: Config, start: int) -> None:
        """job: with the base model's directory on this host; start: step of the checkpoint that
        training goes on from, 0 where there is none
        """
        self._config, self._run, self._lease = config, Store(job.run_uri), job.lease
        self._directory = Path(job.model_directory)
        scored_checkpoints = read_scored_checkpoints(self._run, config.choice)
        # What was scored and never committed is trained, and scored, again.
        self._points = {point.step: point for point in scored_checkpoints if point.step <= start}
        self._scorer: ProtocolImageScorer | None = None
        self._write_selection()

    def is_due(self, step: int) -> bool:
        """Whether to evaluate after this step, of which there will be a checkpoint."""
        has_checkpoint = (
            step % self._config.checkpoint.every == 0 or step == self._config.train.steps
        )
        return has_checkpoint and step not in self._points and is_evaluation_due(self._config, step)

    def evaluate(self, step: int, sample_images: SampleImages) -> None:
        """Generate and score the protocol's images; scores and selection go into the run.

        raises: ConfigError, DataError, StorageError, and what sampling raises
        """
        if self._scorer is None:
            # The encoders stay on the CPU: the accelerator's memory is the training's.
            protocol = load_checkpoint_protocol(self._config)
            self._scorer = ProtocolImageScorer(self._config, self._directory, protocol, "cpu")
        total_scores = self._scorer.compute_total_scores(sample_images(self._scorer.requests))
        self._scorer.write_checkpoint_scores(
            self._run, CheckpointId(step, self._lease), total_scores
        )
        self._points[step] = scored_from_totals(step, total_scores, self._config.choice)
        self._write_selection()
        log_evaluation(self._run, self._config.choice, [*self._points.values()], step)

    def _write_selection(self) -> None:
        selection = select_checkpoint([*self._points.values()], self._config.choice)
        write_selection(self._run, selection, self._lease)
