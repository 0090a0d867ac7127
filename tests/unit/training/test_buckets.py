"""Images of several shapes: what training sees of them, and that it comes to the same."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.class_shapes import list_class_shapes
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.data.subject import read_photographs_for_subject_config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.model_functions import ImageFrame
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.priors.prior_generation import open_prior_set, read_committed_chunks
from dreambooth_ray.priors.prior_spec import PriorSpec, missing_chunks
from dreambooth_ray.priors.prior_worker import PriorWorker
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.photoshoot import write_photographs
from dreambooth_ray.training import dataset as dataset_module
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.image_pools import CachedImage, PhotographPool
from dreambooth_ray.training.module import DreamBoothModule
from tests.unit.training.fitted import Fitted

SIZES = [(96, 96), (96, 54), (54, 96), (96, 96), (96, 72)]
BUCKETS = ("train.buckets=true", "train.bucket_step_px=16")
NUM_CLASS_IMAGES = 10


@pytest.fixture(scope="session")
def mixed_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photographs: square ones, lying ones and one upright."""
    folder = tmp_path_factory.mktemp("mixed")
    write_photographs(folder, 7, "robot", len(SIZES), size_px=96)
    for path, (width, height) in zip(sorted(folder.iterdir()), SIZES, strict=True):
        left, top = (96 - width) // 2, (96 - height) // 2
        Image.open(path).crop((left, top, left + width, top + height)).save(path)
    return folder


def make_config(photos: Path, *overrides: str) -> Config:
    base = f"subject: {{photos: {photos}, class_noun: robot}}"
    usual = ("train.resolution=64", "train.batch_size=4", f"prior.count={NUM_CLASS_IMAGES}")
    return parse_config(base, "x", [*usual, *BUCKETS, "prior.batch_size=2", *overrides])


@pytest.fixture(scope="session")
def shaped_priors(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, mixed_photos: Path
) -> Store:
    """Class images in the shapes of the photographs."""
    config = make_config(mixed_photos, "train.batch_size=2")
    shapes = list_class_shapes(config, read_photographs_for_subject_config(config, config.subject))
    spec = PriorSpec(
        "hash", ("a robot", "one robot"), SamplingParams(num_inference_steps=1), 64, 0, 2,
        shapes=shapes,
    )  # fmt: skip
    store = open_prior_set(Store(str(tmp_path_factory.mktemp("priors"))), spec)
    worker = PriorWorker(str(tiny_model), store.uri, spec, gpu=False)
    while numbers := missing_chunks(spec, NUM_CLASS_IMAGES, read_committed_chunks(store)):
        for number in numbers:
            worker.generate(number)
    return store


Make = Callable[..., TrainingDataset]


@pytest.fixture
def make_dataset(shaped_priors: Store, tiny_model: Path) -> Make:
    def make(
        config: Config, rank: int = 0, world: int = 1, parts: Components | None = None
    ) -> TrainingDataset:
        parts = parts or load_components(tiny_model)
        photographs = [read_photographs_for_subject_config(config, config.subject)]
        count = config.prior.num_images
        priors = PriorSet(shaped_priors, count) if count else None
        return TrainingDataset(config, parts, photographs, priors, (rank, world))

    return make


def test_shapes_follow_the_photographs(mixed_photos: Path) -> None:
    config = make_config(mixed_photos, "train.batch_size=2")
    photographs = read_photographs_for_subject_config(config, config.subject)
    assert [p.shape for p in photographs] == [(64, 64), (80, 48), (48, 80), (64, 64), (80, 48)]
    assert list_class_shapes(config, photographs) == ((48, 80), (64, 64), (80, 48))
    # Original height and width, corner, and the sides of what is seen.
    assert photographs[1].size_conditioning == (54, 96, 0, 3, 48, 80)


