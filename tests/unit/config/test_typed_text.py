"""What people write is what is read back, or is refused with its key."""

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from cluster.cluster_registry import find_cluster
from cluster.fleet_plan import load_fleet
from dreambooth_ray.config.key_types import KeyType
from dreambooth_ray.config.load import (
    list_config_keys,
    load_config,
    load_serve_config,
    parse_config,
)
from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.serving import AuthConfig
from dreambooth_ray.errors import ConfigError
from serve.auth import read_api_keys

BASE = {"subject": {"photos": "photos", "class_noun": "dog"}}
MINIMAL = yaml.safe_dump(BASE)
PATHS = ("subject.photos", "model.uri", "prior.folder", "storage.uri", "choice.protocol",
         "tracking.mlflow_uri", "model.vae", "model.text_encoder")  # fmt: skip
EXPANDED = (*PATHS, "storage.scratch")  # which takes nothing relative
TRAPS = (
    "1234", "no", "yes", "null", "~x", "2024-01-01", "1:30", "0x10", "010", "1e3", "1_000", ".5",
    "a #1 fan", "photo: a dog", "{identifier} toy", "[red] dog", "- a", "& a", "* b", "!tag",
    "% c",
    "@home", "`x`", "a, b", "'half", '"half', "'a' and 'b'", "?", ": ", "#", "a\\b",
    "é ü 日本", "\u2028x", "=", "a=b", "<<", "{}x", "|", ">", "true",
)  # fmt: skip
TEXT = st.one_of(
    st.sampled_from(TRAPS),
    st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" ")),
)  # fmt: skip


def get(config: BaseModel, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def key_types(schema: type[BaseModel] = Config) -> dict[str, KeyType]:
    types = {}
    for key in list_config_keys(schema):
        key_type = KeyType(schema)
        for name in key.split("."):
            key_type = key_type.child(name)
        types[key] = key_type
    return types


TEXT_KEYS = sorted(k for k, t in key_types().items() if t.reads_as_text)
NUMBER_KEYS = sorted(k for k, t in key_types().items() if t.reads_as_number and not t.reads_as_text)


def is_quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] and text[0] in "'\""


def check_read_back(key: str, text: str, value: object) -> None:
    """A text as pydantic takes it: without spaces around it, a path with its home folder."""
    if text.strip() in ("", "null") and value is None:
        return
    if isinstance(value, tuple):  # prior.prompt=[a, b]
        assert text.strip().startswith("[")
        return
    assert isinstance(value, str), (key, text, value)
    plain = text.strip()
    assert value.strip() == (os.path.expanduser(plain) if key in EXPANDED else plain)  # noqa: PTH111


@settings(deadline=None, max_examples=300)
@given(key=st.sampled_from(TEXT_KEYS), text=TEXT.filter(lambda t: not is_quoted(t)))
@example("prior.prompt", "[red] dog")
@example("subject.photos", "odd/hash #2")
def test_an_override_of_a_text_key_is_its_text_or_is_refused(key: str, text: str) -> None:
    try:
        config = parse_config(MINIMAL, "x", [f"{key}={text}"])
    except ConfigError as error:
        assert key.partition(".")[0] in str(error), (key, text, str(error))
        return
    check_read_back(key, text, get(config, key))


@settings(deadline=None, max_examples=200)
@given(key=st.sampled_from(TEXT_KEYS), text=TEXT)
def test_a_recipe_of_a_text_key_is_its_text_or_is_refused(key: str, text: str) -> None:
    """Written by any YAML writer, and plainly by hand where that is YAML for one text."""
    tree: dict[str, Any] = {"subject": dict(BASE["subject"])}
    *sections, leaf = key.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
    node[leaf] = text
    try:
        config = parse_config(yaml.safe_dump(tree), "x", [])
    except ConfigError as error:
        assert key.partition(".")[0] in str(error), (key, text, str(error))
        return
    value = get(config, key)
    plain = text.strip()
    assert value.strip() == (os.path.expanduser(plain) if key in EXPANDED else plain)  # noqa: PTH111


