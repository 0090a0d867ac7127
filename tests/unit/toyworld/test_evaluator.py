from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth_ray.errors import DataError
from dreambooth_ray.models.components import load_components
from dreambooth_ray.toyworld.evaluator import (
    NAMES,
    Evaluator,
    load_evaluator,
    predict_attributes,
)
from dreambooth_ray.toyworld.world import (
    SceneLayout,
    Subject,
    random_scene_layout,
    random_subject,
    render_image,
)
from dreambooth_ray.toyworld.world_images import HEADS, attribute_labels, to_tensor

HELD_OUT = 99
COUNT = 150


@pytest.fixture(scope="module")
def network() -> Evaluator:
    return load_evaluator()


@pytest.fixture(scope="module")
def world() -> list[tuple[Subject, SceneLayout]]:
    return [(random_subject(HELD_OUT, k), random_scene_layout(HELD_OUT, k)) for k in range(COUNT)]


@pytest.fixture(scope="module")
def originals(world: list[tuple[Subject, SceneLayout]]) -> list[Image.Image]:
    return [render_image(*one) for one in world]


@pytest.fixture(scope="module")
def remade(originals: list[Image.Image], toy_model: Path) -> list[Image.Image]:
    vae = load_components(toy_model).vae
    pixels = to_tensor(np.stack([np.asarray(p) for p in originals]))
    with torch.inference_mode():
        reconstructed = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
    arrays = ((reconstructed + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(a) for a in arrays]


@pytest.mark.parametrize("kind", ["originals", "remade"])
def test_every_attribute_is_read_from_originals_and_reconstructions(
    kind: str,
    world: list[tuple[Subject, SceneLayout]],
    network: Evaluator,
    request: pytest.FixtureRequest,
) -> None:
    reading = predict_attributes(network, request.getfixturevalue(kind))
    truth = [attribute_labels(*one) for one in world]
    for i, head in enumerate(HEADS):
        expected_names = [NAMES[head][row[i]] for row in truth]
        assert reading.accuracy(head, expected_names) >= 0.93, head


def test_subject_then_reconstruction_then_another_of_its_class(
    world: list[tuple[Subject, SceneLayout]],
    originals: list[Image.Image],
    remade: list[Image.Image],
    network: Evaluator,
) -> None:
    """The same image is nearest, its reconstruction near, a look-alike far."""
    lookalikes = [
        render_image(random_subject(HELD_OUT, 10_000 + k, s.class_noun), scene)
        for k, (s, scene) in enumerate(world)
    ]
    other_scenes = [
        render_image(s, random_scene_layout(HELD_OUT, 20_000 + k)) for k, (s, _) in enumerate(world)
    ]
    identity = predict_attributes(network, originals).identity

    def similarity(images: list[Image.Image]) -> torch.Tensor:
        return (identity * predict_attributes(network, images).identity).sum(dim=1)

    rebuilt, moved, other = similarity(remade), similarity(other_scenes), similarity(lookalikes)
    assert rebuilt.mean() > 0.95
    assert moved.mean() > 0.9
    assert other.mean() < 0.3
    assert ((rebuilt > other) & (moved > other)).float().mean() >= 0.98


def test_blur_is_not_another_subject(originals: list[Image.Image], network: Evaluator) -> None:
    soft = [p.resize((40, 40), Image.Resampling.BILINEAR) for p in originals]
    one, two = (
        predict_attributes(network, originals).identity,
        predict_attributes(network, soft).identity,
    )
    assert (one * two).sum(dim=1).mean() > 0.9


def test_no_images_and_no_weights_are_said(network: Evaluator, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        predict_attributes(network, [])
    with pytest.raises(DataError, match="toyworld pretrain"):
        load_evaluator(tmp_path / "none")
