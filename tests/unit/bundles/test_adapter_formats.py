"""Each kind of adapter as a file: read whole by its readers, or refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dreambooth_ray.adapters.adapter import read_adapter
from dreambooth_ray.adapters.layer_adapter import add_deltas_to_weight, find_layer
from dreambooth_ray.adapters.layer_table import LayerTable
from dreambooth_ray.bundles import lycoris
from dreambooth_ray.bundles.export_formats import export_run
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import load_components, load_pipeline
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from tests.unit.models.test_lora_bundle import make_bundle
from tests.unit.training.test_adapter_kinds import KINDS

LYCORIS = ("loha", "lokr")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {
        kind: make_bundle(folder / kind, tiny_model, *settings, "train.lora.alpha=3")
        for kind, settings in {**KINDS, "whole": ("train.lora.kind=lokr", "train.lora.rank=32")}
        .items()
    }  # fmt: skip


@pytest.mark.parametrize("kind", [*LYCORIS, "whole"])
def test_readers_of_kohyas_files_add_what_peft_adds(
    tiny_model: Path, bundles: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """`whole`: of LoKr without a rank, which readers do not scale."""
    out = export_run(str(bundles[kind]), "kohya", tmp_path / "x.safetensors")
    roles = {name.rpartition(".")[2] for name in load_file(out)}
    assert ("alpha" in roles) == (kind != "whole")
    with safe_open(out, "pt") as file:
        arguments = json.loads(file.metadata()["ss_network_args"])
    assert arguments["algo"] == ("lokr" if kind == "whole" else kind)
    base = load_components(tiny_model)
    merged = load_components(model_directory(str(bundles[kind])))  # by peft
    adapter = read_adapter(out, LayerTable.of_directory(tiny_model))
    for part in ("unet", "text_encoder"):
        network, expected = getattr(base, part), dict(getattr(merged, part).named_parameters())
        layers = adapter.of_part(part)
        changed = {n for n, w in network.named_parameters() if not torch.equal(w, expected[n])}
        assert len(changed) == len(layers) > 0
        names = {module: name for name, module in network.named_modules()}
        for layer, own in layers.items():
            module = find_layer(network, layer)
            assert module is not None
            weight = add_deltas_to_weight(module.get_parameter("weight"), [(own, 1.0)])
            torch.testing.assert_close(
                weight, expected[f"{names[module]}.weight"].detach(), atol=1e-5, rtol=1e-4
            )


@pytest.mark.parametrize("kind", [*KINDS, "whole"])
@pytest.mark.parametrize("form", ["diffusers", "single-file"])
def test_a_whole_model_has_the_adapters_fused_in(
    bundles: dict[str, Path], tmp_path: Path, kind: str, form: str
) -> None:
    name = "x.safetensors" if form == "single-file" else "x"
    out = export_run(str(bundles[kind]), form, tmp_path / name)
    written = load_components(model_directory(str(out))).unet.state_dict()
    expected = load_components(model_directory(str(bundles[kind]))).unet.state_dict()
    torch.testing.assert_close(written, expected)


@pytest.mark.parametrize("kind", LYCORIS)
def test_what_diffusers_does_not_read_is_refused(
    bundles: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    with pytest.raises(ConfigError, match=r"--format=lora: diffusers reads no Lo.*kohya"):
        export_run(str(bundles[kind]), "lora", tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", LYCORIS)
def test_nothing_is_announced_that_is_read_otherwise(
    bundles: dict[str, Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = lycoris.rename_factors

    def scale_twice(*inputs: object) -> dict[str, torch.Tensor]:
        weights = rename(*inputs)  # type: ignore[arg-type]
        return {n: 2 * w if n.endswith("alpha") else w for n, w in weights.items()}

    monkeypatch.setattr(lycoris, "rename_factors", scale_twice)
    with pytest.raises(ConfigError, match=r"--format=kohya: .*otherwise than it was learnt"):
        export_run(str(bundles[kind]), "kohya", tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["rslora", "loraplus", "patterns"])
@pytest.mark.parametrize("file_format", ["lora", "kohya"])
def test_ranks_and_scales_by_layer_are_read_by_diffusers(
    tiny_model: Path, bundles: dict[str, Path], tmp_path: Path, kind: str, file_format: str
) -> None:
    """The export compares every layer; here what comes of all of them together."""
    out = export_run(str(bundles[kind]), file_format, tmp_path / "x.safetensors")
    pipeline, merged = load_pipeline(tiny_model), load_pipeline(bundles[kind])
    pipeline.load_lora_weights(str(tmp_path), weight_name=out.name)
    inputs = torch.ones(1, 4, 8, 8), torch.tensor([5]), torch.ones(1, 16, 32)
    with torch.no_grad():
        read, expected = (p.unet(*inputs).sample for p in (pipeline, merged))
    torch.testing.assert_close(read, expected, atol=1e-4, rtol=1e-3)


def test_an_engine_draws_with_every_kind_as_with_the_fused_model(
    tiny_model: Path, bundles: dict[str, Path]
) -> None:
    engine = Engine(load_components(tiny_model))
    for kind, folder in bundles.items():
        engine.add_adapter(kind, folder / "adapter")
    requests = [
        Request("a robot", 3, num_inference_steps=2, width_px=64, height_px=64, adapter=kind)
        for kind in bundles
    ]
    for kind, output in zip(bundles, engine.sample(requests), strict=True):
        fused = Engine(load_components(model_directory(str(bundles[kind]))))
        plain = Request("a robot", 3, num_inference_steps=2, width_px=64, height_px=64)
        (expected,) = fused.sample([plain])
        torch.testing.assert_close(output.latents, expected.latents, atol=2e-3, rtol=1e-2)
