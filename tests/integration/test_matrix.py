"""Every two settings of a training together: from photographs, over a resume, to a bundle."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
import uuid
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageDraw
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.priors.prior_generation import open_prior_set
from dreambooth_ray.priors.prior_spec import PriorSpec
from dreambooth_ray.priors.prior_worker import PriorWorker
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store
from tests.integration.matrix import FACTORS, Row, is_refused, list_rows, overrides_of, row_id
from tests.integration.test_choice import PROTOCOL

SMALL = {
    "train": {"resolution": 64, "steps": 4, "batch_size": 4, "lr": 1e-3},
    "checkpoint": {"every": 2},
    "prior": {"count": 5},
}
ROWS = list_rows()
# In `make test`: sharded weights, samples of them, an average.
QUICK = [
    {"strategy": "fsdp2", "method": "lora", "precision": "bf16", "samples": "samples",
     "prior": "both", "mask": "kept background"},
    {"strategy": "zero3", "method": "kv", "precision": "bf16", "accumulate": "2",
     "prior": "output", "captions": "varied", "mask": "kept background"},
    {"strategy": "ddp", "method": "dora", "precision": "bf16 weights", "average": "average",
     "prior": "output"},
]  # fmt: skip


def test_the_rows_have_every_pair_that_is_not_refused() -> None:
    for one, other in combinations(FACTORS, 2):
        for pair in ((a, b) for a in FACTORS[one] for b in FACTORS[other]):
            values = dict(zip((one, other), pair, strict=True))
            assert any(values.items() <= row.items() for row in ROWS) != is_refused(values)


@pytest.mark.parametrize("strategy", [s for s in FACTORS["strategy"] if s != "ddp"])
def test_what_is_refused_is_refused_as_it_is_read(strategy: str) -> None:
    row = {"strategy": strategy, "average": "average"}
    assert is_refused(row)
    text = "subject: {photos: p, class_noun: robot}"
    with pytest.raises(ConfigError, match=r"train\.ema_decay needs train\.strategy=ddp"):
        parse_config(text, "x", overrides_of(row))


@pytest.mark.parametrize("kind", ["output", "both"])
def test_an_output_that_cant_change_is_refused_as_it_is_read(kind: str) -> None:
    row = {"method": "word", "prior": kind}
    assert is_refused(row)
    text = "subject: {photos: p, class_noun: robot}"
    with pytest.raises(ConfigError, match=rf"prior\.kind={kind}: a word alone is learnt"):
        parse_config(text, "x", overrides_of(row))


class Matrix:
    """Rows as they came out, each run when it is first asked for, together with the rest."""

    def __init__(self, folder: Path, recipe: dict[str, Any], priors: Store) -> None:
        self.folder, self._recipe, self._priors = folder, recipe, priors

    def run(self, rows: list[Row], world_size: int) -> None:
        """Run rows of so many workers that have not been run."""
        self.run_settings({row_name(row): overrides_of(row) for row in rows}, world_size)

    def run_settings(self, settings: dict[str, list[str]], world_size: int) -> None:
        """Run what is set, by name, in one group of processes; a new one after each failure."""
        while todo := {n: s for n, s in settings.items() if not self._is_done(n)}:
            # A file of its own each time: gloo would meet the ports of an earlier group in it.
            group = f"group-{uuid.uuid4().hex}"
            plan = {"rows": todo, "recipe": yaml.safe_dump(self._recipe), "group": group,
                    "priors": self._priors.uri}  # fmt: skip
            (self.folder / "plan.json").write_text(json.dumps(plan))
            command = [sys.executable, "-m", "tests.integration.matrix_worker"]
            processes = [
                subprocess.Popen(
                    [*command, str(rank), str(world_size), str(self.folder)],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    env={**os.environ, "LOCAL_RANK": str(rank)},
                )
                for rank in range(world_size)
            ]  # fmt: skip
            wait_for_all(processes)
            if not any(self._is_done(name) for name in todo):
                (self.folder / f"{next(iter(todo))}-0.error").write_text("no result, no error")

    def _is_done(self, name: str) -> bool:
        return (self.folder / f"{name}.json").exists() or bool(self._errors(name))

    def _errors(self, name: str) -> list[Path]:
        return sorted(self.folder.glob(f"{name}-[0-9].error"))

    def read_result(self, name: str) -> dict[str, Any]:
        """What a row came to; fails with its error."""
        for path in self._errors(name):
            pytest.fail(path.read_text(), pytrace=False)
        result: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        return result


def wait_for_all(processes: "list[subprocess.Popen[bytes]]") -> None:
    """Until all have ended; where one has failed, the others wait for it in vain."""
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes):
            for process in processes:
                process.kill()
        time.sleep(0.1)  # the interval of a poll, not a wait for time to pass


def row_name(row: Row) -> str:
    """A row's run_id."""
    return row_id(row).replace(" ", "-")


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, photos: Path) -> Matrix:
    folder = tmp_path_factory.mktemp("matrix")
    shutil.copytree(photos, folder / "photos")
    for path in photos.glob("*.png"):
        mask = Image.new("L", Image.open(path).size)
        ImageDraw.Draw(mask).ellipse((20, 25, 71, 79), fill=255)
        mask.save(folder / "photos" / f"{path.stem}.mask.png")
    protocol = folder / "protocol.yaml"
    protocol.write_text(yaml.safe_dump({**PROTOCOL, "num_inference_steps": 2}))
    spec = PriorSpec("hash", ("a robot",), SamplingParams(num_inference_steps=2), 64, 0, 5)
    priors = open_prior_set(Store(str(folder / "priors")), spec)
    PriorWorker(str(tiny_model), priors.uri, spec, gpu=False).generate(0)
    recipe = {
        **SMALL,
        "model": {"uri": str(tiny_model)},
        "subject": {"photos": str(folder / "photos"), "class_noun": "robot"},
        "choice": {"protocol": str(protocol)},
    }
    return Matrix(folder, recipe, priors)


