"""One actor's work, without Ray: what it commits, and what readers make of it."""

import io
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

from dreambooth_ray.cli.priors import list_ as list_priors
from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.data.prior_set import POSTERIOR, PriorSet, read_chunk_records
from dreambooth_ray.errors import CapacityError, CheckpointError, DreamBoothError
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.model_directory import model_hash
from dreambooth_ray.models.model_mirror import publish_model
from dreambooth_ray.models.vae_posterior import encode_posterior
from dreambooth_ray.priors.prior_catalog import list_prior_sets, verify_prior_set
from dreambooth_ray.priors.prior_generation import open_prior_set, read_committed_chunks
from dreambooth_ray.priors.prior_spec import PriorSpec
from dreambooth_ray.priors.prior_worker import PriorWorker
from dreambooth_ray.sampling.denoiser import Denoiser, ForwardRow
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store

SPEC = PriorSpec("hash", ("a robot", "a car"), SamplingParams(num_inference_steps=2), 64, 0, 2)


@pytest.fixture
def storage(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@pytest.fixture
def worker(toy_model: Path, storage: Store) -> PriorWorker:
    return PriorWorker(str(toy_model), open_prior_set(storage, SPEC).uri, SPEC, gpu=False)


def in_set(storage: Store) -> Store:
    return storage.sub(paths.prior_set(SPEC.digest))


def test_a_chunk_is_the_same_whichever_worker_generates_it(
    worker: PriorWorker, storage: Store, tmp_path: Path, toy_model: Path
) -> None:
    records = worker.generate(1)
    assert [r.index for r in records] == [2, 3]
    assert [r.caption_index for r in records] == [0, 1]
    other = Store(str(tmp_path / "other"))
    second_worker = PriorWorker(str(toy_model), open_prior_set(other, SPEC).uri, SPEC, gpu=False)
    assert second_worker.generate(1) == records == read_chunk_records(in_set(storage), 1)
    for file in (POSTERIOR, paths.prior_image_file(2), paths.prior_image_file(3)):
        both = [
            manifest.read_artifact_file(in_set(s), paths.prior_chunk_artifact(1), file)
            for s in (storage, other)
        ]
        assert both[0] == both[1]


def test_a_host_without_the_models_folder_takes_it_from_storage(
    worker: PriorWorker, tmp_path: Path, toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "cache"))
    other = Store(str(tmp_path / "other"))
    publish_model(toy_model, SPEC.model_hash, other)
    second_worker = PriorWorker("/nowhere", open_prior_set(other, SPEC).uri, SPEC, gpu=False)
    assert second_worker.generate(1) == worker.generate(1)


def test_memory_that_runs_out_makes_batches_smaller_and_no_image_another(
    worker: PriorWorker,
    storage: Store,
    tmp_path: Path,
    toy_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records = worker.generate(0)
    predict, num_rows = Denoiser.__call__, list[int]()

    def predict_in_little_memory(self: Denoiser, rows: list[ForwardRow]) -> torch.Tensor:
        num_rows.append(len(rows))
        if len(rows) > 2:  # one image, with and without its prompt
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, rows)

    monkeypatch.setattr(Denoiser, "__call__", predict_in_little_memory)
    other = Store(str(tmp_path / "other"))
    second_worker = PriorWorker(str(toy_model), open_prior_set(other, SPEC).uri, SPEC, gpu=False)
    assert second_worker.generate(0) == records
    assert num_rows[0] == 4
    assert set(num_rows[1:]) == {2}
    monkeypatch.setattr(Denoiser, "__call__", _raise_out_of_memory)
    with pytest.raises(CapacityError, match="out of memory in a batch of 1"):
        second_worker.generate(1)


