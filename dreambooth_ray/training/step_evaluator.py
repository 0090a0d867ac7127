"""What a training asks of an evaluation between its steps."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from PIL import Image

from dreambooth_ray.config.schema import Config
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.training.worker_job import WorkerJob

SampleImages = Callable[[list[Request]], list[Image.Image]]


class StepEvaluator(ABC):
    """Scores weights in training; one of `evaluation`, which this layer does not know."""

    @abstractmethod
    def is_due(self, step: int) -> bool:
        """Whether to evaluate after this step."""

    @abstractmethod
    def evaluate(self, step: int, sample_images: SampleImages) -> None:
        """Score the images that `sample_images` makes with the weights of this step."""


# Of the job, its configuration, and the step of the checkpoint that training goes on from.
MakeStepEvaluator = Callable[[WorkerJob, Config, int], StepEvaluator]