@settings(deadline=None, max_examples=200)
@example(key="checkpoint.every", text="9007199254740993")
@given(key=st.sampled_from(NUMBER_KEYS), text=TEXT | st.integers(-3, 10**6).map(str))
def test_an_override_of_a_number_is_that_number_or_is_refused(key: str, text: str) -> None:
    try:
        config = parse_config(MINIMAL, "x", [f"{key}={text}"])
    except ConfigError:
        return
    value = get(config, key)
    if isinstance(value, bool):
        assert text.strip().lower() in ("true", "false", "yes", "no", "on", "off", "y", "n", "t",
                                        "f", "1", "0")  # fmt: skip
    elif isinstance(value, int | float):
        # Beyond 2**53 a float is no longer the integer that was written.
        exact = Fraction if isinstance(value, int) else float
        assert exact(text.replace("_", "").strip()) == value
    else:
        assert value is None
        assert text.strip() in ("", "null")


@pytest.mark.parametrize("text", TRAPS)
def test_a_plain_scalar_in_a_file_is_its_text(text: str) -> None:
    """By hand: `class_noun: no` is the noun "no"."""
    try:
        node = yaml.compose(f"k: {text}")
        is_plain = isinstance(node.value[0][1], yaml.ScalarNode) and node.value[0][1].value == text
    except (yaml.YAMLError, AttributeError):
        is_plain = False
    document = f"subject: {{photos: p, class_noun: dog}}\nmodel:\n  uri: {text}\n"
    if is_plain:
        assert parse_config(document, "x", []).model.uri == os.path.expanduser(text)  # noqa: PTH111
        return
    try:
        uri = parse_config(document, "x", []).model.uri
    except ConfigError:
        return
    assert isinstance(uri, str)


def test_lists_and_mappings_are_for_keys_that_are_such() -> None:
    config = parse_config(
        MINIMAL, "x",
        ["subject.prompts=[1234, no, 'a, b']", "prior.prompt=[a dog, a cat]",
         "cluster.workers={min: 1, max: 2}", "prior.resources={slot: 1.5}",
         "train.lora.target_modules=[to_q]", "prior.guidance_interval=0.2,0.8",
         "sample.guidance_interval=[0.1, 0.9]", "storage.options.endpoint_url=http://h:1#x",
         "storage.options.use_ssl=false", "storage.options.key=007"],
    )  # fmt: skip
    assert config.subject.prompts == ("1234", "no", "a, b")
    assert config.prior.prompt == ("a dog", "a cat")
    assert (config.cluster.span.min, config.cluster.span.max) == (1, 2)
    assert config.prior.resources == {"slot": 1.5}
    assert config.train.lora.target_modules == ("to_q",)
    assert config.prior.guidance_interval == (0.2, 0.8)
    assert config.sample.guidance_interval == (0.1, 0.9)
    options = {"endpoint_url": "http://h:1#x", "use_ssl": False, "key": "007"}
    assert config.storage.options == options
    workers = parse_config(MINIMAL, "x", ["train.batch_size=6", "cluster.workers.max=3"])
    assert workers.cluster.span.max == 3


@pytest.mark.parametrize(
    "override", ["subject.prompts=a", "subject.prompts=[a", "cluster.workers={min: 1, min: 2}"]
)
def test_a_list_that_is_none_is_refused_with_its_key(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0].replace(".", r"\.")):
        parse_config(MINIMAL, "x", [override])


