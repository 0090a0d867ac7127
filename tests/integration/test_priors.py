"""The pool of actors on a real Ray: the same set whoever draws it, whatever dies."""

import io
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from cluster.session import session
from dreambooth_ray.config.load import load_config
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.config.schema import Config, PriorConfig
from dreambooth_ray.errors import CapacityError, DataError
from dreambooth_ray.models.source import model_hash
from dreambooth_ray.priors.generation import PriorRequest, committed_chunks, make_priors
from dreambooth_ray.priors.prior_catalog import verify
from dreambooth_ray.priors.prior_spec import PriorSpec, select
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.world import photographs, random_subject


@pytest.fixture(scope="module")
def config() -> Iterator[Config]:
    found = load_config("toy-robot.yaml", ["prior.actors=4"])
    with session(found):
        yield found


@pytest.fixture(scope="module")
def spec(toy_model: Path) -> PriorSpec:
    return PriorSpec(model_hash(toy_model), ("a robot",), "ddim", 3, 3.0, 64, 0, 4)


def draw(
    storage: Path,
    order: PriorRequest,
    actors: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Store:
    wanted = PriorConfig(actors=actors)
    return make_priors(
        order,
        Store(str(storage)),
        wanted,
        ClusterConfig(),
        on_progress or (lambda done, total: None),
    )


def content(store: Store) -> dict[str, Any]:
    """Size and hash of every file of every chunk."""
    return {
        name: manifest.about(store, name.removesuffix(".json"))["records"]
        for name in store.names()
        if paths.prior_chunk_number(name) is not None
    } | {
        f"{name}/{entry.name}": entry.sha256
        for name in store.names()
        if paths.prior_chunk_number(name) is not None
        for entry in manifest.local_entries(
            store.local_path(str(manifest.folder_of(store, name.removesuffix(".json"))))
        )
    }


def painters() -> list[psutil.Process]:
    """Processes of this test's own class-image actors."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.cmdline()[:1] == ["ray::Easel.paint"]:
                found.append(child)
        except psutil.Error:
            continue
    return found


def test_one_actor_or_several_and_one_killed_draw_the_same_set(
    config: Config, spec: PriorSpec, toy_model: Path, tmp_path: Path
) -> None:
    order = PriorRequest(spec, 24, toy_model)
    alone = draw(tmp_path / "one", order, 1)
    killed: list[int] = []

    def kill_once(done: int, total: int) -> None:
        busy = painters()
        if done and busy and not killed:
            killed.append(busy[0].pid)
            busy[0].kill()

    together = draw(tmp_path / "two", order, 2, kill_once)
    assert killed
    assert content(alone) == content(together)
    assert len(select(spec, committed_chunks(together)).taken) >= 24
    again: list[tuple[int, int]] = []
    draw(tmp_path / "two", order, 2, lambda done, total: again.append((done, total)))
    assert again == [], "a whole set must need no drawing"


def test_a_model_that_repeats_itself_is_named(
    config: Config, spec: PriorSpec, toy_model: Path, tmp_path: Path
) -> None:
    data = io.BytesIO()
    photographs(random_subject(1), 1, 1)[0].resize((64, 64)).save(data, "PNG")
    order = PriorRequest(spec, 8, toy_model, lambda number: [data.getvalue()] * spec.chunk_size)
    with pytest.raises(DataError, match=r"only 1 of 8 .*prior\.prompt"):
        draw(tmp_path, order, 1)


def test_room_that_does_not_come_is_waited_for_as_long_as_is_said(
    config: Config, spec: PriorSpec, toy_model: Path, tmp_path: Path
) -> None:
    wanted = PriorConfig(actors=1, resources={"nowhere": 1.0})
    order, store = PriorRequest(spec, 4, toy_model), Store(str(tmp_path))
    with pytest.raises(CapacityError, match=r"0 of at least 1 .* within cluster\.wait_s=1 s"):
        make_priors(order, store, wanted, ClusterConfig(wait_s=1.0), lambda done, total: None)


@pytest.mark.fault
@pytest.mark.parametrize("actors", [2, 4])
def test_actors_killed_at_random_over_200_images(
    config: Config, spec: PriorSpec, toy_model: Path, tmp_path: Path, actors: int
) -> None:
    order = PriorRequest(replace(spec, num_inference_steps=8), 200, toy_model)
    undisturbed = draw(tmp_path / "calm", order, 2)
    dice, ended, kills = random.Random(actors), threading.Event(), list[int]()

    def kill_now_and_then() -> None:
        while not ended.wait(dice.uniform(3.0, 8.0)):
            busy = painters()
            if busy:
                kills.append(dice.choice(busy).pid)
                psutil.Process(kills[-1]).kill()

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    started_s = time.monotonic()
    try:
        store = draw(tmp_path / "killed", order, actors)
    finally:
        ended.set()
        killer.join()
    print(f"{len(kills)} kills in {time.monotonic() - started_s:.0f} s")
    assert len(kills) >= 3
    taken = select(order.spec, committed_chunks(store)).taken[:200]
    assert len({r.index for r in taken}) == len({r.fingerprint for r in taken}) == 200
    assert content(store) == content(undisturbed)
    assert verify(Store(str(tmp_path / "killed")), order.spec.digest) == []
    assert ray.is_initialized()
