import pytest

from dreambooth_ray.models.families.flux2_klein_checks import expect_transformer
from dreambooth_ray.models.qwen3_checks import expect_qwen3
from tests.families.published_sizes import PUBLISHED_MODELS

EXPECT = {"transformer": expect_transformer, "text_encoder": expect_qwen3}


@pytest.mark.parametrize("part", EXPECT)
@pytest.mark.parametrize("name", ["flux2-klein-4b", "flux2-klein-9b"])
def test_shapes_are_those_of_the_published_network(name: str, part: str) -> None:
    model = PUBLISHED_MODELS[name]
    network = model.build_on_meta(part)
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    shapes.pop("lm_head.weight", None)
    assert EXPECT[part](model.part_config(part)) == shapes
