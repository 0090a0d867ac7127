from pathlib import Path

import pytest

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.memory import meta_step
from dreambooth_ray.memory.training_memory import footprint


def config_of(*overrides: str) -> Config:
    return parse_config("subject: {photos: p, class_noun: robot}", "x", list(overrides))


def test_a_count_is_made_once_for_each_model_and_setting(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = config_of("train.resolution=64")
    found = footprint(config, tiny_model)
    assert min(found.states_bytes, found.frozen_bytes, found.activations_bytes) > 0
    counts = []

    def count(config: Config, directory: Path, batch: int) -> dict[str, int]:
        counts.append(batch)
        return {"trained": 1, "frozen": 1, "kept": 10}

    monkeypatch.setattr(meta_step, "count", count)
    assert footprint(config, tiny_model) == found
    assert not counts
    assert footprint(config, tiny_model, "zero3").states_bytes == found.states_bytes
    for other in ("train.batch_size=8", "train.method=lora", "train.resolution=128"):
        assert footprint(config_of("train.resolution=64", other), tiny_model).frozen_bytes == 4
    assert len(counts) == 3


def test_elastic_workers_count_as_their_fewest(tiny_model: Path) -> None:
    given = "train.resolution=64", "train.batch_size=4"
    elastic = footprint(config_of(*given, "cluster.workers={min: 1, max: 2}"), tiny_model, "zero3")
    fixed = footprint(config_of(*given, "cluster.workers=1"), tiny_model, "zero3")
    assert elastic.states_bytes == fixed.states_bytes > 0


def test_a_damaged_cache_is_made_anew(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = config_of("train.resolution=64")
    found = footprint(config, tiny_model)
    (file,) = (tmp_path / "cache").rglob("*.json")
    file.write_text('{"trained": 1')
    assert footprint(config, tiny_model) == found
    assert "frozen" in file.read_text()
