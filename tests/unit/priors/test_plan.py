from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.priors.plan import PriorSpec, chunks, missing_chunks
from dreambooth_ray.storage import layout

SPEC = PriorSpec("hash", "a dog", 25, 3.0, 64, 0, 8)


@given(st.integers(0, 100), st.integers(1, 12), st.sets(st.integers(0, 110)))
def test_missing_is_wanted_minus_committed(count: int, size: int, there: set[int]) -> None:
    todo = missing_chunks(count, size, {layout.prior_image(i) for i in there})
    drawn = there | {i for chunk in todo for i in chunk}
    assert set(range(count)) <= drawn
    # Nothing is drawn for a chunk that is whole.
    assert all(any(i not in there for i in chunk if i < count) for chunk in todo)


@given(st.integers(1, 100), st.integers(1, 12))
def test_chunks_do_not_depend_on_the_count(count: int, size: int) -> None:
    assert chunks(count, size) == chunks(200, size)[: len(chunks(count, size))]


def test_every_field_names_another_set() -> None:
    changed = [
        replace(SPEC, model_hash="other"),
        replace(SPEC, prompt="a cat"),
        replace(SPEC, num_inference_steps=26),
        replace(SPEC, guidance_scale=3.5),
        replace(SPEC, size_px=32),
        replace(SPEC, seed=1),
        replace(SPEC, chunk_size=4),
    ]
    assert len({s.digest for s in [SPEC, *changed]}) == 8
    assert replace(SPEC).digest == SPEC.digest


def test_image_seeds_differ_and_are_torch_seeds() -> None:
    drawn = {SPEC.image_seed(i) for i in range(1000)}
    assert len(drawn) == 1000
    assert all(0 <= s < 2**63 for s in drawn)
