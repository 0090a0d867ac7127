from pathlib import Path

import pytest
from PIL import Image

from benchmarks import doctor_accuracy
from benchmarks.doctor_accuracy import Tally, find_subject_split, find_subjects, measure_subject
from dreambooth_ray.errors import DataError
from dreambooth_ray.toyworld.photoshoot import write_photographs


def test_the_split_is_by_name_and_keeps_what_bounds_were_set_with_before() -> None:
    assert {find_subject_split(name) for name in doctor_accuracy.EARLIER} == {"setting"}
    subjects = ("vase", "can", "dog5", "clock", "red_cartoon")
    assert [find_subject_split(name) for name in subjects] == [
        "setting", "held out", "held out", "setting", "held out",
    ]  # fmt: skip


def test_a_folder_without_subjects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no folders, one a subject"):
        find_subjects(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        find_subjects(tmp_path / "none")


def test_flags_are_false_unless_a_flaw_is_known() -> None:
    tally = Tally(subjects=["cat2"], num_photographs=4)
    tally.flags = [
        ["cat2", "bars", "00.jpg", "0.2"],
        ["cat2", "blur", "00.jpg", "0.1"],
        ["cat2", "duplicate", "02.jpg and 03.jpg", "0.9"],
    ]
    record = tally.as_record()
    assert record["false_flags"] == tally.flags[1:]
    assert record["false_flags_on_single_photographs_per_100"] == 25
    assert record["flaws_not_flagged"] == [["cat2", "01.jpg", "bars"], ["cat2", "04.jpg", "bars"]]


def test_tallies_add_up() -> None:
    one, other = Tally(["cat"], 5, 10), Tally(["can"], 6, 15)
    for tally, found in ((one, 2), (other, 3)):
        tally.planted["noisy"], tally.found["noisy"] = 4, found
        tally.missed["noisy"] = [f"{tally.subjects[0]}/00.jpg"]
    one.add(other)
    record = one.as_record()
    assert (record["subjects"], record["photographs"], record["pairs"]) == (["cat", "can"], 11, 25)
    assert record["recall_by_kind"] == {"noisy": {"planted": 8, "found": 5}}
    assert record["missed"] == {"noisy": ["cat/00.jpg", "can/00.jpg"]}


def test_faults_are_planted_counted_and_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photographs(tmp_path / "vase", 7, "robot", 2, size_px=512)
    for name in ("FAULTS", "COPIES"):
        kinds = {"out of focus", "black bars", "cropped", "mirrored"}
        chosen = {k: v for k, v in getattr(doctor_accuracy, name).items() if k in kinds}
        monkeypatch.setattr(doctor_accuracy, name, chosen)
    tally = Tally()
    measure_subject("vase", find_subjects(tmp_path)["vase"], tally)
    record = tally.as_record()
    assert (record["photographs"], record["pairs"]) == (2, 1)
    both = {"planted": 2, "found": 2}
    assert record["recall_by_kind"] == dict.fromkeys(
        ("out of focus", "black bars", "cropped", "mirrored"), both
    )
    assert record["false_flags"] == []
    assert record["no_copies"] == {"another pose before one backdrop": 2}


def test_each_fault_changes_the_image_and_can_be_planted_again() -> None:
    image = Image.effect_mandelbrot((96, 96), (-2, -1.5, 1, 1.5), 40).convert("RGB")
    plants = {k: plant for k, (_, plant) in doctor_accuracy.FAULTS.items()} | doctor_accuracy.COPIES
    for kind, plant in plants.items():
        planted = plant(image.copy())
        assert planted.tobytes() != image.tobytes(), kind
        assert planted.tobytes() == plant(image.copy()).tobytes(), kind
