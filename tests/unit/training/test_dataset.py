from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.image_shapes import ShapeRule
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.data.subject import (
    Photograph,
    read_photographs_for_subject_config,
    read_subject_photographs,
)
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.prompt_windows import tokenize_windows
from dreambooth_ray.priors.prior_generation import open_prior_set
from dreambooth_ray.priors.prior_spec import PriorSpec
from dreambooth_ray.priors.prior_worker import PriorWorker
from dreambooth_ray.sampling.adapted_network import AdaptedNetwork
from dreambooth_ray.sampling.prompt_encoder import PromptEncoder
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.image_pools import encode_photographs
from dreambooth_ray.training.module import DreamBoothModule


@pytest.fixture(scope="module")
def parts(toy_model: Path) -> Components:
    return load_components(toy_model)


TOY_SPEC = PriorSpec("hash", ("a robot",), SamplingParams(num_inference_steps=2), 64, 0, 3)


def make_config(photos: Path, *overrides: str) -> Config:
    base = f"subject: {{photos: {photos}, class_noun: robot}}"
    return parse_config(
        base, "x", ["train.resolution=64", "train.batch_size=4", "prior.count=6", *overrides]
    )


@pytest.fixture(scope="module")
def prior_set(tmp_path_factory: pytest.TempPathFactory, toy_model: Path) -> Store:
    """Six committed class images."""
    store, spec = Store(str(tmp_path_factory.mktemp("priors"))), replace(TOY_SPEC, chunk_size=3)
    set_store = open_prior_set(store, spec)
    worker = PriorWorker(str(toy_model), set_store.uri, spec, gpu=False)
    for number in range(2):
        worker.generate(number)
    return set_store


@pytest.fixture
def make_dataset(prior_set: Store, parts: Components) -> Callable[..., TrainingDataset]:
    def make(
        config: Config, rank: int = 0, world: int = 1, parts: Components = parts
    ) -> TrainingDataset:
        photographs = [
            read_photographs_for_subject_config(config, subject) for subject in config.all_subjects
        ]
        priors = PriorSet(prior_set, config.prior.num_images) if config.prior.num_images else None
        return TrainingDataset(config, parts, photographs, priors, (rank, world))

    return make


def read_tensors(batch: Batch) -> dict[str, torch.Tensor]:
    assert batch.tokens is not None
    fields = ("latents", "noise", "times", "frames")
    return {name: getattr(batch, name) for name in fields} | batch.tokens.tensors


def read_ids(batch: Batch) -> torch.Tensor:
    return read_tensors(batch)["input_ids"]


def are_equal(one: Batch, two: Batch) -> bool:
    return all(map(torch.equal, read_tensors(one).values(), read_tensors(two).values()))


def test_a_batch_is_a_pure_function_of_its_step(
    photos: Path, parts: Components, make_dataset: Callable[..., TrainingDataset]
) -> None:
    config = make_config(photos, "train.flip=true")
    one, two = make_dataset(config), make_dataset(config)
    two.start = 7
    batches = [two.make_batch(9), *list(two)[:2]]
    assert are_equal(one.make_batch(9), batches[0])
    assert are_equal(one.make_batch(7), batches[1])
    assert not are_equal(one.make_batch(7), one.make_batch(8))


def test_two_workers_see_together_what_one_sees(
    photos: Path, parts: Components, make_dataset: Callable[..., TrainingDataset]
) -> None:
    config = make_config(photos, "train.flip=true")
    full_batch = make_dataset(config).make_batch(3)
    shares = [make_dataset(config, rank, 2).make_batch(3) for rank in (0, 1)]
    for field, value in read_tensors(full_batch).items():
        halves = [read_tensors(s)[field] for s in shares]
        joined = torch.cat([halves[0][:2], halves[1][:2], halves[0][2:], halves[1][2:]])
        assert torch.equal(value, joined), field


