from pathlib import Path
from typing import Any

import pytest

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.families.qwen_image_checks import check_networks, expect_transformer
from tests.families.published_sizes import PUBLISHED_MODELS
from tests.families.tiny_models import build_tiny, change_json


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("qwen-image", tmp_path_factory.mktemp("qwen") / "base")


def test_shapes_are_those_of_the_published_network() -> None:
    model = PUBLISHED_MODELS["qwen-image"]
    network = model.build_on_meta("transformer")
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert expect_transformer(model.part_config("transformer")) == shapes


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"guidance_embeds": True}, "guidance_embeds=true is of a Qwen-Image that is distilled"),
        ({"zero_cond_t": True}, "zero_cond_t=true is of a Qwen-Image that is shown images"),
        ({"use_layer3d_rope": True}, "use_layer3d_rope=true is of a Qwen-Image that gives layers"),
        ({"axes_dims_rope": [4, 4, 4]}, "must be even and add up to attention_head_dim=16"),
        ({"patch_size": 1}, "patch_size=1 must be 2"),
        ({"out_channels": 16}, "what out_channels=16 are in patches, 64"),
    ],
)
def test_another_transformer_is_refused(base: Path, keys: dict[str, Any], message: str) -> None:
    path = base / "transformer" / "config.json"
    before = path.read_text()
    change_json(path, keys)
    try:
        with pytest.raises(ConfigError, match=message):
            check_networks(base)
    finally:
        path.write_text(before)
    check_networks(base)
