import json
from pathlib import Path

import pytest
import torch

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.multimodal_processor import keep_multimodal_processor
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from tests.families.tiny_models import build_tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("flux2-dev", tmp_path_factory.mktemp("flux2") / "base")


@pytest.fixture(scope="module")
def parts(base: Path) -> Components:
    return load_components(base)


def test_guidance_is_an_input_and_told_in_training(parts: Components) -> None:
    functions = parts.functions
    conditioning = functions.encode_prompt(parts, parts.text_forward_functions, "a robot")
    assert conditioning["guidance"].tolist() == [3.5]
    assert functions.tell_guidance(conditioning, 2.0)["guidance"].tolist() == [2.0]
    engine = Engine(parts)
    with pytest.raises(ConfigError, match=r"negative_prompt is not for FLUX.2 dev"):
        engine.submit(Request("a robot", 0, negative_prompt="blue"))


def test_a_prompt_is_taken_whole_or_refused(parts: Components) -> None:
    encode = parts.functions.encode_prompt
    assert encode(parts, parts.text_forward_functions, "robot " * 40)["hidden"].shape == (
        1,
        512,
        24,
    )
    with pytest.raises(ConfigError, match=r"the prompt 'robot robot.* takes [67]\d\d tokens"):
        encode(parts, parts.text_forward_functions, "robot " * 90)


def test_marks_of_images_are_left_out_of_prompts(parts: Components) -> None:
    """As in diffusers' pipeline: nothing would be shown where they stand."""
    encode = parts.functions.encode_prompt
    plain, marked = (
        encode(parts, parts.text_forward_functions, text)["hidden"]
        for text in ("a robot", "a[IMG] robot")
    )
    assert torch.equal(plain, marked)


def test_a_message_begins_once_whoever_marks_its_beginning(base: Path, parts: Components) -> None:
    tokenizer = load_components(base).tokenizer
    ids, mask = parts.functions.tokenize(tokenizer, "a robot")
    begin = tokenizer.bos_token_id
    assert (ids == begin).sum() == 1
    tokenizer.chat_template = tokenizer.chat_template.replace("{{- bos_token }}\n", "")
    assert torch.equal(parts.functions.tokenize(tokenizer, "a robot")[0], ids)
    assert ids[mask.bool()][0] == begin


def test_bundles_keep_the_processor(base: Path, parts: Components, tmp_path: Path) -> None:
    pipeline = parts.functions.build_pipeline(parts, base)
    keep_multimodal_processor(pipeline, "tokenizer", base)
    pipeline.save_config(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["tokenizer"] == ["transformers", "PixtralProcessor"]
    pipeline.tokenizer.save_pretrained(tmp_path / "tokenizer")
    names = {path.name for path in (base / "tokenizer").iterdir()}
    assert {"processor_config.json", "preprocessor_config.json", "chat_template.jinja"} <= names
    for name in names:
        written = (tmp_path / "tokenizer" / name).read_bytes()
        assert written == (base / "tokenizer" / name).read_bytes()
