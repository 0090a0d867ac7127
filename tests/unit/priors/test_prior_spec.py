from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.data.prior_set import PriorImageRecord
from dreambooth_ray.errors import DataError
from dreambooth_ray.priors.prior_spec import (
    MAX_GENERATED_RATIO,
    PriorSpec,
    missing_chunks,
    select_counted_images,
)

SPEC = PriorSpec("hash", ("a dog",), SamplingParams(), 64, 0, 4)


def chunk(
    spec: PriorSpec, number: int, bad: frozenset[int] = frozenset()
) -> list[PriorImageRecord]:
    """Records of images that all differ, but for blanks at the `bad` indices."""
    return [
        PriorImageRecord(i, (2**40 - 1) << (40 * i), i in bad, 0)
        for i in spec.image_indices(number)
    ]


@example(1, set[int](), frozenset({0, 1, 2}))
@given(
    st.integers(1, 40), st.sets(st.integers(0, 12)), st.frozensets(st.integers(0, 50), max_size=8)
)
def test_what_is_missing_makes_the_set_whole_and_no_chunk_is_generated_twice(
    count: int, committed: set[int], bad: frozenset[int]
) -> None:
    # Where too few count of all that may be generated, it is given up: a test of its own.
    allowed = -(-count * MAX_GENERATED_RATIO // SPEC.chunk_size) * SPEC.chunk_size
    assume(len(set(range(allowed)) - bad) >= count)
    records = {n: chunk(SPEC, n, bad) for n in committed}
    generated: list[int] = []
    while todo := missing_chunks(SPEC, count, records):
        assert not set(todo) & set(records)
        generated += todo
        records |= {n: chunk(SPEC, n, bad) for n in todo}
    accepted = select_counted_images(SPEC, records).accepted
    assert len(accepted) >= count
    assert len(generated) == len(set(generated))
    # Which images count does not depend on what was there before.
    fresh = select_counted_images(SPEC, {n: chunk(SPEC, n, bad) for n in range(30)}).accepted
    assert accepted[:count] == fresh[:count]
    assert not {r.index for r in accepted} & bad


SHAPED = replace(SPEC, shapes=((48, 80), (64, 64), (80, 48)))


@given(
    st.integers(3, 40), st.sets(st.integers(0, 12)), st.frozensets(st.integers(0, 50), max_size=8)
)
def test_of_each_shape_as_many_are_made_as_are_asked_for(
    count: int, committed: set[int], bad: frozenset[int]
) -> None:
    records = {n: chunk(SHAPED, n, bad) for n in committed}
    try:
        while todo := missing_chunks(SHAPED, count, records):
            assert not set(todo) & set(records)
            records |= {n: chunk(SHAPED, n, bad) for n in todo}
    except DataError:
        assume(False)
    selection = select_counted_images(SHAPED, records)
    for position in range(count):
        record = selection.find(position)
        assert record is not None
        assert record.index not in bad
        number = record.index // SHAPED.chunk_size
        assert SHAPED.chunk_shape(number) == SHAPED.shapes[position % 3]
        # Without one passed over, it is where its chunk says.
        if not bad:
            offset = record.index % SHAPED.chunk_size
            assert SHAPED.list_chunk_image_positions(number)[offset] == position


def test_a_near_duplicate_gives_way_to_the_next_index() -> None:
    first = chunk(SPEC, 0)
    twin = replace(first[2], fingerprint=first[0].fingerprint ^ 0b111)
    selection = select_counted_images(SPEC, {0: [first[0], first[1], twin, first[3]]})
    assert [r.index for r in selection.accepted] == [0, 1, 3]
    assert [r.index for r in selection.rejected] == [2]


def test_a_persons_own_images_are_all_taken() -> None:
    own = replace(SPEC, folder_digest="ff")
    blanks = [replace(r, fingerprint=0, blank=True) for r in chunk(SPEC, 0)]
    assert len(select_counted_images(own, {0: blanks}).accepted) == 4


def test_a_model_that_repeats_itself_is_given_up_on() -> None:
    repeats = {n: [replace(r, fingerprint=7) for r in chunk(SPEC, n)] for n in range(100)}
    with pytest.raises(DataError, match=r"only 1 of 10 .*prior\.prompt"):
        missing_chunks(SPEC, 10, repeats)


# One for each field of SamplingParams.
CHANGED_PARAMS: list[dict[str, Any]] = [
    {"solver": "dpmpp_2m"},
    {"num_inference_steps": 26},
    {"guidance_scale": 3.5},
    {"eta": 0.5},
    {"solver": "dpmpp_2m", "karras": True},
    {"guidance_rescale": 0.5},
    {"guidance_interval": (0.0, 0.9)},
    {"guidance_every": 2},
    {"cache_every": 2},
    {"clip_skip": 1},
]


def test_sets_keep_the_names_they_had_before_there_were_more_parameters() -> None:
    params = SamplingParams(solver="euler", num_inference_steps=30, guidance_scale=7.5)
    own = replace(SPEC, params=None, folder_digest="ff")
    specs = (SPEC, replace(SPEC, params=params), own)
    assert [s.digest for s in specs] == [
        "2018ed7a09fbcb9a96d2b382",
        "d52b4739fc44225b5ecccabd",
        "6aefaf5c4a0232ae079b8ad7",
    ]


def test_every_field_names_another_set() -> None:
    changed = [
        replace(SPEC, model_hash="other"),
        replace(SPEC, prompts=("a cat",)),
        replace(SPEC, prompts=("a dog", "a cat")),
        *(replace(SPEC, params=SamplingParams(**params)) for params in CHANGED_PARAMS),
        replace(SPEC, size_px=32),
        replace(SPEC, seed=1),
        replace(SPEC, chunk_size=8),
        replace(SPEC, folder_digest="ff"),
        SHAPED,
        replace(SPEC, shapes=((64, 64), (48, 80), (80, 48))),
    ]
    assert len({s.digest for s in [SPEC, *changed]}) == 10 + len(CHANGED_PARAMS)
    assert replace(SPEC).digest == SPEC.digest


def test_image_seeds_differ_and_are_torch_seeds() -> None:
    seeds = {SPEC.image_seed(i) for i in range(1000)}
    assert len(seeds) == 1000
    assert all(0 <= s < 2**63 for s in seeds)
