"""Stable Diffusion 1.5 as people have it, from photographs to files for other programs."""

import shutil
from pathlib import Path

import pytest

from dreambooth_ray.training.metrics_log import FAILURES
from tests.families.tiny_models import change_json
from tests.integration.conftest import Run, dreambooth
from tests.published_models import CONFIGS, SD15, SD15_INPAINTING, SD21, SDXL, build_published

SETTINGS = (
    "train.resolution=64", "train.steps=4", "train.lr=1e-3", "train.text_encoder=true",
    "prior.count=2", "prior.num_inference_steps=2", "sample.num_inference_steps=2",
    "sample.every=2", "checkpoint.every=2", "cluster.workers=1",
)  # fmt: skip


@pytest.mark.fault
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_half_precision_download_is_trained_and_exported(
    tmp_path: Path, photos: Path, method: str
) -> None:
    """Variants alone, no image processor, and a path from where the command was given."""
    model = build_published(SD21 if method == "full" else SD15, tmp_path / "models" / "m", "fp16")
    shutil.rmtree(model / "feature_extractor")
    arguments = (f"subject.photos={photos}", "subject.class_noun=robot", "model.uri=models/m")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("subject: {identifier: sks, class_noun: robot, photos: x}\n")
    preflight = dreambooth("preflight", str(recipe), *arguments, *SETTINGS, cwd=tmp_path)
    assert preflight.returncode == 0, preflight.stdout + preflight.stderr
    trained = dreambooth(
        "train", str(recipe), *arguments, *SETTINGS, f"train.method={method}", cwd=tmp_path
    )
    assert trained.returncode == 0, trained.stderr
    run = Run(tmp_path / trained.stdout.strip())
    assert [record["step"] for record in run.metrics] == [1, 2, 3, 4]
    assert run.metrics[-1].get(FAILURES, 0) == 0
    generated = dreambooth(
        "generate", str(run.folder), "--out", "images", "--size", "64x64",
        "--num-inference-steps", "2", cwd=tmp_path,
    )  # fmt: skip
    assert generated.returncode == 0, generated.stderr
    formats = ["diffusers", "single-file", *(["lora", "kohya"] if method == "lora" else [])]
    for kind in formats:
        out = "exported" if kind == "diffusers" else f"{kind}.safetensors"
        exported = dreambooth(
            "export", str(run.folder), "--format", kind, "--out", out, cwd=tmp_path
        )
        assert exported.returncode == 0, exported.stderr
        assert (tmp_path / out).exists()


@pytest.mark.parametrize("name", ["PixArtSigmaPipeline", SD15_INPAINTING])
def test_other_models_are_refused_before_work_starts(
    tmp_path: Path, photos: Path, name: str
) -> None:
    if name == "PixArtSigmaPipeline":
        shutil.copytree(CONFIGS / SDXL, tmp_path / "m")
        change_json(tmp_path / "m" / "model_index.json", {"_class_name": name})
        said, verbs = name, ("train", "preflight", "generate", "serve")
    else:
        build_published(name, tmp_path / "m")
        said, verbs = "inpainting model", ("train", "preflight")
    settings = ("toy-robot.yaml", f"subject.photos={photos}", "model.uri=m", "train.resolution=64")
    commands = {
        "train": ("train", *settings),
        "preflight": ("preflight", *settings),
        "generate": ("generate", "m", "--prompt", "a robot"),
        "serve": ("serve", "models={m: m}", "port=0"),
    }
    for verb in verbs:
        refused = dreambooth(*commands[verb], cwd=tmp_path)
        output = refused.stdout + refused.stderr
        assert refused.returncode not in (0, None), verb
        assert said in output, (verb, output)
        assert "Traceback" not in output, verb
    assert not (tmp_path / "out" / "runs").exists()
