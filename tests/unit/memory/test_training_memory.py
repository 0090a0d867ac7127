from pathlib import Path

import pytest

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.memory import fake_step
from dreambooth_ray.memory.training_memory import COUNT_KEYS, estimate_training_footprint


def config_of(*overrides: str) -> Config:
    return parse_config("subject: {photos: p, class_noun: robot}", "x", list(overrides))


def test_a_count_is_made_once_for_each_model_and_setting(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = config_of("train.resolution=64")
    estimate = estimate_training_footprint(config, tiny_model)
    assert min(estimate.states_bytes, estimate.frozen_bytes, estimate.activations_bytes) > 0
    counts = []

    def count_step(config: Config, directory: Path, batch: int) -> dict[str, int]:
        counts.append(batch)
        return dict.fromkeys(COUNT_KEYS, 4)

    monkeypatch.setattr(fake_step, "count_step", count_step)
    assert estimate_training_footprint(config, tiny_model) == estimate
    assert not counts
    assert (
        estimate_training_footprint(config, tiny_model, "zero3").states_bytes
        == estimate.states_bytes
    )
    for same in ("train.steps=7", "train.optimizer=prodigy", "train.lr=1", "train.images=9"):
        estimate_training_footprint(
            config_of("train.resolution=64", "train.lr=1", same), tiny_model
        )
    assert not counts
    for other in ("train.batch_size=8", "train.method=lora", "train.resolution=128"):
        assert (
            estimate_training_footprint(
                config_of("train.resolution=64", other), tiny_model
            ).frozen_bytes
            == 12
        )
    assert len(counts) == 3


def test_elastic_workers_count_as_their_fewest(tiny_model: Path) -> None:
    overrides = "train.resolution=64", "train.batch_size=4"
    elastic = estimate_training_footprint(
        config_of(*overrides, "cluster.workers={min: 1, max: 2}"), tiny_model, "zero3"
    )
    fixed = estimate_training_footprint(
        config_of(*overrides, "cluster.workers=1"), tiny_model, "zero3"
    )
    assert elastic.states_bytes == fixed.states_bytes > 0


@pytest.mark.parametrize(
    ("overrides", "has_copy"),
    [
        (("train.method=lora",), False),
        (("train.unet=false",), False),
        (("train.method=full",), True),
        (("train.method=lora", "train.strategy=fsdp2"), True),
    ],
)
def test_the_copy_of_the_base_model_counts_where_there_is_one(
    tiny_model: Path, overrides: tuple[str, ...], has_copy: bool
) -> None:
    overrides = ("train.resolution=64", "prior.count=4", *overrides)
    alone = estimate_training_footprint(config_of(*overrides), tiny_model)
    with_output = estimate_training_footprint(
        config_of(*overrides, "prior.kind=output"), tiny_model
    )
    assert (with_output.frozen_bytes > alone.frozen_bytes) == has_copy


def test_the_configurations_strategy_decides_what_is_shared(tiny_model: Path) -> None:
    overrides = "train.resolution=64", "train.batch_size=4", "cluster.workers=2"
    whole = estimate_training_footprint(config_of(*overrides), tiny_model)
    sharded = estimate_training_footprint(config_of(*overrides, "train.strategy=fsdp2"), tiny_model)
    assert sharded.states_bytes == pytest.approx(whole.states_bytes / 2, rel=0.01)
    zero = config_of(*overrides, "train.strategy=deepspeed", "cluster.gpus=true")
    offloaded = config_of(
        *overrides, "train.strategy=deepspeed", "train.deepspeed.offload=true", "cluster.gpus=true"
    )
    states = [
        estimate_training_footprint(config, tiny_model).states_bytes for config in (zero, offloaded)
    ]
    # Weights, and half of the two moments.
    assert states[0] == pytest.approx(2 * states[1], rel=0.01)


def test_a_damaged_cache_is_made_anew(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = config_of("train.resolution=64")
    estimate = estimate_training_footprint(config, tiny_model)
    (file,) = (tmp_path / "cache").rglob("*.json")
    file.write_text('{"trained": 1')
    assert estimate_training_footprint(config, tiny_model) == estimate
    assert "frozen" in file.read_text()
