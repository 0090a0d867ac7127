from itertools import chain
from pathlib import Path

import pytest

from dreambooth_ray.config.load import load_config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.evaluation.protocol import load_protocol
from dreambooth_ray.evaluation.subject_pair_evaluation import (
    list_pair_prompts,
    list_subjects,
    name_pair_scores,
)
from dreambooth_ray.evaluation.subject_pair_scores import SubjectPairScores


def test_every_two_subjects_are_asked_for_together_and_each_alone(photos: Path) -> None:
    subjects = [
        f"{{photos: {photos}, identifier: {word}, class_noun: {noun}}}"
        for word, noun in (("sks", "robot"), ("zwx", "teapot"), ("ohw", "car"))
    ]
    config = load_config("toy-robot.yaml", [f"subjects=[{', '.join(subjects)}]"])
    prompts, alone, pairs = list_pair_prompts(list_subjects(config), load_protocol("brief"))
    assert [len(positions) for positions in alone] == [7, 7, 7]
    assert [(pair.first, pair.second, len(pair.together)) for pair in pairs] == [
        (0, 1, 7), (0, 2, 7), (1, 2, 7),
    ]  # fmt: skip
    assert prompts[alone[1][0]].prompt == "a zwx teapot in the jungle"
    assert prompts[pairs[2].together[0]].prompt == "a zwx teapot and a ohw car in the jungle"
    positions = [*chain(*alone), *chain(*(pair.together for pair in pairs))]
    assert positions == list(range(len(prompts)))
    assert len({prompt.seed for prompt in prompts}) == len(prompts)


def test_a_run_of_one_subject_has_no_pairs(photos: Path) -> None:
    config = load_config("toy-robot.yaml", [f"subject.photos={photos}", "subject.class_noun=robot"])
    with pytest.raises(ConfigError, match=r"^the run has one subject"):
        list_subjects(config)


def test_numbers_are_named_by_pair_measure_and_subject() -> None:
    scores = SubjectPairScores((0.5, 0.6), (0.1, 0.2), (0.7, 0.8), (0.0, 0.3), 0.75)
    totals = name_pair_scores(("sks", "zwx"), scores)
    assert totals["sks + zwx: both"] == 0.75
    assert totals["sks + zwx: bleed of zwx"] == 0.2
    assert totals["sks + zwx: alone likeness of sks"] == 0.7
    assert len(totals) == 9