def test_photographs_come_first_and_as_many_class_images(
    photos: Path, parts: Components, make_dataset: Callable[..., TrainingDataset]
) -> None:
    batch = make_dataset(make_config(photos)).make_batch(0)
    assert (batch.num_photographs, len(batch.latents)) == (4, 8)
    ids = tokenize_windows(parts.tokenizer, ["a sks robot", "a robot"])
    assert torch.equal(read_ids(batch)[0], ids[0])
    assert torch.equal(read_ids(batch)[-1], ids[1])


def test_without_class_images_there_are_photographs_only(
    photos: Path, parts: Components, make_dataset: Callable[..., TrainingDataset]
) -> None:
    batch = make_dataset(make_config(photos, "prior.count=0")).make_batch(0)
    assert batch.num_photographs == len(batch.latents) == 4


def test_latents_are_resampled_from_the_posterior_of_the_image(
    photos: Path, parts: Components, make_dataset: Callable[..., TrainingDataset]
) -> None:
    dataset = make_dataset(make_config(photos))
    rule = ShapeRule.make_square_rule(64)
    pool = encode_photographs(parts, read_subject_photographs(photos, "x", rule), flip=False)
    mean, std = torch.stack([views[0].latents[0] for views in pool.images]).unbind(dim=1)
    for step in range(6):
        batch = dataset.make_batch(step)
        distances = ((batch.latents[0] - mean) / std).abs().flatten(1).mean(dim=1)
        # Mean absolute value of a standard normal is 0.798: one image fits, no other does.
        assert 0.7 < float(distances.min()) < 0.9


def test_a_mirrored_view_is_the_mirrored_image(parts: Components) -> None:
    image = Image.new("RGB", (64, 64), (255, 255, 255))
    image.paste((0, 0, 255), (0, 0, 20, 64))
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pool = encode_photographs(
        parts,
        [Photograph(Path("x"), p, ("x",)) for p in (image, mirrored)],
        True,
    )
    one, other = (pool.get_image(index).latents for index in range(2))
    assert torch.allclose(one[1], other[0], atol=1e-5)


def test_the_stream_ends_with_the_last_step(
    photos: Path, parts: Components, make_dataset: Callable[..., TrainingDataset]
) -> None:
    dataset = make_dataset(make_config(photos, "train.steps=5"))
    dataset.start = 3
    assert [b.step for b in dataset] == [3, 4]


def test_parts_of_a_step_are_together_the_step(
    photos: Path, parts: Components, make_dataset: Callable[..., TrainingDataset]
) -> None:
    full_batch = make_dataset(make_config(photos)).make_batch(3)
    dataset = make_dataset(make_config(photos, "train.accumulate=2", "train.steps=4"))
    dataset.start = 3
    one, two = dataset
    assert (one.ends_step, two.ends_step) == (False, True)
    for field, full_value in read_tensors(full_batch).items():
        a, b = (read_tensors(x)[field] for x in (one, two))
        assert torch.equal(torch.cat([a[:2], b[:2], a[2:], b[2:]]), full_value)


def test_embeddings_are_cached_where_the_text_encoder_is_frozen(
    photos: Path, toy_model: Path, make_dataset: Callable[..., TrainingDataset]
) -> None:
    frozen = load_components(toy_model)
    frozen.text_encoder.requires_grad_(False)
    batch = make_dataset(make_config(photos), parts=frozen).make_batch(2)
    trained = make_dataset(make_config(photos)).make_batch(2)
    with torch.no_grad():
        embeddings = frozen.text_encoder(read_ids(trained)).last_hidden_state
    assert batch.conditioning is not None
    assert batch.tokens is None
    assert torch.allclose(batch.conditioning["hidden"], embeddings, atol=1e-5)


