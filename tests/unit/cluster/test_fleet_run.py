"""What a fleet does before and around its trainings."""

from pathlib import Path

import pytest

from cluster import fleet_run
from cluster.fleet_run import generate_priors
from dreambooth_ray import pipeline
from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import StorageError
from dreambooth_ray.preparation import PreparedRun
from dreambooth_ray.priors.prior_generation import PriorSetRequest


def test_class_images_are_drawn_up_to_the_largest_count_and_again_after_a_failure(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_run(*overrides: str) -> PreparedRun:
        base = "run_id: one\nsubject: {photos: p, class_noun: robot}"
        return PreparedRun(
            parse_config(base, "x", [f"storage.uri={tmp_path}", *overrides]), tiny_model
        )

    counts_asked: list[int] = []
    fails = [True]

    def generate(run: PreparedRun, request: PriorSetRequest, display: object) -> None:
        counts_asked.append(request.count)
        if fails.pop():
            raise StorageError("storage is away")

    monkeypatch.setattr(pipeline, "generate_missing_priors", generate)
    assert fleet_run.pipeline is pipeline
    counts: dict[str, int] = {}
    few, many, other = (
        make_run("prior.count=6"), make_run("prior.count=20"),
        make_run("prior.count=6", "prior.prompt=a photo of a {class_noun}"),
    )  # fmt: skip
    with pytest.raises(StorageError):
        generate_priors([few], print, counts)
    fails += [False] * 9
    generate_priors([few, few, many, few, many, other, make_run("prior.count=0")], print, counts)
    assert counts_asked == [6, 6, 20, 6]
    assert sorted(counts.values()) == [6, 20]
