"""What `dreambooth toyworld score` takes: folders of images, and models."""

from pathlib import Path

from dreambooth_ray.evaluation.toyscore import predict_folder_attributes, score_attribute_accuracy
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.toyworld.evaluator import load_evaluator


def score_folder_or_model(target: str, count: int, seed: int) -> dict[str, object]:
    """Score a folder of images, or a model by `count` held-out prompts.

    raises: ConfigError, DataError
    """
    toy_evaluator = load_evaluator()
    target_folder = Path(target)
    if target_folder.is_dir() and not any(
        (target_folder / f).exists() for f in ("model_index.json", "config.yaml")
    ):
        return predict_folder_attributes(target_folder, toy_evaluator)
    engine = Engine(model_directory(target, key="TARGETS"))
    return dict(score_attribute_accuracy(engine, toy_evaluator, count, seed))
