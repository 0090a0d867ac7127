from pathlib import Path

import pytest

from dreambooth_ray.cli.demo import load_demo_training_configs


@pytest.mark.parametrize("model", ["toyworld", "toyworld-flow"])
def test_the_second_training_keeps_the_output_and_is_shorter(model: str) -> None:
    config, output_config = load_demo_training_configs(model, Path("demo"), [])
    assert (config.prior.kind, output_config.prior.kind) == ("images", "output")
    assert (config.train.method, output_config.train.method) == ("full", "lora")
    assert output_config.train.steps < config.train.steps
    assert output_config.subject.photos == config.subject.photos
    assert output_config.storage.uri == config.storage.uri


def test_overrides_of_the_method_are_the_first_trainings_alone() -> None:
    overrides = ["prior.folder=mine", "train.lr=1e-3", "train.steps=6", "run_id=one", "seed=3"]
    config, output_config = load_demo_training_configs(
        "toyworld", Path("demo"), [*overrides, "cluster.workers=1"]
    )
    assert (config.prior.folder, config.train.lr, config.run_id) == ("mine", 1e-3, "one")
    assert (output_config.prior.folder, output_config.run_id) == (None, None)
    assert output_config.train.steps == 6
    for one in (config, output_config):
        assert (one.seed, one.cluster.span.max) == (3, 1)
