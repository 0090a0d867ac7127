"""A run whose model is of the hub: gated, fetched by the command, pinned for the run's life."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_ray.data.run_inputs import read_model_pins
from dreambooth_ray.storage.store import Store
from tests.hub_server import TOKEN, HubServer, read_folder
from tests.integration.conftest import dreambooth

SCHEDULER = "scheduler/scheduler_config.json"
SHORT = [
    "train.method=lora", "train.steps=2", "checkpoint.every=2", "sample.every=0",
    "prior.count=2", "train.batch_size=1", "cluster.workers=1", "prior.num_inference_steps=2",
]  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, toy_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    server = HubServer()
    server.add("someone/tiny", read_folder(toy_model), "gated")
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "cache"))
    yield server
    server.close()


@pytest.mark.fault
def test_a_run_goes_on_with_the_commit_that_it_began_with(
    hub: HubServer, photos: Path, tmp_path: Path, toy_model: Path
) -> None:
    command = [
        "train", "toy-robot-lora.yaml", f"subject.photos={photos}", "model.uri=someone/tiny",
        "run_id=pinned", *SHORT,
    ]  # fmt: skip
    first = hub.repos["someone/tiny"].revisions["main"]
    done = dreambooth(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = Store(str(tmp_path / "out" / "runs" / "pinned"))
    assert read_model_pins(run) == {"someone/tiny": f"someone/tiny@{first}"}

    moved = json.loads((toy_model / SCHEDULER).read_text()) | {"beta_end": 0.02}
    files = read_folder(toy_model) | {SCHEDULER: json.dumps(moved).encode()}
    assert hub.repos["someone/tiny"].commit(files) != first
    before = dict(hub.requests)
    done = dreambooth(*command, "--force", "train.steps=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert dict(hub.requests) == before, "a run that is pinned and whose model is here asks nobody"
    about = json.loads(run.read("bundle/manifest.json"))["about"]
    assert about["base_model"] == f"someone/tiny@{first}" and about["step"] == 3

    done = dreambooth(
        "generate", run.uri, "--num-images", "1", "--num-inference-steps", "2", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    files_written = [
        path
        for folder in ("out", "cache")
        for path in (tmp_path / folder).rglob("*")
        if path.is_file()
    ]
    assert len(files_written) > 20
    assert not [path for path in files_written if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in done.stdout + done.stderr
    assert hub.tokens_elsewhere == []
