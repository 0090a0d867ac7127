import json
from pathlib import Path

from diffusers import AutoencoderKL

from dreambooth_ray.compat.diffusers import name_source


def test_a_saved_part_names_no_folder_of_this_machine(tiny_model: Path, tmp_path: Path) -> None:
    vae = AutoencoderKL.from_pretrained(tiny_model, subfolder="vae")
    assert vae.config["_name_or_path"], "diffusers: it keeps the source of a part elsewhere"
    name_source(vae, "toyworld")
    vae.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_name_or_path"] == "toyworld"
