from pathlib import Path

import pytest
import yaml

from benchmarks import fleet_theme
from benchmarks.fleet_steps import OVERRIDES, make_batched_training_steps, make_slot_trainer
from benchmarks.gated_runs import make_config
from benchmarks.theme import BenchmarkSettings
from dreambooth_ray.config.load import load_config
from dreambooth_ray.training.slots.shared_batch_rules import find_shared_batch_obstacle


def test_a_turn_takes_the_steps_of_every_subject(tmp_path: Path, tiny_model: Path) -> None:
    config = make_config(tmp_path, BenchmarkSettings(str(tiny_model)), "lora-steps", 1, *OVERRIDES)
    train = config.train.model_copy(update={"steps": 9})
    config = config.model_copy(update={"train": train})
    trainer = make_slot_trainer(config, 3)
    assert trainer.num_free_slots == 0
    assert [subject.config.seed for subject in trainer.subjects] == [0, 1, 2]
    make_batched_training_steps(config, 2, 2)()


def test_whole_jobs_of_a_fleet_share_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(fleet_theme, "run_command", commands.append)
    jobs = fleet_theme.FleetComparison(BenchmarkSettings(), tmp_path, 2, 5)
    jobs.run_fleet()
    jobs.run_separately()
    (_, verb, file), first, second = commands
    assert verb == "fleet"
    fleet = yaml.safe_load(Path(file).read_text())
    assert fleet["slots"] == 2
    configs = [load_config(command[-1], []) for command in (first, second)]
    configs.append(load_config(fleet["recipe"], []))
    assert [config.train.steps for config in configs] == [5, 5, 5]
    assert [find_shared_batch_obstacle(config) for config in configs] == [None] * 3
    assert len({config.subject.photos for config in configs}) == 2


def test_ours_is_measured_before_and_after_its_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[str] = []
    monkeypatch.setattr(fleet_theme, "run_command", lambda words: commands.append(words[1]))
    jobs = fleet_theme._compare_jobs(BenchmarkSettings(), tmp_path, 2, 5)
    assert commands == ["fleet", "-m", "-m", "train", "train", "fleet"]
    assert [(case["peer"], case["pairs"]) for case in jobs["cases"]] == [
        ("diffusers", 2), ("separate", 2),
    ]  # fmt: skip
