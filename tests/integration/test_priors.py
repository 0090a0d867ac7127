"""The pool of actors on a real Ray: the same set whichever actor generates it or dies."""

import io
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from cluster.session import session
from dreambooth_ray.config.load import load_config
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.config.prior import PriorConfig
from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import CapacityError, DataError
from dreambooth_ray.models.model_directory import model_hash
from dreambooth_ray.priors.prior_catalog import verify_prior_set
from dreambooth_ray.priors.prior_generation import (
    PriorSetRequest,
    generate_priors,
    read_committed_chunks,
)
from dreambooth_ray.priors.prior_spec import PriorSpec, select_counted_images
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.world import random_subject, render_photographs


@pytest.fixture(scope="module")
def config() -> Iterator[Config]:
    toy_config = load_config("toy-robot.yaml", ["prior.actors=4"])
    with session(toy_config):
        yield toy_config


@pytest.fixture(scope="module")
def spec(toy_model: Path) -> PriorSpec:
    return PriorSpec(
        model_hash(toy_model), ("a robot",), SamplingParams(num_inference_steps=3), 64, 0, 4
    )


def generate(
    storage: Path,
    request: PriorSetRequest,
    actors: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Store:
    prior_config = PriorConfig(actors=actors)
    return generate_priors(
        request,
        Store(str(storage)),
        prior_config,
        ClusterConfig(),
        on_progress or (lambda num_done, total: None),
    )


def content(store: Store) -> dict[str, Any]:
    """Size and hash of every file of every chunk."""
    return {
        name: manifest.read_artifact_metadata(store, name.removesuffix(".json"))["records"]
        for name in store.names()
        if paths.parse_prior_chunk_number(name) is not None
    } | {
        f"{name}/{entry.name}": entry.sha256
        for name in store.names()
        if paths.parse_prior_chunk_number(name) is not None
        for entry in manifest.local_entries(
            store.local_path(str(manifest.find_artifact_folder(store, name.removesuffix(".json"))))
        )
    }


def generating_actors() -> list[psutil.Process]:
    """Processes of this test's own class-image actors."""
    processes = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.cmdline()[:1] == ["ray::PriorWorkerActor.generate"]:
                processes.append(child)
        except psutil.Error:
            continue
    return processes


def test_one_actor_or_several_and_one_killed_generate_the_same_set(
    config: Config, spec: PriorSpec, toy_model: Path, tmp_path: Path
) -> None:
    request = PriorSetRequest(spec, 24, toy_model)
    set_of_one = generate(tmp_path / "one", request, 1)
    killed: list[int] = []
    has_begun, has_ended = threading.Event(), threading.Event()

    def kill_one() -> None:
        """The first that generates once a chunk is there."""
        has_begun.wait(120)
        while not killed and not has_ended.wait(0.002):
            for actor in generating_actors()[:1]:
                with suppress(psutil.NoSuchProcess):
                    actor.kill()
                    killed.append(actor.pid)

    def begin(num_done: int, total: int) -> None:
        if num_done:
            has_begun.set()

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        set_of_two = generate(tmp_path / "two", request, 2, begin)
    finally:
        has_begun.set()
        has_ended.set()
        killer.join()
    assert killed
    assert content(set_of_one) == content(set_of_two)
    assert len(select_counted_images(spec, read_committed_chunks(set_of_two)).accepted) >= 24
    progress: list[tuple[int, int]] = []
    generate(
        tmp_path / "two", request, 2, lambda num_done, total: progress.append((num_done, total))
    )
    assert progress == [], "a whole set must need no generation"


@pytest.mark.fault
def test_a_model_that_repeats_itself_is_named(
    config: Config, spec: PriorSpec, toy_model: Path, tmp_path: Path
) -> None:
    data = io.BytesIO()
    render_photographs(random_subject(1), 1, 1)[0].resize((64, 64)).save(data, "PNG")
    request = PriorSetRequest(
        spec, 8, toy_model, lambda number: [data.getvalue()] * spec.chunk_size
    )
    with pytest.raises(DataError, match=r"only 1 of 8 .*prior\.prompt"):
        generate(tmp_path, request, 1)


def test_room_that_does_not_come_is_waited_for_as_long_as_is_said(
    config: Config, spec: PriorSpec, toy_model: Path, tmp_path: Path
) -> None:
    prior_config = PriorConfig(actors=1, resources={"nowhere": 1.0})
    request, store = PriorSetRequest(spec, 4, toy_model), Store(str(tmp_path))
    with pytest.raises(CapacityError, match=r"0 of at least 1 .* within 1 s; .*cluster\.wait_s"):
        generate_priors(
            request, store, prior_config, ClusterConfig(wait_s=1.0), lambda num_done, total: None
        )


@pytest.mark.fault
@pytest.mark.parametrize("actors", [2, 4])
def test_actors_killed_at_random_over_200_images(
    config: Config, spec: PriorSpec, toy_model: Path, tmp_path: Path, actors: int
) -> None:
    request = PriorSetRequest(
        replace(spec, params=SamplingParams(num_inference_steps=8)), 200, toy_model
    )
    undisturbed = generate(tmp_path / "calm", request, 2)
    dice, has_ended, kills = random.Random(actors), threading.Event(), list[int]()

    def kill_now_and_then() -> None:
        while not has_ended.wait(dice.uniform(1.5, 4.0)):
            busy = generating_actors()
            if busy:
                kills.append(dice.choice(busy).pid)
                psutil.Process(kills[-1]).kill()

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    started_s = time.monotonic()
    try:
        store = generate(tmp_path / "killed", request, actors)
    finally:
        has_ended.set()
        killer.join()
    print(f"{len(kills)} kills in {time.monotonic() - started_s:.0f} s")
    assert len(kills) >= 3
    records = select_counted_images(request.spec, read_committed_chunks(store)).accepted[:200]
    assert len({r.index for r in records}) == len({r.fingerprint for r in records}) == 200
    assert content(store) == content(undisturbed)
    assert verify_prior_set(Store(str(tmp_path / "killed")), request.spec.digest) == []
    assert ray.is_initialized()
