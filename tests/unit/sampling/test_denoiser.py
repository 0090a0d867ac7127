"""Rows predicted by a trace, whatever adapters they have and whichever come and go."""

from pathlib import Path
from unittest.mock import patch

import torch

from dreambooth_ray.config.adapter_mix import AdapterUse
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.sampling.denoiser import Denoiser, ForwardRow, _TracedDenoiser
from dreambooth_ray.sampling.loaded_adapters import LoadedAdapters


def make_rows(names: tuple[str | None, ...]) -> list[ForwardRow]:
    return [
        ForwardRow(
            torch.randn(8, 16, 16),
            500.0,
            Conditioning({"hidden": torch.randn(1, 32, 128)}),
            (AdapterUse(name),) if name else (),
        )
        for name in names
    ]


def predict_untraced(denoiser: Denoiser, rows: list[ForwardRow]) -> torch.Tensor:
    """The prediction by the UNet itself."""
    with patch.object(_TracedDenoiser, "__call__", return_value=None):
        return denoiser(rows)


def test_traces_follow_rows_and_adapters_that_come_and_go(
    toy_model: Path, adapters: dict[str, Path]
) -> None:
    parts = load_components(toy_model)
    denoiser = Denoiser(parts, 0)
    adapter_mixes: list[tuple[str | None, ...]] = [(None,) * 4]

    def check() -> None:
        for names in adapter_mixes:
            for _ in range(3):
                batch = make_rows(names)
                assert torch.equal(denoiser(batch), predict_untraced(denoiser, batch))

    check()
    assert [r.num_traces for r in denoiser._recorded._recordings.values()] == [1]
    adapter_set = LoadedAdapters(parts, denoiser.adapted)
    for name in ("one", "two"):
        adapter_set.add(name, adapters[name])
    adapter_mixes += [
        ("one", "one", "two", None),
        (None, "two", "one", "one"),
        ("two",) * 4,
        ("one", "two"),
    ]
    check()
    assert all(r.num_traces == 1 for r in denoiser._recorded._recordings.values())
    denoiser.adapted.remove_adapter("one")
    adapter_mixes = [("two", None, "two", None), (None,) * 4]
    check()
    denoiser.adapted.remove_adapter("two")
    adapter_mixes = [(None,) * 4]
    check()
