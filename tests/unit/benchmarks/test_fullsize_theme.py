from typing import Any

from benchmarks.fullsize_theme import _case


def side(step_s: float, peak_bytes: int) -> dict[str, Any]:
    return {"step_s": step_s, "peak_bytes": peak_bytes}


def test_bar_is_of_memory() -> None:
    found = _case("lora", {"lora ours": side(2.0, 100), "lora theirs": side(3.0, 150)})
    assert found["ratio"]["median"] == 1.5
    assert found["memory_ratio"] == 1.5
    assert found["reached"]
    assert not _case("lora", {"lora ours": side(1, 3), "lora theirs": side(9, 2)})["reached"]


def test_running_out_of_memory_is_a_result() -> None:
    found = _case("lora", {"lora ours": side(2, 1), "lora theirs": {"out_of_memory": "killed"}})
    assert found["out_of_memory"] == "theirs"
