import json
from pathlib import Path

from benchmarks.gated_runs import dump_portable_config, make_config
from benchmarks.plain_loop import PlainLoop
from benchmarks.theme import BenchmarkSettings
from dreambooth_ray.models.model_directory import model_directory


def test_record_of_a_configuration_names_no_place_of_this_machine(tmp_path: Path) -> None:
    config = make_config(tmp_path, BenchmarkSettings(), "lora", 1)
    assert str(tmp_path) in config.model_dump_json()
    assert str(tmp_path) not in json.dumps(dump_portable_config(config))
    assert dump_portable_config(config)["train"]["method"] == "lora"


def test_plain_loop_learns_what_its_method_names(tmp_path: Path) -> None:
    for name, learns_text in (("full", True), ("lora", False)):
        loop = PlainLoop(
            make_config(tmp_path, BenchmarkSettings(), name, 1), str(model_directory("toyworld"))
        )
        text = [p.clone() for p in loop.text_encoder.parameters()]
        weights = [p.clone() for p in loop._weights]
        assert loop.run_steps(1).wall_s > 0
        assert any((a != b).any() for a, b in zip(weights, loop._weights, strict=True))
        changed = any(
            (a != b).any() for a, b in zip(text, loop.text_encoder.parameters(), strict=True)
        )
        assert changed == learns_text
