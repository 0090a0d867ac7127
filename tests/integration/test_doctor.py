"""Faults planted in real photographs: how many are found, and what else is flagged."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dreambooth_ray.data.doctor import examine
from tests import dreambench
from tests.efficientnet import EfficientNetLite0
from tests.faulty_photographs import blurred, nearly_same, tiny_on_plain, tiny_on_soft

# What is found, missed and flagged beside it, as measured when the bounds were set: black bars and
# one nearly black picture among those as published; of the planted, two specks before a soft ground
# go unseen, and a dark side view of the teapot is taken for another subject once a duplicate joins
# the rest.
RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "doctor.json"
Flag = tuple[str, str, str]
PLANTED: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "blurred": ("blur", blurred),
    "duplicated": ("duplicate", nearly_same),
    "tiny on plain ground": ("subject size", tiny_on_plain),
    "tiny on soft ground": ("subject size", tiny_on_soft),
}
# A photograph of another class, and where it comes from.
STRANGERS = {"dog": "teapot", "cat2": "dog", "teapot": "cat2"}


def flagged(name: str, folder: Path, network: EfficientNetLite0) -> set[Flag]:
    found = examine(folder, 512, embed=network.embed_pictures)
    return {(name, f.check, photo) for f in found.findings for photo in f.photographs}


def rows(flags: set[Flag]) -> list[list[str]]:
    return [list(flag) for flag in sorted(flags)]


@dreambench.needed
@pytest.mark.fault
@pytest.mark.timeout(900)
def test_planted_faults_are_found_and_clean_photographs_left_alone(tmp_path: Path) -> None:
    network, subjects = EfficientNetLite0(), dreambench.subjects()
    found: Counter[str] = Counter()
    clean: set[Flag] = set()
    others: set[Flag] = set()
    for name, paths in subjects.items():
        folder = tmp_path / name
        shutil.copytree(paths[0].parent, folder)
        clean |= flagged(name, folder, network)
        planted = folder / "planted.jpg"
        for fault, (check, plant) in PLANTED.items():
            plant(Image.open(paths[0]).convert("RGB")).save(planted, quality=95)
            seen = flagged(name, folder, network)
            found[fault] += (name, check, "planted.jpg") in seen
            others |= {s for s in seen if s[2] != "planted.jpg" and s[1] != "duplicate"}
        shutil.copy(subjects[STRANGERS.get(name, "cat2")][0], planted)
        seen = flagged(name, folder, network)
        found["of another class"] += (name, "subject", "planted.jpg") in seen
        others |= {s for s in seen if s[2] != "planted.jpg"}
    measured = {
        "subjects": len(subjects),
        "photographs": sum(map(len, subjects.values())),
        "flagged_as_published": rows(clean),
        "found_of_one_planted_in_each": dict(found),
        "flagged_beside_what_was_planted": rows(others - clean),
    }
    print(json.dumps(measured, indent=1))
    assert measured == json.loads(RECORD.read_text())
