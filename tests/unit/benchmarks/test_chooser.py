from typing import Any

from benchmarks.chooser import SIDES, points, side, summary
from dreambooth_ray.evaluation.pareto_front import Scored


def line(chosen: list[list[float]], judged: list[float], pres: float = 0.2) -> dict[str, Any]:
    """Checkpoints at 100, 200, ...; chosen: by image's number, one list a checkpoint."""
    found = {
        str(100 * (k + 1)): {
            "chosen": {"dino": one, "pres": pres},
            "judged": {"dino": [value] * SIDES["judged"], "pres": pres},
        }
        for k, (one, value) in enumerate(zip(chosen, judged, strict=True))
    }
    return {"subject": 0, "points": found}


def test_sides_ask_for_the_same_images_but_other_seeds() -> None:
    chosen, judged = side("chosen"), side("judged")
    assert chosen.prompts == judged.prompts
    assert chosen.seed != judged.seed
    assert chosen.images_per_prompt == judged.images_per_prompt == 4


def test_more_images_can_change_the_choice() -> None:
    one = line([[0.9, 0.1, 0.1, 0.1], [0.5, 0.5, 0.5, 0.5], [0.1] * 4], [0.5, 0.6, 0.597])
    assert points(one, "chosen", 2)[0] == Scored(100, 0.5, 0.2)
    found = summary([one, one], 0.4)
    assert found["1"]["each"][0]["chosen"] == 100
    assert (found["1"]["within_2_percent"], found["1"]["worst"]) == (0, 0.1667)
    assert (found["4"]["within_2_percent"], found["4"]["worst"]) == (2, 0.0)
    assert found["4"]["last_within_2_percent"] == 2
    assert found["4"]["best_is_the_last"] == 0


def test_a_choice_beyond_the_bound_does_not_count() -> None:
    beyond = line([[0.5] * 4, [0.6] * 4], [0.5, 0.6], pres=0.5)
    assert summary([beyond], 0.4)["1"]["within_2_percent"] == 0
