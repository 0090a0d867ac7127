from collections import Counter
from pathlib import Path

import torch

from dreambooth_ray.evaluation.toyscore import (
    attribute_prompts,
    predict_folder_attributes,
    self_similarity,
    subject_fidelity,
)
from dreambooth_ray.toyworld.attributes import BACKGROUNDS
from dreambooth_ray.toyworld.evaluator import PredictedAttributes, fidelity, load_evaluator
from dreambooth_ray.toyworld.world import random_subject, render_photographs


def test_held_out_prompts_are_even_and_distinct() -> None:
    prompts = attribute_prompts(400)
    assert len({p for p, _ in prompts}) == 400
    for head, share in {"class": 40, "colour": 40, "pattern": 100, "background": 40}.items():
        counts = Counter(truth[head] for _, truth in prompts)
        assert set(counts.values()) == {share}, head
    words, truth = prompts[123]
    assert all(
        (BACKGROUNDS[value] if head == "background" else value) in words
        for head, value in truth.items()
    )


def test_similarities_of_known_vectors() -> None:
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert fidelity(east, torch.cat([east, north])) == 0.5
    assert self_similarity(PredictedAttributes({}, torch.cat([east, east, north]))) == 1 / 3
    assert self_similarity(PredictedAttributes({}, east)) == 1.0


def test_a_subjects_own_photographs_are_like_each_other_and_unlike_anothers() -> None:
    network = load_evaluator()
    photos = render_photographs(random_subject(7, class_noun="robot"), 7, 4)
    more_photos = render_photographs(random_subject(7, class_noun="robot"), 8, 4)
    photos_of_another = render_photographs(random_subject(8, class_noun="robot"), 7, 4)
    assert subject_fidelity(more_photos, photos, network) > 0.85
    assert subject_fidelity(photos_of_another, photos, network) < 0.5


def test_a_folder_is_read_image_by_image(photos: Path) -> None:
    report = predict_folder_attributes(photos, load_evaluator())
    rows = report["pictures"]
    assert isinstance(rows, list)
    assert [r["class"] for r in rows] == ["robot"] * 3
    assert report["identity_similarity"] > 0.85  # type: ignore[operator]
