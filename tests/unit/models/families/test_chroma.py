from pathlib import Path

import pytest
import torch

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components, load_components
from tests.families.tiny_models import build_tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("chroma", tmp_path_factory.mktemp("chroma") / "base")


@pytest.fixture(scope="module")
def parts(base: Path) -> Components:
    return load_components(base)


def test_one_token_of_padding_is_read_behind_a_prompt(parts: Components) -> None:
    encode, tokenizer = parts.functions.encode_prompt, parts.tokenizer
    ids = tokenizer("a robot").input_ids
    row = encode(parts, parts.text_forward_functions, "a robot")["hidden"]
    assert row.shape == (1, len(ids) + 1, 16)
    alone = parts.text_encoder(torch.tensor([ids])).last_hidden_state
    assert torch.allclose(row[:, :-1], alone, atol=1e-5)
    with pytest.raises(ConfigError, match=r"the prompt 'robot robot.* takes 6\d\d tokens"):
        encode(parts, parts.text_forward_functions, "robot " * 100)
