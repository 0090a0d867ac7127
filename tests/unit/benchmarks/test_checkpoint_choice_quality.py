from typing import Any

from benchmarks.checkpoint_choice_quality import (
    SIDES,
    load_chosen_or_judged_protocol,
    read_scored_checkpoints,
    summarize_runs,
)
from dreambooth_ray.evaluation.pareto_front import ScoredCheckpoint


def line(chosen: list[list[float]], judged: list[float], pres: float = 0.2) -> dict[str, Any]:
    """Checkpoints at 100, 200, ...; chosen: by image's number, one list a checkpoint."""
    scores_by_step = {
        str(100 * (k + 1)): {
            "chosen": {"dino": values, "pres": pres},
            "judged": {"dino": [value] * SIDES["judged"], "pres": pres},
        }
        for k, (values, value) in enumerate(zip(chosen, judged, strict=True))
    }
    return {"subject": 0, "points": scores_by_step}


def test_sides_ask_for_the_same_images_but_other_seeds() -> None:
    chosen, judged = (
        load_chosen_or_judged_protocol("chosen"),
        load_chosen_or_judged_protocol("judged"),
    )
    assert chosen.prompts == judged.prompts
    assert chosen.seed != judged.seed
    assert chosen.images_per_prompt == judged.images_per_prompt == 4


def test_more_images_can_change_the_choice() -> None:
    one = line([[0.9, 0.1, 0.1, 0.1], [0.5, 0.5, 0.5, 0.5], [0.1] * 4], [0.5, 0.6, 0.597])
    assert read_scored_checkpoints(one, "chosen", 2)[0] == ScoredCheckpoint(100, 0.5, 0.2)
    by_count = summarize_runs([one, one], 0.4)
    assert by_count["1"]["each"][0]["chosen"] == 100
    assert (by_count["1"]["within_2_percent"], by_count["1"]["worst"]) == (0, 0.1667)
    assert (by_count["4"]["within_2_percent"], by_count["4"]["worst"]) == (2, 0.0)
    assert by_count["4"]["last_within_2_percent"] == 2
    assert by_count["4"]["best_is_the_last"] == 0
    rising = line([[0.5] * 4, [0.6] * 4], [0.5, 0.6])
    assert summarize_runs([rising], 0.4)["1"]["best_is_the_last"] == 1


def test_few_images_choose_by_their_own_numbers() -> None:
    run = line([[0.5] * 4, [0.6] * 4], [0.5, 0.6])
    for scores, values in zip(run["points"].values(), [(0.7, 0.1), (0.8, 0.5)], strict=True):
        scores["chosen"] |= {"brief_dino": values[0], "brief_pres": values[1]}
    (row,) = summarize_runs([run], 0.4, (None,))["brief"]["each"]
    assert (row["chosen"], row["best"], row["shortfall"]) == (100, 200, 0.1667)


def test_a_choice_beyond_the_bound_does_not_count() -> None:
    beyond = line([[0.5] * 4, [0.6] * 4], [0.5, 0.6], pres=0.5)
    assert summarize_runs([beyond], 0.4)["1"]["within_2_percent"] == 0
