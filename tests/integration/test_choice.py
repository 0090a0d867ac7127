"""The choice of a checkpoint while a run trains, by the command line and a real Ray."""

import json
import shutil
from pathlib import Path

import pytest
import ray
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreambooth_ray import api
from dreambooth_ray.config.checkpoint_choice import ChoiceConfig
from dreambooth_ray.evaluation.checkpoint_follower import read_scored_checkpoints
from dreambooth_ray.evaluation.pareto_front import select_best_within_drift
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.fence import find_checkpoint
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.retention import committed_steps
from tests.integration.conftest import dreambooth, train

PROTOCOL = {
    "name": "two prompts",
    "prompts": {"object": ["a {identifier} {class_noun}", "a {identifier} {class_noun} at night"]},
    "images_per_prompt": 1,
    "class_images": 2,
    "other_prompts": ["a car"],
    "num_inference_steps": 4,
    "guidance_scale": 3.0,
    "encoders": {
        "dino": "toyworld:identity", "clip_i": "toyworld:identity", "clip_t": "toyworld:attributes",
    },
    "truths": True,
}  # fmt: skip
COMMON = [
    "prior.count=6", "prior.num_inference_steps=3", "sample.every=0", "checkpoint.every=5",
    "checkpoint.keep=1", "choice.rule=best",
]  # fmt: skip


@pytest.fixture
def protocol(tmp_path: Path) -> str:
    (tmp_path / "protocol.yaml").write_text(yaml.safe_dump(PROTOCOL))
    return f"choice.protocol={tmp_path / 'protocol.yaml'}"


@pytest.mark.fault
@pytest.mark.timeout(600)
def test_every_checkpoint_is_evaluated_beside_and_the_best_becomes_the_bundle(
    tmp_path: Path, photos: Path, storage: str, protocol: str
) -> None:
    run = train(tmp_path, photos, storage, *COMMON, protocol, "train.steps=20")
    store, choice = Store(str(run.folder)), ChoiceConfig(rule="best")
    points = read_scored_checkpoints(store, choice)
    assert [p.step for p in points] == [5, 10, 15, 20]
    chosen = select_best_within_drift(points, choice.max_drift)
    assert chosen is not None
    about = json.loads(store.read(f"{paths.BUNDLE}/manifest.json"))["about"]
    assert about["step"] == chosen.step
    assert committed_steps(store) == sorted({chosen.step, 20})
    events = EventAccumulator(str(run.folder / paths.TENSORBOARD)).Reload()
    assert [e.step for e in events.Images("evaluation/front")] == [5, 10, 15, 20]
    name = protocol.removeprefix("choice.protocol=")
    process = dreambooth("evaluate", str(run.folder), "--protocol", name, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "Which checkpoint this is" in Path(process.stdout.splitlines()[-1]).read_text()


@pytest.mark.fault
@pytest.mark.timeout(600)
def test_a_run_whose_front_stalls_ends_early_and_stays_ended(
    tmp_path: Path, photos: Path, storage: str, protocol: str
) -> None:
    stall = [
        "choice.max_evaluations=0",
        "choice.patience=1",
        "choice.min_gain=5",
        "train.steps=1500",
    ]
    run = train(tmp_path, photos, storage, *COMMON, protocol, *stall)
    store = Store(str(run.folder))
    last = run.metrics[-1]["step"]
    assert 10 < last < 1500
    assert committed_steps(store)[-1] == last
    assert last in [p.step for p in read_scored_checkpoints(store, ChoiceConfig(rule="best"))]
    process = dreambooth("resume", str(run.folder), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert run.metrics[-1]["step"] == last


@pytest.mark.fault
@pytest.mark.timeout(600)
def test_a_resume_with_room_for_its_workers_alone_is_no_deadlock(
    tmp_path: Path, photos: Path, tiny_model: Path, protocol: str
) -> None:
    """A checkpoint waits for its evaluation, and the only core is the worker's."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"subject: {{photos: {photos}, class_noun: robot}}")
    settings = [
        f"model.uri={tiny_model}", f"storage.uri={tmp_path}", "run_id=one", "choice.rule=best",
        protocol, "train.resolution=64", "train.steps=4", "checkpoint.every=2", "prior.count=0",
        "train.method=kv",
    ]  # fmt: skip
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        run = Store(api.train(recipe, *settings, quiet=True))
        # As if the run had been cut off after step 2.
        shutil.rmtree(run.local_path(paths.BUNDLE))
        manifest.remove_artifact(run, find_checkpoint(run, 4).name)
        for name in run.names(paths.EVALUATIONS):
            run.remove(f"{paths.EVALUATIONS}/{name}")
        for name in run.names():
            if name.startswith(paths.CHECKPOINT_SELECTION.removesuffix(".json")):
                run.remove(name)
        api.train(recipe, *settings, quiet=True)
    finally:
        ray.shutdown()
    points = read_scored_checkpoints(run, ChoiceConfig(rule="best"))
    assert [point.step for point in points] == [2, 4]
