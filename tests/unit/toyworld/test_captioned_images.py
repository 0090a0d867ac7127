import numpy as np
import pytest

from dreambooth_ray.errors import DataError
from dreambooth_ray.toyworld import captioned_images
from dreambooth_ray.toyworld.captioned_images import (
    CAPTIONS_EACH,
    render_captioned_block,
    render_captioned_images,
    tokenize_captions,
)
from dreambooth_ray.toyworld.flow_dataset import make_caption_tokenizer_spec
from dreambooth_ray.toyworld.flow_tokenizer import WINDOW, new_flow_tokenizer
from dreambooth_ray.toyworld.world import render_image
from dreambooth_ray.toyworld.world_images import subject_and_scene

FORM = make_caption_tokenizer_spec(new_flow_tokenizer())


def test_a_block_shows_the_images_of_its_indices() -> None:
    images, token_ids = render_captioned_block(5, 30, 33, FORM)
    assert images.shape == (3, 64, 64, 3)
    assert token_ids.shape == (3, CAPTIONS_EACH, WINDOW)
    assert np.array_equal(images[1], np.asarray(render_image(*subject_and_scene(5, 31))))


def test_workers_stream_every_image_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioned_images, "BLOCK", 4)
    blocks = list(render_captioned_images(5, 10, FORM, workers=2))
    assert [start for start, _, _ in blocks] == [0, 4, 8]
    images, token_ids = render_captioned_block(5, 0, 10, FORM)
    assert np.array_equal(np.concatenate([block for _, block, _ in blocks]), images)
    assert np.array_equal(np.concatenate([block for _, _, block in blocks]), token_ids)


def test_a_caption_that_does_not_fit_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match=r"caption 'qqqq.* has \d+ tokens, and 32 fit"):
        tokenize_captions(["q" * 40], FORM)
