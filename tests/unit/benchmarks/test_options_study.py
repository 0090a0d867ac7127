from pathlib import Path

import pytest
from PIL import Image

from benchmarks.options_study import (
    SECTIONS,
    make_cells,
    make_record,
    measure_subject_cut,
    score_backgrounds,
)
from benchmarks.study import StudyCell, load_cell_config
from benchmarks.study_photographs import ODD_PLACE
from benchmarks.study_scorer import load_brief_protocol
from benchmarks.training_options_table import TITLES
from dreambooth_ray.evaluation.protocol import EvaluationPrompt
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.toyworld.evaluator import load_evaluator
from dreambooth_ray.toyworld.world import random_scene_layout, random_subject, render_image


def make_image(kind: str, prompt: str, place: str) -> tuple[EvaluationPrompt, Image.Image]:
    image = render_image(random_subject(6), random_scene_layout(6, 3, place))
    return EvaluationPrompt(kind, prompt, prompt, 0), image  # type: ignore[arg-type]


def test_places_that_leak_are_counted_apart_by_what_was_asked() -> None:
    images = [
        make_image("subject", "a robot in the snow", "snow"),
        make_image("subject", "a robot in the desert", ODD_PLACE),
        make_image("subject", "a red robot", ODD_PLACE),
        make_image("subject", "a robot", "grass"),
        make_image("class", "a robot", "city"),
        make_image("other", "a car", ODD_PLACE),
    ]
    assert score_backgrounds(images, load_evaluator()) == {
        "places": 0.5,
        "leak_named": 0.5,
        "leak_open": 0.5,
        "leak_class": 0.0,
    }


def test_the_judged_prompts_never_name_the_photographs_place() -> None:
    prompts = load_brief_protocol("judged").prompts["object"]
    assert not any(ODD_PLACE in prompt for prompt in prompts)


@pytest.mark.parametrize(("row", "share"), [("centre crops", 0.14), ("buckets", 0.0)])
def test_what_is_cut_off_is_measured_on_what_training_gets(
    row: str, share: float, tmp_path: Path
) -> None:
    (cell,) = make_cells(["buckets"], [0])["buckets", row]
    assert measure_subject_cut(load_cell_config(cell, tmp_path)) == pytest.approx(share, abs=0.01)


def test_adapters_are_of_equal_size_within_a_tenth(tmp_path: Path) -> None:
    sizes = {}
    for (_, row), (cell,) in make_cells(["adapters"], [0]).items():
        parts = load_components(model_directory("toyworld"))
        apply_train_method(load_cell_config(cell, tmp_path), parts)
        sizes[row] = sum(
            p.numel()
            for network in parts.networks.values()
            for p in network.parameters()
            if p.requires_grad
        )
    assert len(sizes) == 5
    assert max(sizes.values()) <= 1.1 * min(sizes.values())


def test_a_record_has_the_sections_whose_cells_are_there() -> None:
    cells = make_cells(tuple(SECTIONS), [0, 1])
    names = [cell.name for of_row in cells.values() for cell in of_row if cell.subject == 0]
    assert len(set(names)) == len(names)
    (cell, _) = cells["masks", "no masks"]
    scores = dict.fromkeys(TITLES, 0.5)
    line = {
        "subject": cell.subject,
        "cell": cell.name,
        "points": {"160": {"judged": scores}},
        "parameters": 10,
    }
    record = make_record(cells, [line])
    assert list(record["sections"]) == ["masks"]
    assert list(record["sections"]["masks"]["rows"]) == ["no masks"]
    assert record["cells"] == [line]
    assert StudyCell(0, "lora", True).name == "lora, with class images"
