from pathlib import Path

import pytest
import yaml

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.evaluation.encoders import parse_attributes
from dreambooth_ray.evaluation.protocol import (
    CHUNK_SIZE,
    EvaluationProtocol,
    EvaluationSpec,
    build_evaluation_prompts,
    list_protocol_names,
    load_protocol,
    split_image_chunks,
)
from dreambooth_ray.models.families.stable_diffusion import FAMILY as SD
from dreambooth_ray.models.families.z_image import FAMILY as Z_IMAGE
from dreambooth_ray.models.families.z_image import TURBO
from dreambooth_ray.models.family import ModelFamily


def spec(protocol: EvaluationProtocol, class_noun: str = "robot") -> EvaluationSpec:
    return EvaluationSpec(protocol, "model", "sks", class_noun, ("photo",), None)


def test_the_shipped_protocols_ask_25_prompts_four_times() -> None:
    assert list_protocol_names() == ["brief", "dreambench", "toyworld", "toyworld-brief"]
    for name in ("dreambench", "toyworld"):
        protocol = load_protocol(name)
        for prompts in protocol.prompts.values():
            assert len(set(prompts)) == 25
            assert all("{identifier}" in p and "{class_noun}" in p for p in prompts)
        evaluation = build_evaluation_prompts(spec(protocol))
        assert sum(q.kind == "subject" for q in evaluation) == 100
        assert sum(q.kind == "class" for q in evaluation) == protocol.class_images
        assert len({q.seed for q in evaluation}) == len(evaluation)


@pytest.mark.parametrize(("family", "steps"), [(SD, 20), (Z_IMAGE, 20), (TURBO, 8)])
def test_the_brief_protocol_takes_few_steps_of_any_model(family: ModelFamily, steps: int) -> None:
    protocol = load_protocol("brief").fill_sampling_defaults(family)
    assert protocol.num_inference_steps == steps
    assert protocol.guidance_scale == family.sampling_defaults.get("guidance_scale", 7.5)
    assert protocol.fill_sampling_defaults(family) == protocol
    assert len(build_evaluation_prompts(spec(protocol))) == 16


def test_an_evaluation_keeps_its_name_where_a_protocol_bounds_no_steps() -> None:
    assert "max_inference_steps" not in load_protocol("dreambench").identity_values()
    assert load_protocol("brief").identity_values()["max_inference_steps"] == 20


def test_living_subjects_get_their_own_prompts() -> None:
    protocol = load_protocol("dreambench")
    dog = {
        q.plain_prompt
        for q in build_evaluation_prompts(spec(protocol, "dog"))
        if q.kind == "subject"
    }
    teapot = {
        q.plain_prompt
        for q in build_evaluation_prompts(spec(protocol, "teapot"))
        if q.kind == "subject"
    }
    assert "a dog wearing a santa hat" in dog
    assert "a teapot floating in an ocean of milk" in teapot
    assert load_protocol("toyworld").choose_prompt_set("dog") == "object"


def test_the_plain_prompt_leaves_the_identifier_out() -> None:
    first = build_evaluation_prompts(spec(load_protocol("toyworld")))[0]
    assert (first.prompt, first.plain_prompt) == (
        "a sks robot on the grass",
        "a robot on the grass",
    )


def test_the_toy_protocol_speaks_the_toy_worlds_words_and_leaves_the_class_to_its_own() -> None:
    prompts = build_evaluation_prompts(spec(load_protocol("toyworld")))
    assert all(parse_attributes(q.plain_prompt) for q in prompts)
    other_prompts = [q.plain_prompt for q in prompts if q.kind == "other"]
    assert len(other_prompts) == 36
    assert "a robot" not in other_prompts


def test_a_digest_follows_everything_the_numbers_depend_on() -> None:
    protocol = load_protocol("toyworld")
    changed = [
        spec(protocol),
        spec(protocol, "car"),
        spec(protocol.model_copy(update={"seed": 1})),
        EvaluationSpec(protocol, "other", "sks", "robot", ("photo",), None),
        EvaluationSpec(protocol, "model", "sks", "robot", ("other",), None),
        EvaluationSpec(protocol, "model", "sks", "robot", ("photo",), 64),
        spec(protocol.model_copy(update={"eta": 0.5})),
    ]
    assert len({s.digest for s in changed}) == 7
    assert spec(protocol).digest == spec(load_protocol("toyworld")).digest


def test_evaluations_keep_the_names_they_had_before_there_were_more_parameters() -> None:
    names = ("dreambench", "toyworld", "toyworld-brief")
    digests = [spec(load_protocol(name)).digest for name in names]
    assert digests == ["31b5d2652aabe67d", "957317de92840fc4", "223351b8469decfd"]
    filled = [spec(load_protocol(name).fill_sampling_defaults(SD)).digest for name in names]
    assert filled == digests


def test_what_a_protocol_leaves_open_is_the_models_own() -> None:
    protocol = load_protocol("toyworld")
    filled = protocol.fill_sampling_defaults(Z_IMAGE)
    assert (filled.solver, filled.num_inference_steps, filled.guidance_scale) == ("euler", 25, 3.0)
    assert spec(filled).as_json()["protocol"] == filled.identity_values()
    ddim = EvaluationProtocol.model_validate({**protocol.model_dump(), "solver": "ddim"})
    with pytest.raises(ConfigError, match=r"'toyworld': solver=ddim is not for Z-Image; take eul"):
        ddim.fill_sampling_defaults(Z_IMAGE)


def test_chunks_cover_every_image_once() -> None:
    parts = split_image_chunks(2 * CHUNK_SIZE + 3)
    assert [i for part in parts for i in part] == list(range(2 * CHUNK_SIZE + 3))


def test_a_protocol_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    tree = {
        "name": "mine",
        "prompts": {"object": ["a {identifier} {class_noun}"]},
        "encoders": {"dino": "pixels", "clip_i": "pixels", "clip_t": "toyworld:attributes"},
    }
    path.write_text(yaml.safe_dump(tree))
    assert load_protocol(str(path)).name == "mine"
    for change, said in (
        ({"promts": {}}, "promts: Extra inputs"),
        ({"prompts": {"object": []}}, "empty"),
        ({"prompts": {"object": ["a dog"]}}, "prompts.object.0"),
        ({"solver": "euler", "eta": 0.5}, "eta: .*is for solvers ddim, tcd"),
    ):
        path.write_text(yaml.safe_dump(tree | change))
        with pytest.raises(ConfigError, match=said):
            load_protocol(str(path))
    with pytest.raises(ConfigError, match="neither a file nor one of brief, dreambench, toy"):
        load_protocol("paper")
