from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.priorset import PriorSet
from dreambooth_ray.data.subject import read_subject
from dreambooth_ray.diffusion.components import Components, load_components
from dreambooth_ray.priors.painter import Painter
from dreambooth_ray.priors.plan import PriorSpec
from dreambooth_ray.priors.pool import open_set
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.corpus import Batch, Corpus, make_pool, tokenize


@pytest.fixture(scope="module")
def parts(toy_model: Path) -> Components:
    return load_components(toy_model)


TOY_SPEC = PriorSpec("hash", ("a robot",), "ddim", 2, 3.0, 64, 0, 3)


def config_of(photos: Path, *overrides: str) -> Config:
    base = f"subject: {{photos: {photos}, class_noun: robot}}"
    return parse_config(
        base, "x", ["train.resolution=64", "train.batch_size=4", "prior.count=6", *overrides]
    )


@pytest.fixture(scope="module")
def prior_set(tmp_path_factory: pytest.TempPathFactory, toy_model: Path) -> Store:
    """Six committed class images."""
    store, spec = Store(str(tmp_path_factory.mktemp("priors"))), replace(TOY_SPEC, chunk_size=3)
    set_store = open_set(store, spec)
    painter = Painter(str(toy_model), set_store.uri, spec, gpu=False)
    for number in range(2):
        painter.paint(number)
    return set_store


@pytest.fixture
def corpus_of(prior_set: Store, parts: Components) -> Callable[..., Corpus]:
    def make(config: Config, rank: int = 0, world: int = 1) -> Corpus:
        photographs = read_subject(Path(config.subject.photos), config.instance_prompt, 64)
        priors = PriorSet(prior_set, config.prior.count) if config.prior.count else None
        return Corpus(config, parts, photographs, priors, (rank, world))

    return make


def same(one: Batch, two: Batch) -> bool:
    fields = ("latents", "noise", "timesteps", "input_ids", "is_prior")
    return all(torch.equal(getattr(one, f), getattr(two, f)) for f in fields)


def test_a_batch_is_a_pure_function_of_its_step(
    photos: Path, parts: Components, corpus_of: Callable[..., Corpus]
) -> None:
    config = config_of(photos, "train.flip=true")
    one, two = corpus_of(config), corpus_of(config)
    two.start = 7
    later = [two.batch(9), *list(two)[:2]]
    assert same(one.batch(9), later[0])
    assert same(one.batch(7), later[1])
    assert not same(one.batch(7), one.batch(8))


def test_two_workers_see_together_what_one_sees(
    photos: Path, parts: Components, corpus_of: Callable[..., Corpus]
) -> None:
    config = config_of(photos, "train.flip=true")
    whole = corpus_of(config).batch(3)
    shares = [corpus_of(config, rank, 2).batch(3) for rank in (0, 1)]
    for field in ("latents", "noise", "timesteps", "input_ids"):
        value = getattr(whole, field)
        halves = [getattr(s, field) for s in shares]
        together = torch.cat([halves[0][:2], halves[1][:2], halves[0][2:], halves[1][2:]])
        assert torch.equal(value, together), field


def test_photographs_come_first_and_as_many_class_images(
    photos: Path, parts: Components, corpus_of: Callable[..., Corpus]
) -> None:
    batch = corpus_of(config_of(photos)).batch(0)
    assert batch.is_prior.tolist() == [False] * 4 + [True] * 4
    ids = tokenize(parts.tokenizer, ["a sks robot", "a robot"])
    assert torch.equal(batch.input_ids[0], ids[0])
    assert torch.equal(batch.input_ids[-1], ids[1])


def test_without_class_images_there_are_photographs_only(
    photos: Path, parts: Components, corpus_of: Callable[..., Corpus]
) -> None:
    batch = corpus_of(config_of(photos, "prior.count=0")).batch(0)
    assert batch.is_prior.tolist() == [False] * 4


def test_latents_are_resampled_from_the_posterior_of_the_picture(
    photos: Path, parts: Components, corpus_of: Callable[..., Corpus]
) -> None:
    corpus = corpus_of(config_of(photos))
    pool = make_pool(
        parts, [p.picture for p in read_subject(photos, "x", 64)], ["x"] * 3, flip=False
    )
    mean, std = pool.latents[:, 0].unbind(dim=1)
    for step in range(6):
        batch = corpus.batch(step)
        away = ((batch.latents[0] - mean) / std).abs().flatten(1).mean(dim=1)
        # Mean absolute value of a standard normal is 0.798: one picture fits, no other does.
        assert 0.7 < float(away.min()) < 0.9


def test_a_mirrored_view_is_the_mirrored_picture(parts: Components) -> None:
    picture = Image.new("RGB", (64, 64), (255, 255, 255))
    picture.paste((0, 0, 255), (0, 0, 20, 64))
    pool = make_pool(
        parts, [picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], ["x", "x"], True
    )
    assert torch.allclose(pool.latents[0, 1], pool.latents[1, 0], atol=1e-5)


def test_the_stream_ends_with_the_last_step(
    photos: Path, parts: Components, corpus_of: Callable[..., Corpus]
) -> None:
    corpus = corpus_of(config_of(photos, "train.steps=5"))
    corpus.start = 3
    assert [b.step for b in corpus] == [3, 4]