def test_squares_of_one_size_need_no_shapes_of_their_own(photos: Path) -> None:
    config = make_config(photos)
    assert (
        list_class_shapes(config, read_photographs_for_subject_config(config, config.subject)) == ()
    )


def test_too_few_class_images_of_a_shape_are_refused(mixed_photos: Path) -> None:
    config = make_config(mixed_photos)
    with pytest.raises(ConfigError, match=r"prior\.count=10 makes 3 .* 3 shapes.*prior\.count=12"):
        list_class_shapes(config, read_photographs_for_subject_config(config, config.subject))


SIDES = ((8, 8), (6, 10), (10, 6))


def number_photographs(shape_indices: list[int], num_resolutions: int) -> PhotographPool:
    """Latents of shapes of SIDES that hold nothing but the photograph's number."""

    def number(index: int, shape: tuple[int, ...]) -> CachedImage:
        latents = torch.stack([torch.full(shape, float(index)), torch.zeros(shape)])
        return CachedImage(latents[None], ("",), ImageFrame.of_whole_image(8, 8))

    images = [
        tuple(number(n, (1, SIDES[i][0] + k, SIDES[i][1] + k)) for k in range(num_resolutions))
        for n, i in enumerate(shape_indices)
    ]
    return PhotographPool(images)


@given(
    seed=st.integers(0, 2**40),
    shape_indices=st.lists(st.integers(0, 2), min_size=1, max_size=7),
    resolutions=st.sampled_from([(64,), (64, 32), (96, 64, 32)]),
    share=st.integers(1, 3),
    attempts=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from([1, 2, 4])), min_size=1, max_size=4
    ),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_photographs_are_seen_equally_often_by_any_workers_and_after_any_resume(
    photos: Path,
    toy_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    shape_indices: list[int],
    resolutions: tuple[int, ...],
    share: int,
    attempts: list[tuple[int, int]],
) -> None:
    """attempts: steps that each takes, and with how many workers it takes them"""
    monkeypatch.setattr(
        dataset_module,
        "encode_photographs",
        lambda *_: number_photographs(shape_indices, len(resolutions)),
    )
    config = make_config(
        photos, f"seed={seed}", "prior.count=0", f"train.batch_size={4 * share}",
        f"train.resolution={list(resolutions)}", "train.bucket_step_px=16",
    )  # fmt: skip
    parts, step = _parts(toy_model), 0
    seen, seen_resolutions = Counter(range(len(shape_indices))), Counter(range(len(resolutions)))
    for num_steps, world_size in attempts:
        datasets = [
            TrainingDataset(config, parts, [[]], None, (rank, world_size))
            for rank in range(world_size)
        ]
        for _ in range(num_steps):
            batches = [dataset.make_batch(step) for dataset in datasets]
            assert len({len(batch.same_shape_batches) for batch in batches}) == 1
            forwards = [forward for batch in batches for forward in batch.same_shape_batches]
            numbers = [int(n) for f in forwards for n in f.latents[:, 0, 0, 0]]
            assert len(numbers) == 4 * share
            seen.update(numbers)
            (resolution,) = {
                min(f.latents.shape[-2:]) - min(SIDES[shape_indices[int(f.latents.flatten()[0])]])
                for f in forwards
            }
            seen_resolutions[resolution] += 1
            step += 1
            for counts in (seen, seen_resolutions):
                assert max(counts.values()) - min(counts.values()) <= 1


_loaded: dict[Path, Components] = {}


def _parts(model: Path) -> Components:
    if model not in _loaded:
        _loaded[model] = load_components(model)
    return _loaded[model]


