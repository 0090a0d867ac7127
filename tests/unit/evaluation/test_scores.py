import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dreambooth_ray.evaluation import scores
from dreambooth_ray.evaluation.evaluation_report import render_evaluation_page
from dreambooth_ray.evaluation.protocol import EvaluationPrompt, EvaluationSpec, load_protocol
from dreambooth_ray.toyworld.evaluator import load_evaluator
from dreambooth_ray.toyworld.world import (
    random_scene_layout,
    random_subject,
    render_image,
    render_photographs,
)

X, Y, Z = torch.eye(3)


@pytest.fixture
def embeddings() -> scores.EvaluationEmbeddings:
    prompts = [
        EvaluationPrompt("subject", f"a sks dog {k // 2}", f"a dog {k // 2}", k) for k in range(6)
    ]
    prompts += [EvaluationPrompt("class", "a dog", "a dog", 6 + k) for k in range(2)]
    dino = torch.stack([X, X, X, Y, X, F.normalize(X + Y, dim=0), Z, X])
    clip_t = torch.stack([X, X, X, Y, X, X, X, X])
    vectors = {"dino": dino, "clip_i": dino, "clip_t": clip_t, "copies": dino}
    photograph_vectors = dict.fromkeys(("dino", "clip_i", "clip_t", "copies"), torch.stack([X, X]))
    return scores.EvaluationEmbeddings(prompts, vectors, photograph_vectors, X.expand(8, 3))


def test_totals_follow_from_the_vectors(embeddings: scores.EvaluationEmbeddings) -> None:
    result = scores.compute_scores(load_protocol("toyworld"), embeddings)
    values = {name: s.value for name, s in result.totals.items()}
    half = 0.5**0.5
    assert values["dino"] == values["clip_i"] == pytest.approx((4 + 0 + half) / 6)
    assert values["clip_t"] == pytest.approx(5 / 6)
    assert values["pres"] == pytest.approx(0.5)
    assert values["div"] == pytest.approx((0 + 1 + (1 - half)) / 3)
    assert values["memorised"] == pytest.approx(4 / 6)
    assert [p["pictures"] for p in result.prompts] == [[0, 1], [2, 3], [4, 5]]
    assert result.prompts[1]["dino"] == pytest.approx(0.5)


def test_the_worst_come_first_and_are_five(embeddings: scores.EvaluationEmbeddings) -> None:
    result = scores.compute_scores(load_protocol("toyworld"), embeddings)
    assert result.worst[:2] == [3, 5]
    assert len(result.worst) == 5


def test_the_worst_weigh_both_scales_alike() -> None:
    rows = [
        {"index": 0, "dino": 0.9, "clip_t": 0.30},
        {"index": 1, "dino": 0.8, "clip_t": 0.10},
        {"index": 2, "dino": 0.1, "clip_t": 0.31},
        {"index": 3, "dino": 0.9, "clip_t": 0.32},
    ]
    assert set(scores.find_worst_images(rows, 2)) == {1, 2}


def test_the_page_shows_images_and_numbers_and_reaches_for_nothing(
    embeddings: scores.EvaluationEmbeddings,
) -> None:
    protocol = load_protocol("toyworld")
    result = scores.compute_scores(protocol, embeddings)
    tiles = [Image.new("RGB", (64, 64), (30 * k, 90, 20)) for k in range(8)]
    spec = EvaluationSpec(protocol, "model", "<sks>", "dog", ("photo",), None)
    page = render_evaluation_page(
        spec, embeddings.prompts, tiles, tiles[:2], result, spec.as_json()
    )
    assert "&lt;sks&gt; dog" in page
    assert "<sks>" not in page
    # 2 photographs, 5 worst, 6 subject images and 2 of the class
    assert page.count("data:image/jpeg;base64,") == 15
    assert 'class="badge fault">copy' in page
    assert 'src="http' not in page
    assert "href" not in page


def test_the_toy_world_knows_the_truth_of_its_own_renders() -> None:
    subject = random_subject(7, class_noun="robot")
    other = random_subject(8, class_noun="car")
    prompts = [
        EvaluationPrompt("subject", "a sks robot in the snow", "a robot in the snow", 0),
        EvaluationPrompt("subject", "a sks robot on the beach", "a robot on the beach", 1),
        EvaluationPrompt("class", "a robot", "a robot", 2),
        EvaluationPrompt("class", "a robot", "a robot", 3),
        EvaluationPrompt("other", "a car", "a car", 4),
        EvaluationPrompt("other", "a fish", "a fish", 5),
    ]
    in_snow = render_image(subject, random_scene_layout(1, 0, "snow"))
    images = [
        in_snow,
        in_snow,
        in_snow,
        in_snow,
        *[render_image(other, random_scene_layout(1, 1))] * 2,
    ]
    toy_scores = scores.compute_toy_scores(
        prompts, images, render_photographs(subject, 1, 2, 64), load_evaluator()
    )
    values = {name: s.value for name, s in toy_scores.items()}
    assert values["subject_fidelity"] > 0.8
    assert values["prompt_fidelity"] == 0.5
    assert values["diversity"] == 0.0
    assert values["drift"] == 0.5
