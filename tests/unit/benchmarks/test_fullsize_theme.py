from typing import Any

from benchmarks.fullsize_theme import _make_case


def side(step_s: float, peak_bytes: int) -> dict[str, Any]:
    return {"step_s": step_s, "peak_bytes": peak_bytes}


def test_bar_is_of_memory() -> None:
    record = _make_case("lora", {"lora ours": side(2.0, 100), "lora theirs": side(3.0, 150)})
    assert record["ratio"]["median"] == 1.5
    assert record["memory_ratio"] == 1.5
    assert record["reached"]
    assert not _make_case("lora", {"lora ours": side(1, 3), "lora theirs": side(9, 2)})["reached"]


def test_running_out_of_memory_is_a_result() -> None:
    record = _make_case(
        "lora", {"lora ours": side(2, 1), "lora theirs": {"out_of_memory": "killed"}}
    )
    assert record["out_of_memory"] == "theirs"