def test_class_images_are_of_the_photographs_shapes_and_all_are_seen(
    mixed_photos: Path, make_dataset: Make
) -> None:
    dataset = make_dataset(make_config(mixed_photos, "train.batch_size=2", "train.steps=30"))
    assert dataset._priors is not None
    chosen = set()
    for step in range(30):
        batch = dataset.make_batch(step)
        for forward in batch.same_shape_batches:
            num_photographs = forward.num_photographs
            assert len(forward.latents) == 2 * num_photographs
            height, width = forward.latents.shape[-2:]
            assert {tuple(frame[4:]) for frame in forward.frames.tolist()} == {
                (4 * height, 4 * width)
            }
            # Of a class image nothing was cut away.
            for frame in forward.frames[num_photographs:].tolist():
                assert frame == [4 * height, 4 * width, 0, 0, 4 * height, 4 * width]
        chosen |= {
            dataset._priors.choose_index(0, position) for position in (2 * step, 2 * step + 1)
        }
    assert chosen == set(range(NUM_CLASS_IMAGES))


def test_a_batch_is_a_pure_function_of_its_step(mixed_photos: Path, make_dataset: Make) -> None:
    config = make_config(mixed_photos, "train.resolution=[64,48]", "prior.count=0")
    one, two = make_dataset(config), make_dataset(config)
    two.make_batch(3)
    for a, b in zip(
        one.make_batch(7).same_shape_batches, two.make_batch(7).same_shape_batches, strict=True
    ):
        assert torch.equal(a.latents, b.latents)
        assert torch.equal(a.noise, b.noise)


def compute_gradient(
    module: DreamBoothModule, batches: list[Batch]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss and mean gradient, as workers exchange them."""
    module.zero_grad()
    losses = [module.compute_loss(batch)[0] for batch in batches]
    loss = torch.stack(losses).mean()
    loss.backward()
    gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return loss.detach(), torch.cat(gradients)


@pytest.mark.parametrize("kind", ["images", "output", "both"])
def test_workers_and_parts_compute_what_one_worker_does(
    kind: str, mixed_photos: Path, make_dataset: Make, tiny_model: Path
) -> None:
    overrides = (
        "train.method=lora", "train.batch_size=4", "prior.count=12", f"prior.kind={kind}",
        "train.lora.rank=2",
    )  # fmt: skip
    config = make_config(mixed_photos, *overrides)
    parts = load_components(tiny_model)
    apply_train_method(config, parts)

    def make(rank: int, world: int, config: Config = config) -> TrainingDataset:
        return make_dataset(config, rank, world, parts)

    whole = make(0, 1).make_batch(1)
    assert len(whole.same_shape_batches) > 1
    module = DreamBoothModule(config, parts)
    loss, gradient = compute_gradient(module, [whole])
    shares = [make(rank, 2).make_batch(1) for rank in range(2)]
    parted = make(0, 1, make_config(mixed_photos, *overrides, "train.accumulate=2"))
    for batches in (shares, [parted.make_batch(1, part) for part in range(2)]):
        other_loss, other_gradient = compute_gradient(module, batches)
        assert torch.allclose(loss, other_loss, rtol=1e-5)
        assert torch.allclose(gradient, other_gradient, rtol=1e-3, atol=1e-7)


def test_a_resumed_run_ends_as_one_that_was_not_stopped(
    mixed_photos: Path, shaped_priors: Store, tiny_model: Path, tmp_path: Path
) -> None:
    overrides = (
        *BUCKETS, f"prior.count={NUM_CLASS_IMAGES}", "train.steps=5", "train.lr=1e-3",
        "validation.every=2", "validation.class_images=3", "validation.held_out=2",
    )  # fmt: skip
    saved = tmp_path / "saved"
    whole = Fitted(tiny_model, mixed_photos, shaped_priors, *overrides, save=saved)
    resumed = Fitted(tiny_model, mixed_photos, shaped_priors, *overrides, resume=saved)
    assert whole.losses()[2:] == resumed.losses()
    assert all(torch.equal(w, resumed.weights[n]) for n, w in whole.weights.items())
    assert whole.watch.records[-1]["val_loss"] == resumed.watch.records[-1]["val_loss"]
    assert whole.validation_set.num_examples == (2 + 3) * 8
