"""What `dreambooth toyworld score` takes: folders of images, and models."""

from pathlib import Path

from dreambooth_ray.evaluation.toyscore import score_folder, score_model
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.toyworld.evaluator import load_evaluator


def score_folder_or_model(target: str, count: int, seed: int) -> dict[str, object]:
    """Score a folder of images, or a model by `count` held-out prompts.

    raises: ConfigError, DataError
    """
    network = load_evaluator()
    folder = Path(target)
    if folder.is_dir() and not any(
        (folder / f).exists() for f in ("model_index.json", "config.yaml")
    ):
        return score_folder(folder, network)
    engine = Engine(model_directory(target, key="TARGETS"))
    return dict(score_model(engine, network, count, seed))