@pytest.fixture(scope="module")
def quick(matrix: Matrix) -> Matrix:
    matrix.run(QUICK, world_size=1)
    return matrix


@pytest.fixture(scope="module")
def full(matrix: Matrix) -> Matrix:
    for world_size in (1, 2):
        matrix.run([row for row in ROWS if row["workers"] == str(world_size)], world_size)
    return matrix


@pytest.mark.parametrize("row", [pytest.param(row, id=row_id(row)) for row in QUICK])
def test_a_few_rows(quick: Matrix, row: Row) -> None:
    check_row(quick, row)


@pytest.mark.fault
def test_two_workers_round_alike(matrix: Matrix) -> None:
    """Each optimizer whose steps can be rounded, over all weights."""
    rows: list[Row] = [
        {"strategy": "ddp", "method": "full", "precision": "bf16 weights", "optimizer": optimizer,
         "workers": "2"}
        for optimizer in ("adamw", "adafactor", "lion")
    ]  # fmt: skip
    matrix.run(rows, world_size=2)
    for row in rows:
        check_row(matrix, row)


@pytest.mark.fault
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("row", [pytest.param(row, id=row_id(row)) for row in ROWS])
def test_every_pair(full: Matrix, row: Row) -> None:
    check_row(full, row)


def check_row(matrix: Matrix, row: Row) -> None:
    """Curves, samples and bundle are right."""
    result = matrix.read_result(row_name(row))
    curve = result["curve"]
    assert [record["step"] for record in curve] == [1, 2, 3, 4]
    assert all(math.isfinite(value) for record in curve for value in record.values())
    assert ("val_loss" in curve[1]) == (row.get("validation") == "validation")
    for before, after in zip(curve, result["resumed_curve"], strict=True):
        assert after == pytest.approx(before, rel=1e-5)
    run = Store(f"{matrix.folder}/runs/{row_name(row)}")
    if row.get("samples") == "samples":
        assert sampled_steps(run) == [2, 4]
    about: dict[str, Any] = json.loads(run.read(f"{paths.BUNDLE}/manifest.json"))["about"]
    assert about["step"] in ((2, 4) if row.get("choice") == "best" else (4,))
    parts = load_components(model_directory(f"{run.uri}/{paths.BUNDLE}"))
    for network in (parts.unet, parts.text_encoder):
        assert all(bool(weight.isfinite().all()) for weight in network.parameters())


def sampled_steps(run: Store) -> list[int]:
    """Steps of which there are sample images."""
    events = EventAccumulator(run.local_path(paths.TENSORBOARD).as_posix()).Reload()
    tags = [tag for tag in events.Tags()["images"] if tag.startswith("samples/")]
    in_worker = {image.step for tag in tags for image in events.Images(tag)}
    return sorted(in_worker | set(paths.parse_sampled_steps(run.names(paths.SAMPLES))))
