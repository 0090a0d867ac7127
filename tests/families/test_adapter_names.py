"""Names that files of adapters have for a family's layers: what is written under them is read."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file

from dreambooth_ray.adapters.adapter import read_adapter
from dreambooth_ray.adapters.layer_table import LayerTable
from dreambooth_ray.bundles.kohya import rename_weights
from dreambooth_ray.models.single_file_names import UNetBlocks, find_original_unet_name
from dreambooth_ray.models.weight_files import find_weights
from tests.unit.adapters.published_keys import make_tensors, write_file


@pytest.mark.parametrize(
    "model",
    ["sd15", "sdxl", "flux1-dev", "flux2-klein", "flux2-dev", "z-image", "qwen-image", "chroma"],
)
def test_kohya_files_that_are_written_are_read_back(
    tiny_directories: dict[str, Path], tmp_path: Path, model: str
) -> None:
    """Layers that are one there and several here among them."""
    directory = tiny_directories[model]
    table = LayerTable.of_directory(directory)
    family = table.family
    assert family.kohya_names is not None
    part, weights = family.denoiser.name, {}
    for layer, shape in table.layers[part].items():
        if family.kohya_names.find(directory, part, layer):
            weights[f"{layer}.lora_A.weight"] = torch.randn(2, *shape[1:])
            weights[f"{layer}.lora_B.weight"] = torch.randn(shape[0], 2, *(1 for _ in shape[2:]))
    renamed = rename_weights(family.kohya_names, directory, part, weights, 3.0)
    adapter = read_adapter(write_file(tmp_path / "k.safetensors", renamed), table)
    assert len(adapter.layers) == len(weights) // 2
    for (_, layer), own in adapter.layers.items():
        down, up = (weights[f"{layer}.lora_{x}.weight"].flatten(1) for x in "AB")
        delta = own.compute_delta(torch.zeros(table.layers[part][layer])).flatten(1)
        torch.testing.assert_close(delta, 1.5 * up @ down, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_a_unet_has_the_names_of_its_authors(tiny_directories: dict[str, Path], model: str) -> None:
    table = LayerTable.of_directory(tiny_directories[model])
    shapes = find_weights(tiny_directories[model] / "unet", "unet").read_shapes()
    for layer in table.layers["unet"]:
        name = find_original_unet_name(f"{layer}.weight", UNetBlocks.of_names(shapes))
        for prefix in ("diffusion_model.", "model.diffusion_model."):
            (place,) = table.find(f"{prefix}{name.removesuffix('.weight')}")
            assert place.layer == layer


def test_kronecker_factors_of_a_fused_layer_are_split_by_rows(
    tiny_directories: dict[str, Path], tmp_path: Path
) -> None:
    table = LayerTable.of_directory(tiny_directories["flux1-dev"])
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    places = table.find(name)
    rows, columns = places[0].num_file_rows, places[0].shape[1]
    shapes = {f"{name}.lokr_w1": (6, 4), f"{name}.lokr_w2": (rows // 6, columns // 4)}
    tensors = make_tensors(shapes) | {f"{name}.alpha": torch.tensor(7.0)}
    adapter = read_adapter(write_file(tmp_path / "x.safetensors", tensors), table)
    whole = torch.kron(*(tensors[key] for key in shapes))
    assert adapter.kinds == {"lokr"}
    for index, projection in enumerate(("to_q", "to_k", "to_v")):
        own = adapter.layers["transformer", f"transformer_blocks.0.attn.{projection}"]
        begin = index * rows // 3
        delta = own.compute_delta(torch.zeros(rows // 3, columns))
        torch.testing.assert_close(delta, whole[begin : begin + rows // 3])


class _Checkpoint(dict[str, torch.Tensor]):
    """An original checkpoint; what of it is no weight of a layer is there as it is asked for."""

    def pop(self, key: str, *default: object) -> torch.Tensor:
        # Of FLUX.1's layers with queries, keys, values and more it knows the published size alone.
        size = (3 * 3072 + 12288, 1) if "linear1" in key else (6,)
        return super().pop(key, torch.zeros(size))


_CONVERTERS = {
    "sd3": single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers,
    "sd35": single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers,
    "flux1-dev": single_file_utils.convert_flux_transformer_checkpoint_to_diffusers,
    "krea2": single_file_utils.convert_krea2_transformer_checkpoint_to_diffusers,
    "flux2-klein": single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers,
    "flux2-dev": single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers,
}


@pytest.mark.parametrize("model", _CONVERTERS)
def test_diffusers_takes_layers_apart_alike(tiny_directories: dict[str, Path], model: str) -> None:
    """Weights put under their authors' names come back as ours by diffusers' own converter."""
    directory = tiny_directories[model]
    table, original = LayerTable.of_directory(directory), _Checkpoint()
    weights = dict(read_weights(directory / "transformer"))
    named: set[str] = set()
    unread = "single_blocks" if model == "flux1-dev" else "nothing"
    for layer in table.layers["transformer"]:
        for file_layer in list_names(directory, table, layer):
            if file_layer.startswith(unread):
                continue
            (place,) = [p for p in table.find(file_layer) if p.layer == layer]
            whole = original.setdefault(
                f"{file_layer}.weight",
                torch.full((place.num_file_rows, *place.shape[1:]), torch.nan),
            )
            begin = 0
            for first, last in place.rows:
                whole[first:last] = weights[f"{layer}.weight"][begin : begin + last - first]
                begin += last - first
            named.add(layer)
    if model == "flux1-dev":
        original["single_blocks.0.linear2.weight"] = torch.zeros(1)
    converted = _CONVERTERS[model](original)
    assert named
    for layer in named:
        torch.testing.assert_close(converted[f"{layer}.weight"], weights[f"{layer}.weight"])
    unnamed = {name for name in table.layers["transformer"] if name not in named}
    assert all("embed" in name or name.startswith("single_") for name in unnamed), unnamed


def read_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in find_weights(folder, "transformer").paths:
        yield from load_file(path).items()


def list_names(directory: Path, table: LayerTable, layer: str) -> list[str]:
    """With dots, as its authors have it."""
    family = table.family
    names = [f.name for f in (family.list_adapter_layer_names or (lambda *_: []))(directory, layer)]
    if family.kohya_names and (place := family.kohya_names.find(directory, "transformer", layer)):
        name = place.name.removeprefix("lora_unet_")
        name = re.sub(r"_blocks_(\d+)_", r"_blocks.\1.", name)
        for flat in ("img_attn_", "txt_attn_", "img_mlp_", "txt_mlp_", "img_mod_", "txt_mod_",
                     "modulation_", "time_in_", "final_layer_"):  # fmt: skip
            name = name.replace(flat, f"{flat[:-1]}.")
        names.append(name)
    return [name for name in names if "processor" not in name]
