import torch
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.objective import noise

seeds = st.integers(0, 2**63 - 1)


@given(seeds, st.integers(0, 10**6), st.lists(st.integers(0, 1000), min_size=1, max_size=6))
def test_a_row_depends_on_its_own_address_alone(seed: int, step: int, indices: list[int]) -> None:
    rows = noise.sample_normal(seed, "noise", step, indices, (2, 3))
    for row, index in zip(rows, indices, strict=True):
        assert torch.equal(row, noise.sample_normal(seed, "noise", step, [index], (2, 3))[0])


@given(seeds, st.integers(0, 1000))
def test_addresses_that_differ_draw_differently(seed: int, step: int) -> None:
    base = noise.sample_normal(seed, "noise", step, [0], (8,))
    other_addresses = [
        noise.sample_normal(seed, "posterior", step, [0], (8,)),
        noise.sample_normal(seed, "noise", step + 1, [0], (8,)),
        noise.sample_normal(seed, "noise", step, [1], (8,)),
        noise.sample_normal((seed + 1) % 2**63, "noise", step, [0], (8,)),
    ]
    assert not any(torch.equal(base, other) for other in other_addresses)


def test_integers_cover_their_range_evenly() -> None:
    integers = noise.sample_integers(3, "timestep", 0, list(range(4000)), 10)
    counts = torch.bincount(integers, minlength=10)
    assert len(counts) == 10
    assert counts.min() > 320
    assert counts.max() < 480


def test_normal_is_standard() -> None:
    samples = noise.sample_normal(0, "noise", 0, list(range(200)), (100,))
    assert abs(float(samples.mean())) < 0.02
    assert abs(float(samples.std()) - 1) < 0.02
