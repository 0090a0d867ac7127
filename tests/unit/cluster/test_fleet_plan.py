from pathlib import Path

import pytest

from cluster.fleet_plan import load_configurations, load_fleet, refuse_deadlines
from dreambooth_ray.errors import ConfigError

FLEET = """
recipe: toy-robot
overrides: [train.steps=4]
subjects:
- {id: one, photos: p, class_noun: robot, owner: ann}
- {id: two, photos: q, class_noun: dog, overrides: [train.steps=8]}
"""


def test_a_file_becomes_configurations(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET)
    fleet = load_fleet(path)
    steps = [fleet.config_of(s).train.steps for s in fleet.subjects]
    assert steps == [4, 8]
    configs = load_configurations(fleet)
    assert list(configs) == ["one", "two"]
    # What nobody has set is still the model's choice, as of losses for flow matching.
    assert "timesteps" not in configs["one"].loss.model_fields_set


@pytest.mark.parametrize(("text", "match"), [("x", "no mapping of keys"), ("", "no mapping of k")])
def test_a_file_that_is_no_fleet_is_named(text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"fleet.yaml holds {match}"):
        load_fleet(tmp_path / "fleet.yaml")
    with pytest.raises(ConfigError, match=r"can't be read: .*; give a YAML file"):
        load_fleet(tmp_path)


def test_a_subjects_budget_takes_the_place_of_everybodys(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET.replace("train.steps=8", "train.images=40"))
    fleet = load_fleet(path)
    assert [fleet.config_of(s).train.steps for s in fleet.subjects] == [4, 10]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (FLEET.replace("id: two", "id: one"), "'one' is there twice"),
        (FLEET.replace("photos: q", "photo: q"), r"subjects\.1\.photos is not set; give it there$"),
        (FLEET + "paralel: 2", r"yaml: paralel=2: there is no such key"),
        (FLEET.replace("id: two", "id: a/b"), r"subjects\.1\.id='a/b': .*pattern"),
        (FLEET.replace("[train.steps=8]", "train.steps=8"), r"='train.steps=8': give a list"),
        ("recipe: [", "not valid YAML"),
        (FLEET + "slots: 1\nparallel: 2", r"slots=1 can't be divided by parallel=2"),
        (FLEET.replace("owner: ann", "priority: 100000"), r"subjects\.0\.priority=100000: .*99999"),
        (FLEET.replace("owner: ann", f"owner: {'x' * 201}"), "is no name of a folder"),
        (FLEET.replace("owner: ann", "deadline: 2030-01-31T12:00"), "has no time zone"),
        (FLEET.replace("owner: ann", "deadline: soon"), "is no moment"),
        (
            FLEET.replace("train.steps=8", "cluster.address=head"),
            r"subject 'two': cluster\.address=head is another than None of 'one'",
        ),
        (
            FLEET.replace("[train.steps=8]", "[run_id=one]"),
            r"subject 'two': overrides: run_id='one' is another run's name; leave it out",
        ),
        (FLEET.replace("[train.steps=8]", "[train.step=8]"), r"subject 'two'.*train\.steps"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, wrong: str, words: str) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(wrong)
    with pytest.raises(ConfigError, match=words):
        load_configurations(load_fleet(path))


def test_a_deadline_is_the_queues(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET.replace("owner: ann", "deadline: 2030-01-31T12:00Z"))
    fleet = load_fleet(path)
    assert fleet.subjects[0].deadline_s == 1896091200
    with pytest.raises(ConfigError, match=r"'one': deadline=2030-01-31T12:00Z .* `fleet add`"):
        refuse_deadlines(fleet)