def test_long_captions_are_taken_whole(
    photos: Path, toy_model: Path, make_dataset: Callable[..., TrainingDataset]
) -> None:
    """Subject captions in three windows; class images' in one, filled up with empty ones."""
    frozen = load_components(toy_model)
    frozen.text_encoder.requires_grad_(False)
    text = "a sks robot on the beach beside a blue boat and a green house, " * 3 + "in snow"
    config = make_config(photos, f"train.prompt={text}")
    batch = make_dataset(config, parts=frozen).make_batch(0)
    encoder = PromptEncoder(frozen, {"text_encoder": AdaptedNetwork(frozen.text_encoder)})
    expected = encoder.encode_pair(text, "a robot")
    assert batch.conditioning is not None
    for row, embeddings in ((0, expected[0]), (-1, expected[1])):
        hidden = batch.conditioning["hidden"][row]
        assert torch.allclose(hidden, embeddings["hidden"][0], atol=1e-5)
    with torch.no_grad():
        trained_parts = load_components(toy_model)
        module = DreamBoothModule(config, trained_parts)
        tokens = make_dataset(config, parts=trained_parts).make_batch(0).tokens
        assert tokens is not None
        embedded = trained_parts.functions.text_training.make_token_encoder(
            trained_parts, module._forwards.text_functions
        )(tokens)
    assert torch.allclose(embedded["hidden"][0], expected[0]["hidden"][0], atol=1e-5)


def test_captions_are_dropped_at_the_rate_asked_for(
    photos: Path, parts: Components, make_dataset: Callable[..., TrainingDataset]
) -> None:
    dataset = make_dataset(make_config(photos, "loss.caption_dropout=0.25"))
    empty = tokenize_windows(parts.tokenizer, [""])
    dropped = [
        bool((ids == empty).all())
        for step in range(40)
        for ids in read_ids(dataset.make_batch(step))
    ]
    assert 0.18 < sum(dropped) / len(dropped) < 0.32
    assert not (read_ids(make_dataset(make_config(photos)).make_batch(0)) == empty).all(dim=1).any()


def test_offset_noise_shifts_whole_channels(
    photos: Path, parts: Components, make_dataset: Callable[..., TrainingDataset]
) -> None:
    plain, shifted = (
        make_dataset(make_config(photos, f"loss.noise_offset={x}")).make_batch(1).noise
        for x in (0, 0.5)
    )
    shift = (shifted - plain).flatten(2)
    assert torch.allclose(shift, shift.mean(dim=2, keepdim=True).expand_as(shift), atol=1e-6)
    assert 0.3 < float(shift.mean(dim=2).std()) < 0.7


def test_logit_normal_timesteps_lie_where_they_are_put(
    photos: Path, parts: Components, make_dataset: Callable[..., TrainingDataset]
) -> None:
    def sample_timesteps(*overrides: str) -> torch.Tensor:
        dataset = make_dataset(make_config(photos, *overrides))
        return torch.cat([dataset.make_batch(s).times for s in range(60)]).float()

    middle = sample_timesteps("loss.timesteps=logit_normal", "loss.logit_std=0.5")
    early = sample_timesteps(
        "loss.timesteps=logit_normal", "loss.logit_mean=-2", "loss.logit_std=0.5"
    )
    assert 470 < float(middle.mean()) < 530
    assert float(middle.std()) < 0.6 * float(sample_timesteps().std())
    assert 80 < float(early.median()) < 160
    assert 0 <= float(early.min()) <= float(early.max()) < 1000


def test_subjects_take_turns_with_their_own_words(
    photos: Path, parts: Components, make_dataset: Callable[..., TrainingDataset]
) -> None:
    text = f"""
subjects:
- {{photos: {photos}, identifier: sks, class_noun: robot}}
- photos: {photos}
  identifier: ohwx
  class_noun: dog
  prompts: ['a {{identifier}}', 'one {{identifier}}']
train: {{batch_size: 2, resolution: 64}}
prior: {{count: 0}}
"""
    config = parse_config(text, "x", [])
    assert config.class_prompts == ("a robot", "a dog")
    dataset = make_dataset(config)
    texts = ["a sks robot", "a ohwx", "one ohwx"]
    captions_by_ids = dict(
        zip(
            [tuple(ids.tolist()) for ids in tokenize_windows(parts.tokenizer, texts)],
            texts,
            strict=True,
        )
    )
    second_captions = set()
    for step in range(12):
        captions = [
            captions_by_ids[tuple(ids.tolist())] for ids in read_ids(dataset.make_batch(step))
        ]
        assert captions[0] == "a sks robot"
        second_captions.add(captions[1])
    assert second_captions == {"a ohwx", "one ohwx"}
