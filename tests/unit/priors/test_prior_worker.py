"""One actor's work, without Ray: what it commits, and what readers make of it."""

import io
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from dreambooth_ray.data.prior_set import POSTERIOR, PriorSet, read_records
from dreambooth_ray.errors import CheckpointError, DreamBoothError
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.source import model_hash
from dreambooth_ray.models.vae_posterior import encode_posterior
from dreambooth_ray.priors.generation import committed_chunks, open_set
from dreambooth_ray.priors.prior_catalog import list_sets, verify, waste
from dreambooth_ray.priors.prior_spec import PriorSpec
from dreambooth_ray.priors.prior_worker import PriorWorker
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store

SPEC = PriorSpec("hash", ("a robot", "a car"), "ddim", 2, 3.0, 64, 0, 2)


@pytest.fixture
def storage(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@pytest.fixture
def painter(toy_model: Path, storage: Store) -> PriorWorker:
    return PriorWorker(str(toy_model), open_set(storage, SPEC).uri, SPEC, gpu=False)


def in_set(storage: Store) -> Store:
    return storage.sub(paths.prior_set(SPEC.digest))


def test_a_chunk_is_the_same_whoever_draws_it(
    painter: PriorWorker, storage: Store, tmp_path: Path, toy_model: Path
) -> None:
    records = painter.paint(1)
    assert [r.index for r in records] == [2, 3]
    assert [r.caption for r in records] == [0, 1]
    other = Store(str(tmp_path / "other"))
    again = PriorWorker(str(toy_model), open_set(other, SPEC).uri, SPEC, gpu=False)
    assert again.paint(1) == records == read_records(in_set(storage), 1)
    for file in (POSTERIOR, paths.prior_image(2), paths.prior_image(3)):
        both = [manifest.read(in_set(s), paths.prior_chunk(1), file) for s in (storage, other)]
        assert both[0] == both[1]


def test_a_readers_posterior_is_that_of_the_committed_image(
    painter: PriorWorker, storage: Store, toy_parts: Components
) -> None:
    painter.paint(0)
    data = manifest.read(in_set(storage), paths.prior_chunk(0), paths.prior_image(1))
    wanted = encode_posterior(toy_parts.vae, Image.open(io.BytesIO(data)).convert("RGB"), flip=True)
    found = PriorSet(in_set(storage), 2)
    assert torch.equal(found.posterior(1), wanted)
    assert (found.captions, found.caption(1)) == (["a robot", "a car"], 1)


def test_a_image_not_there_yet_is_waited_for(painter: PriorWorker, storage: Store) -> None:
    reader, seen = PriorSet(in_set(storage), 2, poll_s=0.01), list[torch.Tensor]()
    thread = threading.Thread(target=lambda: seen.append(reader.posterior(0)))
    thread.start()
    assert not seen
    painter.paint(0)
    thread.join(30)
    assert seen[0].shape == (2, 2, 8, 16, 16)


def test_a_reader_learns_that_nothing_more_will_come(painter: PriorWorker, storage: Store) -> None:
    with pytest.raises(DreamBoothError, match="out of paint"):
        PriorSet(in_set(storage), 2, failure=lambda: "out of paint").posterior(0)
    with pytest.raises(CheckpointError, match="not a set"):
        PriorSet(storage, 2)


def test_a_damaged_chunk_is_found_and_drawn_again(painter: PriorWorker, storage: Store) -> None:
    painter.paint(0)
    painter.paint(1)
    assert verify(storage, SPEC.digest) == []
    folder = manifest.folder_of(in_set(storage), paths.prior_chunk(1))
    file = in_set(storage).local_path(f"{folder}/{paths.prior_image(3)}")
    file.write_bytes(file.read_bytes()[:-1])
    assert len(verify(storage, SPEC.digest)) == 1
    with pytest.raises(CheckpointError, match="damaged"):
        manifest.read(in_set(storage), paths.prior_chunk(1), paths.prior_image(3))
    assert set(committed_chunks(in_set(storage))) == {0}
    painter.paint(1)
    assert verify(storage, SPEC.digest) == []


def test_own_images_take_the_place_of_drawn_ones(painter: PriorWorker, storage: Store) -> None:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), (10, 20, 30)).save(data, "PNG")
    (record,) = painter.paint(0, [data.getvalue()])
    assert record.blank
    kept = manifest.read(in_set(storage), paths.prior_chunk(0), paths.prior_image(0))
    assert Image.open(io.BytesIO(kept)).getpixel((5, 5)) == (10, 20, 30)


def test_sets_are_listed_with_their_runs_and_waste_is_found(
    painter: PriorWorker, storage: Store
) -> None:
    painter.paint(0)
    storage.write("runs/mine/priors.json", f'{{"set": "{SPEC.digest}"}}'.encode())
    (info,) = list_sets(storage)
    assert (info.images, info.runs, info.prompts) == (2, ("mine",), ("a robot", "a car"))
    assert info.size_bytes > 1000
    in_set(storage).write("chunk-000007-dead/000014.png", b"half")
    open_set(storage, replace(SPEC, seed=5))
    unused = paths.prior_set(replace(SPEC, seed=5).digest)
    assert sorted(waste(storage)) == sorted(
        [f"{paths.prior_set(SPEC.digest)}/chunk-000007-dead", unused]
    )


def test_the_model_hash_is_part_of_the_receipt(
    toy_model: Path, painter: PriorWorker, storage: Store
) -> None:
    painter.paint(0)
    data = manifest.read(in_set(storage), paths.prior_chunk(0), paths.prior_image(0))
    text = Image.open(io.BytesIO(data)).text  # type: ignore[attr-defined]
    assert text["model_hash"] == SPEC.model_hash
    assert model_hash(toy_model) != SPEC.model_hash
