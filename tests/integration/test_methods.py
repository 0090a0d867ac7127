"""Two subjects with words and adapters of their own, from photographs to images."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.toyworld.photoshoot import write_photographs
from tests.integration.conftest import Run, dreambooth


@pytest.fixture
def recipe(tmp_path: Path, photos: Path) -> Path:
    write_photographs(tmp_path / "dog", 9, "dog", 2, size_px=96)
    path = tmp_path / "two.yaml"
    path.write_text(f"""
subjects:
- {{photos: {photos}, identifier: sks, class_noun: robot}}
- {{photos: dog, identifier: ohwx, class_noun: dog}}
identifier: {{kind: learned}}
prior: {{count: 6, num_inference_steps: 2}}
train:
  method: lora
  text_encoder: true
  images: 24
  batch_size: 4
  accumulate: 2
  lr: 1.0e-3
  resolution: 64
  ema_decay: 0.9
  precision: bf16-mixed
loss: {{min_snr_gamma: 5, caption_dropout: 0.1}}
validation: {{every: 2, held_out: 1, class_images: 2, timesteps: 4}}
tracking: {{loggers: [csv]}}
""")
    return path


@pytest.mark.demo
def test_adapters_and_words_of_two_subjects(tmp_path: Path, recipe: Path) -> None:
    trained = dreambooth("train", str(recipe), cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    run = Run(Path(trained.stdout.strip()))
    assert [r["step"] for r in run.metrics] == [1, 2, 3]
    assert "val_prior_loss_bin3" in run.metrics[1]
    adapter = run.folder / "bundle" / "adapter"
    assert set(load_file(adapter / "tokens.safetensors")) == {"<sks>", "<ohwx>"}
    assert {p.name for p in adapter.iterdir()} == {"unet", "text_encoder", "tokens.safetensors"}
    about = json.loads((run.folder / "bundle" / "manifest.json").read_text())["about"]
    assert (about["kind"], about["base_model"]) == ("adapter", "toyworld")
    assert [s["prompt"] for s in about["subjects"]] == ["a <sks> robot", "a <ohwx> dog"]
    engine = Engine(model_directory(str(run.folder)))
    (drawn,) = engine.sample([Request("a <ohwx> dog", 1, num_inference_steps=2)])
    plain_request = Request("a dog", 1, num_inference_steps=2)
    (plain,) = Engine(model_directory("toyworld")).sample([plain_request])
    assert drawn.image.size == (64, 64)
    assert (drawn.latents - plain.latents).abs().max() > 0.01
    _check_pairs(tmp_path, run)


def _check_pairs(tmp_path: Path, run: Run) -> None:
    """`evaluate --together`: once more is told from what is there, and draws nothing."""
    protocol = tmp_path / "protocol.yaml"
    protocol.write_text("""
name: three steps
prompts: {object: ["a {identifier} {class_noun}", "a {identifier} {class_noun} at night"]}
images_per_prompt: 1
num_inference_steps: 3
encoders: {dino: "toyworld:identity", clip_i: "toyworld:identity", clip_t: "toyworld:attributes"}
""")
    verb = ("evaluate", str(run.folder), "--protocol", str(protocol), "--together")
    told = [dreambooth(*verb, cwd=tmp_path) for _ in range(2)]
    assert told[0].returncode == 0, told[0].stderr
    assert told[0].stdout == told[1].stdout
    *numbers, page = told[0].stdout.splitlines()
    totals = json.loads("\n".join(numbers))
    assert {"<sks> + <ohwx>: both", "<sks> + <ohwx>: alone bleed of <ohwx>"} <= totals.keys()
    assert "a &lt;sks&gt; robot and a &lt;ohwx&gt; dog at night" in Path(page).read_text()
    refused = dreambooth(*verb, "--identifier", "sks", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--identifier is not for --together" in refused.stderr
