from pathlib import Path

from cluster.slot_fleet import make_slot_job
from dreambooth_ray.config.load import parse_config
from dreambooth_ray.preparation import PreparedRun
from dreambooth_ray.runs import open_run
from dreambooth_ray.training.stop_request import is_stop_requested, request_stop


def test_a_subjects_run_says_which_class_images_it_uses(
    tmp_path: Path, photos: Path, tiny_model: Path
) -> None:
    """Else they would be collected as garbage before its turn."""
    config = parse_config(
        f"run_id: one\nsubject: {{photos: {photos}, class_noun: robot}}", "x",
        [f"model.uri={tiny_model}", f"storage.uri={tmp_path}", "train.method=lora", "prior.count=4",
         "train.steps=1", "train.resolution=64"],
    )  # fmt: skip
    run = open_run(config)
    request_stop(run)
    job = make_slot_job(PreparedRun(config, tiny_model))
    assert run.exists("priors.json")
    # No more than its steps will use.
    assert job.num_priors == 2
    assert job.run_uri == run.uri
    assert not is_stop_requested(run)
