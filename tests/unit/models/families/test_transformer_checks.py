"""A transformer's configuration: shapes of the published one, and others refused by key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.families import chroma_checks, krea2_checks, qwen_image_checks
from tests.families.published_sizes import PUBLISHED_MODELS
from tests.families.tiny_models import build_tiny, change_json

# What the family's check reads of a directory, and the shapes that it expects of a configuration.
CHECKS: dict[str, tuple[Callable[[Path], None], Callable[[dict[str, Any]], Any]]] = {
    "chroma": (
        chroma_checks.check_networks,
        lambda config: chroma_checks.list_transformer_shapes(
            {key: value for key, value in config.items() if type(value) is int}
        ),
    ),
    "krea2": (krea2_checks.check_networks, krea2_checks.list_transformer_shapes),
    "qwen-image": (qwen_image_checks.check_networks, qwen_image_checks.list_transformer_shapes),
}
OTHERS: list[tuple[str, dict[str, Any], str]] = [
    ("chroma", {"axes_dims_rope": [4, 4, 4]}, "must add up to attention_head_dim=16"),
    ("chroma", {"out_channels": 4}, "is shown images .*take Chroma1-HD"),
    ("chroma", {"approximator_layers": 3}, "distilled_guidance_layer.layers.2.linear_1.weight is"),
    ("chroma", {"approximator_hidden_dim": "wide"},
     "approximator_hidden_dim='wide' must be a whole"),
    ("krea2", {"axes_dims_rope": [4, 4, 4]}, "must be even and add up to attention_head_dim=16"),
    ("krea2", {"num_key_value_heads": 3}, "num_key_value_heads=3 does not divide num_attention"),
    ("krea2", {"num_text_layers": 4}, r"layers=\[1, 2, 4\] must be .* num_text_layers=4"),
    ("krea2", {"text_intermediate_size": 8}, "text_fusion.layerwise_blocks.0.ff.gate.weight is"),
    ("krea2", {"num_layers": "many"}, "num_layers='many' must be a whole number"),
    ("qwen-image", {"guidance_embeds": True},
     "guidance_embeds=true is of a Qwen-Image that is distilled"),
    ("qwen-image", {"zero_cond_t": True},
     "zero_cond_t=true is of a Qwen-Image that is shown images"),
    ("qwen-image", {"use_layer3d_rope": True},
     "use_layer3d_rope=true is of a Qwen-Image that gives layers"),
    ("qwen-image", {"axes_dims_rope": [4, 4, 4]},
     "must be even and add up to attention_head_dim=16"),
    ("qwen-image", {"patch_size": 1}, "patch_size=1 must be 2"),
    ("qwen-image", {"out_channels": 16}, "what out_channels=16 are in patches, 64"),
]  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("transformers")
    return {family: build_tiny(family, folder / family) for family in CHECKS}


@pytest.mark.parametrize("family", CHECKS)
def test_shapes_are_those_of_the_published_network(family: str) -> None:
    model, (_, list_transformer_shapes) = PUBLISHED_MODELS[family], CHECKS[family]
    network = model.build_on_meta("transformer")
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert list_transformer_shapes(model.part_config("transformer")) == shapes


@pytest.mark.parametrize(("family", "keys", "message"), OTHERS)
def test_another_transformer_is_refused(
    bases: dict[str, Path], family: str, keys: dict[str, Any], message: str
) -> None:
    base, (check_networks, _) = bases[family], CHECKS[family]
    path = base / "transformer" / "config.json"
    before = path.read_text()
    change_json(path, keys)
    try:
        with pytest.raises(ConfigError, match=message):
            check_networks(base)
    finally:
        path.write_text(before)
    check_networks(base)
