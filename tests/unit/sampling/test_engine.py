"""What the engine promises: diffusers' images, alone or in any company."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dreambooth_ray.errors import CapacityError, ConfigError
from dreambooth_ray.models.components import load_components, load_pipeline
from dreambooth_ray.models.families.stable_diffusion import FAMILY
from dreambooth_ray.sampling.denoiser import Denoiser, ForwardRow
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request

FAST = Request("a red robot on the beach", seed=3, num_inference_steps=3)


@pytest.fixture(scope="module")
def engine(toy_model: Path, adapters: dict[str, Path]) -> Engine:
    loaded_engine = Engine(toy_model)
    for name, folder in adapters.items():
        loaded_engine.add_adapter(name, folder)
    return loaded_engine


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


def test_an_image_is_the_one_diffusers_generates(toy_model: Path) -> None:
    request = replace(FAST, negative_prompt="a hat", guidance_rescale=0.5)
    (ours,) = Engine(toy_model).sample([request])
    theirs = load_pipeline(toy_model)(
        FAST.prompt,
        negative_prompt="a hat",
        num_inference_steps=3,
        guidance_scale=3.0,
        guidance_rescale=0.5,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert difference(ours.image, theirs) <= 1


requests = st.builds(
    Request,
    prompt=st.sampled_from(["a red car", "a (blue:1.3) dog", "a boat on the beach " * 9]),
    seed=st.integers(0, 5),
    negative_prompt=st.sampled_from(["", "a hat"]),
    num_inference_steps=st.integers(1, 4),
    guidance_scale=st.sampled_from([1.0, 2.0, 7.5]),
    solver=st.sampled_from(FAMILY.solvers),
    guidance_interval=st.sampled_from([(0.0, 1.0), (0.3, 0.8)]),
    guidance_every=st.sampled_from([1, 2]),
    cache_every=st.sampled_from([1, 2]),
    width_px=st.just(64),
    height_px=st.sampled_from([64, 80]),
    image=st.sampled_from([None, Image.new("RGB", (64, 64), (90, 30, 200))]),
    adapter=st.sampled_from([None, "one", "two", "dora"]),
)


@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(requests, min_size=2, max_size=5))
def test_an_image_does_not_depend_on_its_batch(
    engine: Engine, mixed_requests: list[Request]
) -> None:
    batched_outputs = engine.sample(mixed_requests)
    for request, output in zip(mixed_requests, batched_outputs, strict=True):
        (single_output,) = engine.sample([request])
        assert (single_output.latents - output.latents).abs().max() <= 1e-4
        assert difference(single_output.image, output.image) <= 1


def test_adapters_differ_from_each_other_and_from_the_base(engine: Engine) -> None:
    outputs = engine.sample([replace(FAST, adapter=a) for a in (None, "one", "two", "dora")])
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert (one.latents - other.latents).abs().max() > 1e-3


def test_removed_adapters_leave_the_base_as_it_was(
    toy_model: Path, adapters: dict[str, Path]
) -> None:
    engine = Engine(toy_model)
    (before,) = engine.sample([FAST])
    engine.add_adapter("one", adapters["one"])
    (base,) = engine.sample([FAST])
    handle = engine.submit(replace(FAST, adapter="one"))
    engine.remove_adapter("one")
    while engine.run_step():
        pass
    with pytest.raises(ConfigError, match="adapter='one'"):
        handle.result(0)
    (after,) = engine.sample([FAST])
    assert torch.equal(before.latents, after.latents)
    assert (before.latents - base.latents).abs().max() <= 1e-4
    with pytest.raises(ConfigError, match="adapter='one' is not loaded"):
        engine.submit(replace(FAST, adapter="one"))


def test_an_adapter_of_another_model_is_refused(
    other_model: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    engine = Engine(other_model)
    with pytest.raises(ConfigError, match=r"'one': .*it is of another model"):
        engine.add_adapter("one", adapters["one"])
    with pytest.raises(ConfigError, match=r"no adapter_model\.safetensors"):
        engine.add_adapter("empty", tmp_path)
    (tmp_path / "tokens.safetensors").touch()
    with pytest.raises(ConfigError, match="brings learned words"):
        engine.add_adapter("worded", tmp_path)
    assert engine.loaded_adapter_names == set()
    engine.sample([replace(FAST, num_inference_steps=1)])


def test_the_masked_part_alone_changes(engine: Engine) -> None:
    (start,) = engine.sample([replace(FAST, num_inference_steps=8)])
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 64, 32))
    (output,) = engine.sample(
        [Request("a blue boat", 9, num_inference_steps=8, image=start.image, mask=mask)]
    )
    unmasked_difference = (output.latents - engine._codec.encode(start.image))[:, 8:]
    assert unmasked_difference.abs().max() < 1e-5
    assert (output.latents - start.latents)[:, :8].abs().max() > 0.5


def test_strength_is_the_share_of_steps_done(engine: Engine, tile: Image.Image) -> None:
    weak = replace(FAST, num_inference_steps=10, image=tile, strength=0.2)
    handle = engine.submit(weak)
    assert handle.num_steps == 2
    while engine.run_step():
        pass
    assert abs(np.asarray(handle.result(0).image).mean() - np.asarray(tile).mean()) < 20


def test_a_unet_trained_to_inpaint_gets_its_nine_channels(inpainting_model: Path) -> None:
    engine = Engine(inpainting_model)
    image, mask = Image.new("RGB", (128, 128), (40, 90, 10)), Image.new("L", (128, 128), 255)
    request = replace(FAST, num_inference_steps=2, image=image, strength=1.0)
    unmasked, masked = engine.sample(
        [replace(request, mask=mask), replace(request, mask=Image.new("L", (128, 128), 0))]
    )
    assert (unmasked.latents - masked.latents).abs().max() > 1e-3
    engine.sample([replace(FAST, num_inference_steps=1)])


def test_guidance_one_needs_half_the_rows(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    forward = Denoiser.__call__

    def counting(self: Denoiser, batch: list[ForwardRow]) -> torch.Tensor:
        rows.append(len(batch))
        return forward(self, batch)

    monkeypatch.setattr(Denoiser, "__call__", counting)
    engine.sample([replace(FAST, guidance_scale=1.0)])
    engine.sample([replace(FAST, num_inference_steps=4, guidance_interval=(0.25, 0.75))])
    engine.sample([replace(FAST, num_inference_steps=4, guidance_every=2)])
    assert rows == [1, 1, 1, 1, 2, 2, 1, 2, 1, 2, 1]


def test_cached_features_skip_the_middle_and_resemble_the_exact_image(
    engine: Engine,
) -> None:
    exact, cached = (
        engine.sample([replace(FAST, num_inference_steps=12, cache_every=cache_every)])[0]
        for cache_every in (1, 2)
    )
    assert 1e-3 < (exact.latents - cached.latents).abs().mean() < 0.2
    calls: list[int] = []
    middle = engine._denoiser.adapted.network.mid_block
    handle = middle.register_forward_hook(lambda *_: calls.append(1))
    engine.sample([replace(FAST, num_inference_steps=12, cache_every=3)])
    handle.remove()
    assert len(calls) == 4


def test_progress_previews_and_remaining_steps(engine: Engine) -> None:
    steps: list[tuple[int, int]] = []
    previews: list[tuple[int, tuple[int, int]]] = []
    handle = engine.submit(
        replace(FAST, num_inference_steps=8),
        on_progress=lambda step, total: steps.append((step, total)),
        on_preview=lambda step, image: previews.append((step, image.size)),
        num_previews=3,
    )
    assert engine.remaining_steps == handle.remaining_steps == 8
    while engine.run_step():
        pass
    assert steps == [(k, 8) for k in range(1, 9)]
    assert previews == [(2, (64, 64)), (4, (64, 64)), (6, (64, 64))]
    assert engine.remaining_steps == engine.num_active == engine.num_waiting == 0


def test_a_small_image_does_not_wait_for_each_step_of_a_large_one(toy_model: Path) -> None:
    engine = Engine(toy_model)
    large = engine.submit(replace(FAST, num_inference_steps=50, width_px=256, height_px=256))
    for _ in range(2):
        engine.run_step()
    small = engine.submit(replace(FAST, num_inference_steps=20))
    while not small.future.done():
        engine.run_step()
    # Turn by turn it would have 20 more.
    assert large.step <= 2 + 14
    assert engine.remaining_steps > 4 * large.remaining_steps
    large.cancel()


def test_a_cancelled_request_frees_its_place_within_a_step(toy_model: Path) -> None:
    engine = Engine(toy_model, max_batch=1)
    first, second = engine.submit(replace(FAST, num_inference_steps=50)), engine.submit(FAST)
    engine.run_step()
    assert (first.step, engine.num_active, engine.num_waiting) == (1, 1, 1)
    first.cancel()
    engine.run_step()
    assert (first.step, second.step) == (1, 1)
    assert first.future.cancelled()


def test_a_listener_that_fails_ends_its_own_request_alone(engine: Engine) -> None:
    def broken(step: int, total: int) -> None:
        raise ValueError("the listener's own")

    bad, good = engine.submit(FAST, on_progress=broken), engine.submit(FAST)
    while engine.run_step():
        pass
    with pytest.raises(ValueError, match="the listener's own"):
        bad.result(0)
    assert good.result(0).image.size == (64, 64)


def test_a_thread_of_its_own_serves_many_callers(engine: Engine, toy_model: Path) -> None:
    threaded = Engine(toy_model, max_batch=4)
    threaded.start()
    latents_by_seed: dict[int, torch.Tensor] = {}

    def call(seed: int) -> None:
        latents_by_seed[seed] = threaded.submit(replace(FAST, seed=seed)).result(60).latents

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    pending_handle = threaded.submit(replace(FAST, num_inference_steps=500))
    threaded.close()
    assert pending_handle.future.cancelled()
    for seed, latents in latents_by_seed.items():
        (output,) = engine.sample([replace(FAST, seed=seed)])
        assert (latents - output.latents).abs().max() <= 1e-4
    with pytest.raises(ConfigError, match="closed"):
        threaded.submit(FAST)


def test_sizes_and_memory_are_checked_when_asked(toy_model: Path) -> None:
    parts = load_components(toy_model)
    engine = Engine(parts, memory_limit_bytes=40 * 2**20)
    with pytest.raises(ConfigError, match="width_px=72 must be a multiple of 16"):
        engine.submit(replace(FAST, width_px=72, height_px=64))
    with pytest.raises(CapacityError, match=r"width_px=2048.*would fit"):
        engine.submit(replace(FAST, width_px=2048, height_px=2048))
    with pytest.raises(ConfigError, match="clip_skip=2"):
        engine.submit(replace(FAST, clip_skip=2))
    with pytest.raises(ConfigError, match="no files"):
        _ = engine.model_hash


def test_a_step_that_fails_tells_no_cost(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[object] = []
    monkeypatch.setattr(
        engine.step_costs, "record_sampling_step", lambda *cost: recorded.append(cost)
    )

    def fail(*_: object) -> None:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_advance_batch_one_step", fail)
        with pytest.raises(RuntimeError, match="the device is gone"):
            engine.sample([Request("a robot", seed=0, num_inference_steps=2)])
    assert not recorded
    engine.sample([Request("a robot", seed=0, num_inference_steps=2)])
    assert len(recorded) == 2
