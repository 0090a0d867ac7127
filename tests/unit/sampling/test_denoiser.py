"""Rows predicted from a recording, whatever adapters they have and whichever come and go."""

from pathlib import Path
from unittest.mock import patch

import torch

from dreambooth_ray.models.components import load_components
from dreambooth_ray.sampling.denoiser import Denoiser, Row, _Recorded


def rows(names: tuple[str | None, ...]) -> list[Row]:
    return [Row(torch.randn(8, 16, 16), 500.0, torch.randn(32, 128), name) for name in names]


def as_it_is(denoiser: Denoiser, asked: list[Row]) -> torch.Tensor:
    """The prediction by the UNet itself."""
    with patch.object(_Recorded, "__call__", return_value=None):
        return denoiser(asked)


def test_recordings_know_rows_adapters_and_what_became_of_them(
    toy_model: Path, adapters: dict[str, Path]
) -> None:
    denoiser = Denoiser(load_components(toy_model).unet.eval(), 0)
    mixes: list[tuple[str | None, ...]] = [(None,) * 4]

    def check() -> None:
        for names in mixes:
            for _ in range(3):
                asked = rows(names)
                assert torch.equal(denoiser(asked), as_it_is(denoiser, asked))

    check()
    assert [r.num_recordings for r in denoiser._recorded._recorders.values()] == [1]
    denoiser.adapted.add("one", adapters["one"] / "unet")
    denoiser.adapted.add("two", adapters["two"] / "unet")
    mixes += [
        ("one", "one", "two", None),
        (None, "two", "one", "one"),
        ("two",) * 4,
        ("one", "two"),
    ]
    check()
    assert all(r.num_recordings == 1 for r in denoiser._recorded._recorders.values())
    denoiser.adapted.remove("one")
    mixes = [("two", None, "two", None), (None,) * 4]
    check()
    denoiser.adapted.remove("two")
    mixes = [(None,) * 4]
    check()
