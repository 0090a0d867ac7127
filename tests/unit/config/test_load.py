from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.config.load import (
    dump_config,
    list_config_keys,
    list_recipe_names,
    load_config,
    override_config,
    parse_config,
)
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError

MINIMAL = "subject: {photos: photos, class_noun: dog}"
PROMISED = """seed model.uri subject.photos subject.identifier subject.class_noun prior.count
prior.actors prior.weight train.steps train.batch_size train.lr train.resolution checkpoint.every
checkpoint.keep cluster.address cluster.workers storage.uri"""


def test_the_keys_others_rely_on_exist() -> None:
    assert set(PROMISED.split()) <= set(list_config_keys())


def test_overrides_apply_in_order_and_keep_their_yaml_types() -> None:
    config = parse_config(MINIMAL, "x", ["train.steps=5", "train.steps=7", "train.lr=1e-3"])
    assert config.train.steps == 7
    assert config.train.lr == 0.001


@pytest.mark.parametrize("is_reversed", [False, True])
def test_steps_and_images_given_together_have_to_agree(is_reversed: bool) -> None:
    def give(*overrides: str) -> Config:
        return parse_config(MINIMAL, "x", list(overrides[::-1] if is_reversed else overrides))

    assert give("train.steps=26", "train.images=102").train.steps == 26
    words = r"train\.images=102 is 26 steps of 4 images, and train\.steps=7 says otherwise"
    with pytest.raises(ConfigError, match=words):
        give("train.steps=7", "train.images=102")


@pytest.mark.parametrize(
    ("recipe", "override"),
    [("steps: 7", "train.images=102"), ("images: 28", "train.steps=26")],
)
def test_one_of_steps_and_images_takes_the_place_of_a_recipes_other(
    recipe: str, override: str
) -> None:
    assert parse_config(f"{MINIMAL}\ntrain: {{{recipe}}}", "x", [override]).train.steps == 26


def test_subjects_take_the_place_of_a_recipes_subject() -> None:
    subjects = "[{photos: a, class_noun: dog, identifier: sks}, {photos: b, class_noun: cat, " + (
        "identifier: zwx}]"
    )
    config = parse_config(MINIMAL, "x", [f"subjects={subjects}", "prior.count=4"])
    assert [subject.photos for subject in config.all_subjects] == ["a", "b"]


def test_a_recipe_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL)
    assert load_config(str(path), ["seed=3"]).seed == 3


@pytest.mark.parametrize("name", list_recipe_names())
def test_every_shipped_recipe_is_valid(name: str) -> None:
    config = load_config(name, ["subject.photos=p", "subject.class_noun=dog"])
    assert config.train.steps > 0


def test_a_shipped_recipe_is_found_without_its_ending() -> None:
    assert load_config("toy-robot", []) == load_config("toy-robot.yaml", [])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.step=5", ["train.step ", "did you mean train.steps"]),
        ("trian.steps=5", ["trian", "did you mean train.steps"]),
        ("lr=5", ["unknown key lr", "did you mean train.lr"]),
        ("train.steps=0", ["train.steps=0", "greater than or equal to 1"]),
        ("train.steps=many", ["train.steps='many'"]),
        ("train.lr=-1", ["train.lr=-1"]),
        ("subject.class_noun=", ["subject.class_noun"]),
        ("subject.class_noun=' '", ["subject.class_noun is empty"]),
        ("train=5", ["train is a section"]),
        ("train.steps.more=5", ["train.steps"]),
        ("train.steps", ["not of the form key.path=value"]),
        ("train.batch_size=3 ", ["cluster.workers=2", "train.batch_size=3"]),
        ("prior.count=1", ["prior.count=1", "train.batch_size=2"]),
        ("run_id=../x", ["run_id='../x'"]),
        ("subjects=1", ["subjects=1: give a list: [a, b]"]),
        ("train.prompt=a {identifer} dog", ["train.prompt='a {identifer} dog'", "{identifier}"]),
        ("prior.prompt=a {class}", ["prior.prompt", "nothing is put in for {class}"]),
        ("prior.prompt=[a {class}]", ["prior.prompt", "nothing is put in for {class}"]),
        ("prior.captions=['a {noun}']", ["prior.captions", "nothing is put in for {noun}"]),
        ("captions.templates=['{captoin} {caption}']", ["captions.templates", "{captoin}"]),
        ("sample.prompts=['a {sks}']", ["sample.prompts.0='a {sks}'"]),
        ("sample={every: 5, prompts: []}", ["sample.every=5", "sample.prompts is an empty list"]),
        ("checkpoint.best=nonsense", ["checkpoint.best='nonsense'", "val_loss"]),
    ],
)
def test_a_bad_override_names_the_key_and_what_to_do(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(MINIMAL, "x", ["train.batch_size=2", "cluster.workers=2", override])
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"subject\.class_noun is not set"):
        parse_config("subject: {photos: p}", "x", [])


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "just words"])
def test_what_is_no_mapping_is_refused_with_its_origin(text: str) -> None:
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        parse_config(text, "mine.yaml", [])


def test_an_unknown_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"toy-robot\.yaml"):
        load_config("toy-robto.yaml", [])


@given(
    steps=st.integers(1, 10**6),
    lr=st.floats(1e-9, 1.0),
    seed=st.integers(0, 2**63 - 1),
    noun=st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12),
)
def test_a_configuration_survives_being_stored(steps: int, lr: float, seed: int, noun: str) -> None:
    config = override_config(
        parse_config(MINIMAL, "x", []), [f"train.steps={steps}", f"seed={seed}"]
    )
    config = config.model_copy(
        update={
            "train": config.train.model_copy(update={"lr": lr}),
            "subject": config.subject.model_copy(update={"class_noun": noun}),
        }
    )
    assert parse_config(dump_config(config), "stored", []) == config
