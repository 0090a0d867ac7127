"""Faults planted in real photographs: how many are found, and what else is flagged."""

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

# What is flagged in the photographs as published: black bars, and one nearly black picture.
CLEAN = {
    ("cat2", "bars", "00.jpg"),
    ("cat2", "bars", "01.jpg"),
    ("cat2", "bars", "04.jpg"),
    ("teapot", "exposure", "03.jpg"),
}
# What the bounds get wrong, of 40 planted faults: two specks before a soft ground go unseen, and
# a dark side view of the teapot is taken for another subject once a duplicate joins the rest.
MISSED = {"tiny on soft ground": 6}
MISTAKEN = {("teapot", "subject", "03.jpg")}
PLANTED: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "blurred": ("blur", blurred),
    "duplicated": ("duplicate", nearly_same),
    "tiny on plain ground": ("subject size", tiny_on_plain),
    "tiny on soft ground": ("subject size", tiny_on_soft),
}
# A photograph of another class, and where it comes from.
STRANGERS = {"dog": "teapot", "cat2": "dog", "teapot": "cat2"}


def flagged(name: str, folder: Path) -> set[tuple[str, str, str]]:
    found = examine(folder, 512, embed=EfficientNetLite0().embed_pictures)
    return {(name, f.check, photo) for f in found.findings for photo in f.photographs}


@dreambench.needed
@pytest.mark.fault
def test_planted_faults_are_found_and_clean_photographs_left_alone(tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    others: set[tuple[str, str, str]] = set()
    for name, paths in dreambench.subjects().items():
        folder = tmp_path / name
        shutil.copytree(paths[0].parent, folder)
        assert flagged(name, folder) == {c for c in CLEAN if c[0] == name}
        for fault, (check, plant) in PLANTED.items():
            planted = folder / "planted.jpg"
            plant(Image.open(paths[0]).convert("RGB")).save(planted, quality=95)
            seen = flagged(name, folder)
            found[fault] += (name, check, "planted.jpg") in seen
            others |= {s for s in seen if s[2] != "planted.jpg" and s[1] != "duplicate"}
        stranger = dreambench.subjects()[STRANGERS.get(name, "cat2")][0]
        shutil.copy(stranger, planted)
        seen = flagged(name, folder)
        found["stranger"] += (name, "subject", "planted.jpg") in seen
        others |= {s for s in seen if s[2] != "planted.jpg"}
    print(dict(found), sorted(others - CLEAN))
    assert found == dict.fromkeys([*PLANTED, "stranger"], 8) | MISSED
    assert others == CLEAN | MISTAKEN