def test_names_that_users_choose_may_hold_dots() -> None:
    overrides = ["models.sd1.5=~/sd", "subjects.my.dog.minimum=1"]
    config = load_serve_config(None, overrides)
    assert config.models["sd1.5"] == str(Path.home() / "sd")
    assert config.subjects["my.dog"].minimum == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train:\n  steps: 7\nsubject: {photos: p, class_noun: d}\ntrain:\n  lr: 1e-4\n",
         "line 4: key train is there twice, first in line 1"),
        ("subject:\n  photos: p\n  class_noun: d\n  photos: q\n",
         "line 4: key subject.photos is there twice, first in line 2"),
        ('subject: {photos: p, "photos": q, class_noun: d}\n', "line 1: key subject.photos"),
        ("subjects:\n- {photos: p, class_noun: d, photos: q}\n", "line 2: key subjects.0.photos"),
        ("seed: [\n", "line 2, column 1: is not valid YAML"),
        ("a: b: c\n", "line 1, column 5: is not valid YAML"),
    ],
)  # fmt: skip
def test_a_file_says_line_and_key(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_config(str(path), [])
    assert str(refused.value).startswith(f"{path} ")
    assert words in str(refused.value)


def test_merged_keys_are_not_there_twice() -> None:
    text = (
        "subject: &s {photos: p, class_noun: dog}\nsubjects:\n- *s\n- {<<: *s, identifier: zwx}\n"
    )
    config = parse_config(text, "x", [])
    assert [s.identifier for s in config.all_subjects] == ["sks", "zwx"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (MINIMAL.encode("utf-16"), "line 1 is UTF-16"),
        (MINIMAL.encode("utf-32"), "line 1 is UTF-32"),
        ("seed: 1\nsubject:\n  class_noun: café\n".encode("latin-1"), "line 3, key class_noun,"),
        ("seed: 1\r\n# é\r\n".encode("cp1252"), "line 2 is not UTF-8"),
        (
            MINIMAL.encode("utf-16-le"),
            "line 1: the character U+0000 can't be there; it may be UTF-16",
        ),
        (b"seed: 1\nmodel: {uri: a\x07b}\n", "line 2: the character U+0007 can't be there"),
    ],
)
def test_another_encoding_is_named_with_file_line_and_key(
    data: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as refused:
        load_config(str(path), [])
    assert str(refused.value).startswith(f"{path} {words}")


def test_a_byte_order_mark_of_utf_8_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(MINIMAL.encode("utf-8-sig"))
    assert load_config(str(path), []).subject.class_noun == "dog"


@pytest.mark.parametrize("key", PATHS)
def test_paths_of_every_key_know_the_home_folder(
    key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    text = parse_config(MINIMAL, "x", [f"{key}=~/a b"])
    assert get(text, key) == f"{tmp_path}/a b"
    assert get(parse_config(MINIMAL, "x", [f"{key}=s3://b//c"]), key) == "s3://b//c"
    assert get(parse_config(MINIMAL, "x", [f"{key}=rel/~x"]), key) == "rel/~x"


@pytest.mark.parametrize("text", ["[{name: a, sha256: x, name: b}]", "- name: a\n  sha256: [\n"])
def test_other_files_are_read_by_the_same_rules(text: str, tmp_path: Path) -> None:
    """Of keys, nothing but line and key is said: what stands beside them may be a secret."""
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"keys\.yaml line \d") as refused:
        read_api_keys(AuthConfig(keys_file=str(path)), {})
    assert "sha256" not in str(refused.value)


def test_texts_of_other_files_are_texts_as_well(tmp_path: Path) -> None:
    clusters = tmp_path / "clusters.yaml"
    clusters.write_text('team: {address: "http://h:8265", token: 01234, env: {A: no}}')
    entry = find_cluster("team", clusters)
    assert (entry.token, entry.env) == ("01234", {"A": "no"})
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("recipe: toy-robot\nsubjects:\n- {id: 007, photos: ~/a, class_noun: no}\n")
    subject = load_fleet(fleet).subjects[0]
    assert (subject.id, subject.class_noun) == ("007", "no")
    config = load_fleet(fleet).config_of(subject)
    assert (config.run_id, config.subject.class_noun) == ("007", "no")
