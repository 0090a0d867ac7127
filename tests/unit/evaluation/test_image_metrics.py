import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_ray.errors import DataError
from dreambooth_ray.evaluation import image_metrics

X, Y, Z = torch.eye(3)
BETWEEN = F.normalize(X + Y, dim=0)


def test_fidelity_is_the_mean_over_all_pairs() -> None:
    images, photographs = torch.stack([X, BETWEEN]), torch.stack([X, Y])
    half = math.sqrt(0.5)
    assert image_metrics.subject_fidelity(images, photographs) == pytest.approx(
        (1 + 0 + 2 * half) / 4
    )
    assert image_metrics.photograph_similarity(images, photographs).tolist() == pytest.approx(
        [0.5, half]
    )


def test_prompts_are_compared_row_with_row() -> None:
    agreement = image_metrics.prompt_agreement(torch.stack([X, Y]), torch.stack([X, -Y]))
    assert agreement.tolist() == [1.0, -1.0]
    assert image_metrics.prompt_agreement(
        torch.stack([X, Y]), torch.stack([BETWEEN, Y])
    ).tolist() == (pytest.approx([math.sqrt(0.5), 1.0]))


def test_a_class_that_became_the_subject_has_pres_1() -> None:
    photographs = torch.stack([X, X])
    assert image_metrics.prior_preservation_score(torch.stack([X, X, X]), photographs) == 1.0
    assert image_metrics.prior_preservation_score(torch.stack([Y, Z]), photographs) == 0.0


def test_diversity_is_the_mean_over_prompts_of_the_mean_over_pairs() -> None:
    alike, different = torch.stack([X, X]), torch.stack([X, Y, Z])
    assert image_metrics.diversity([alike]) == pytest.approx(0.0, abs=1e-6)
    assert image_metrics.diversity([different]) == pytest.approx(1.0)
    assert image_metrics.diversity([alike, different]) == pytest.approx(0.5)
    assert image_metrics.diversity([different, X[None]]) == pytest.approx(1.0)
    assert image_metrics.diversity([torch.stack([X, -X])]) == pytest.approx(2.0)


def test_the_nearest_photograph_is_named_and_a_copy_flagged() -> None:
    nearest_of_each = image_metrics.nearest_photographs(
        torch.stack([Y, BETWEEN]), torch.stack([X, Y]), bound=0.9
    )
    assert [(n.photograph, n.copied) for n in nearest_of_each] == [(1, True), (0, False)]
    assert nearest_of_each[1].cosine == pytest.approx(math.sqrt(0.5))


def test_entropy_is_0_for_one_name_and_1_for_all_alike() -> None:
    assert image_metrics.entropy(["red"] * 5, 10) == 0.0
    assert image_metrics.entropy(["a", "b", "c", "d"], 4) == pytest.approx(1.0)
    assert image_metrics.entropy(["a", "b"], 4) == pytest.approx(0.5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_fidelity_does_not_depend_on_order_or_side(a: int, b: int, seed: int) -> None:
    images = F.normalize(torch.randn(a, 8, generator=torch.Generator().manual_seed(seed)), dim=1)
    photographs = F.normalize(
        torch.randn(b, 8, generator=torch.Generator().manual_seed(seed + 1)), dim=1
    )
    value = image_metrics.subject_fidelity(images, photographs)
    assert -1.0001 <= value <= 1.0001
    assert value == pytest.approx(
        image_metrics.subject_fidelity(images.flip(0), photographs.flip(0)), abs=1e-6
    )
    assert value == pytest.approx(image_metrics.subject_fidelity(photographs, images), abs=1e-6)


def test_vectors_that_are_not_unit_and_empty_sets_are_refused() -> None:
    with pytest.raises(DataError, match="photographs holds a vector of length 2"):
        image_metrics.subject_fidelity(X[None], 2 * X[None])
    with pytest.raises(DataError, match="images must be"):
        image_metrics.subject_fidelity(torch.zeros(0, 3), X[None])
    with pytest.raises(DataError, match="two images of one prompt"):
        image_metrics.diversity([X[None]])
    with pytest.raises(DataError, match="against"):
        image_metrics.prompt_agreement(X[None], torch.stack([X, Y]))
    with pytest.raises(DataError, match="entropy"):
        image_metrics.entropy([], 3)
