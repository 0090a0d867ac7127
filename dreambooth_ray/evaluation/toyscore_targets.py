"""What `dreambooth toyworld score` takes: folders of images, models, and the flow model."""

from pathlib import Path

from dreambooth_ray.evaluation.toyscore import score_folder, score_model
from dreambooth_ray.models.model_directory import flow_directory, model_directory
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.toyworld.evaluator import load_evaluator
from dreambooth_ray.toyworld.flow_model import load_flow_pipeline
from dreambooth_ray.toyworld.flow_samples import sample_images, score_flow_images
from dreambooth_ray.toyworld.held_out_prompts import attribute_prompts


def score_target(target: str, count: int, seed: int) -> dict[str, object]:
    """Score a folder of images, or a model by `count` held-out prompts.

    raises: ConfigError, DataError
    """
    network = load_evaluator()
    if directory := flow_directory(target):
        prompts = [prompt for prompt, _ in attribute_prompts(count)]
        images = sample_images(load_flow_pipeline(directory), prompts, seed)
        return dict(score_flow_images(images, network))
    folder = Path(target)
    if folder.is_dir() and not any(
        (folder / f).exists() for f in ("model_index.json", "config.yaml")
    ):
        return score_folder(folder, network)
    engine = Engine(model_directory(target, key="TARGETS"))
    return dict(score_model(engine, network, count, seed))