def _raise_out_of_memory(*_: object) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_readers_posterior_is_that_of_the_committed_image(
    worker: PriorWorker, storage: Store, toy_parts: Components
) -> None:
    worker.generate(0)
    data = manifest.read_artifact_file(
        in_set(storage), paths.prior_chunk_artifact(0), paths.prior_image_file(1)
    )
    posterior = encode_posterior(toy_parts, Image.open(io.BytesIO(data)).convert("RGB"), flip=True)
    prior_set = PriorSet(in_set(storage), 2)
    assert torch.equal(prior_set.load_posterior(1), posterior)
    assert (prior_set.captions, prior_set.caption_index(1)) == (["a robot", "a car"], 1)


def test_an_image_not_there_yet_is_waited_for(worker: PriorWorker, storage: Store) -> None:
    reader, posteriors = PriorSet(in_set(storage), 2, poll_s=0.01), list[torch.Tensor]()
    thread = threading.Thread(target=lambda: posteriors.append(reader.load_posterior(0)))
    thread.start()
    assert not posteriors
    worker.generate(0)
    thread.join(30)
    assert posteriors[0].shape == (2, 2, 8, 16, 16)


def test_a_reader_learns_that_nothing_more_will_come(worker: PriorWorker, storage: Store) -> None:
    with pytest.raises(DreamBoothError, match="out of memory"):
        PriorSet(in_set(storage), 2, failure=lambda: "out of memory").load_posterior(0)
    with pytest.raises(CheckpointError, match="not a set"):
        PriorSet(storage, 2)


def test_a_damaged_chunk_is_found_and_generated_again(worker: PriorWorker, storage: Store) -> None:
    worker.generate(0)
    worker.generate(1)
    assert verify_prior_set(storage, SPEC.digest) == []
    folder = manifest.find_artifact_folder(in_set(storage), paths.prior_chunk_artifact(1))
    file = in_set(storage).local_path(f"{folder}/{paths.prior_image_file(3)}")
    file.write_bytes(file.read_bytes()[:-1])
    assert len(verify_prior_set(storage, SPEC.digest)) == 1
    with pytest.raises(CheckpointError, match="damaged"):
        manifest.read_artifact_file(
            in_set(storage), paths.prior_chunk_artifact(1), paths.prior_image_file(3)
        )
    assert set(read_committed_chunks(in_set(storage))) == {0}
    worker.generate(1)
    assert verify_prior_set(storage, SPEC.digest) == []


def test_own_images_take_the_place_of_generated_ones(worker: PriorWorker, storage: Store) -> None:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), (10, 20, 30)).save(data, "PNG")
    (record,) = worker.generate(0, [data.getvalue()])
    assert record.blank
    committed_image = manifest.read_artifact_file(
        in_set(storage), paths.prior_chunk_artifact(0), paths.prior_image_file(0)
    )
    assert Image.open(io.BytesIO(committed_image)).getpixel((5, 5)) == (10, 20, 30)


def test_sets_are_listed_with_their_runs(worker: PriorWorker, storage: Store) -> None:
    worker.generate(0)
    storage.write("runs/mine/priors.json", f'{{"set": "{SPEC.digest}"}}'.encode())
    (info,) = list_prior_sets(storage)
    assert (info.images, info.runs, info.prompts) == (2, ("mine",), ("a robot", "a car"))
    assert info.size_bytes > 1000


def test_the_list_says_why_a_set_holds_more_than_was_asked_for(
    worker: PriorWorker, storage: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.generate(0)
    list_priors([storage.uri])
    assert "whole batches of prior.batch_size" in capsys.readouterr().out


def test_the_model_hash_is_part_of_the_receipt(
    toy_model: Path, worker: PriorWorker, storage: Store
) -> None:
    worker.generate(0)
    data = manifest.read_artifact_file(
        in_set(storage), paths.prior_chunk_artifact(0), paths.prior_image_file(0)
    )
    text = Image.open(io.BytesIO(data)).text  # type: ignore[attr-defined]
    assert text["model_hash"] == SPEC.model_hash
    assert model_hash(toy_model) != SPEC.model_hash
