"""Record training steps of diffusers' own scripts, for the tests to compare with.

    python -m tests.families.record_golden FAMILY... --diffusers CLONE

runs `examples/dreambooth/train_dreambooth*.py` of a clone of huggingface/diffusers on the tiny
model of a family, unchanged but for the hooks of `script_recorder`, and writes
`golden/FAMILY.safetensors` and `golden/FAMILY.json`. The scripts import torchvision, which is not
among our packages: install the release that goes with torch. Tests read the files alone.
"""

import argparse
import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

from tests.families.golden_cases import GOLDEN_FAMILIES, GoldenFamily
from tests.families.golden_values import GoldenRun, save_golden
from tests.families.script_recorder import ScriptRecorder
from tests.families.tiny_models import build_tiny, change_json

_IMAGE_SIZE = (48, 40)  # so that SDXL's original sizes and crops are no squares


def record_family(name: str, clone: Path) -> None:
    """Run all cases of a family, and write what happened."""
    family = GOLDEN_FAMILIES[name]
    runs = {case: record_case(family, case, clone) for case in family.cases}
    facts = {
        "diffusers": {"commit": _commit(clone), "script": f"examples/dreambooth/{family.script}"},
        "libraries": {
            package: importlib.metadata.version(package)
            for package in ("diffusers", "transformers", "peft", "torch")
        },
        "tiny_model": family.tiny_model,
        "record_again": f"python -m tests.families.record_golden {name} --diffusers CLONE",
    }
    save_golden(name, runs, facts)
    for case, run in runs.items():
        print(name, case, [round(step.loss, 6) for step in run.steps])


def record_case(family: GoldenFamily, case: str, clone: Path) -> GoldenRun:
    """One run of the script, in a folder of its own."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        model = build_tiny(family.tiny_model, folder / "model")
        change_json(model / "scheduler" / "scheduler_config.json", family.cases[case].changes)
        _draw_images(folder / "instance", seed=1, number=2)
        _draw_images(folder / "class", seed=2, number=4)
        arguments = family.all_arguments(case)
        folders = [
            f"--pretrained_model_name_or_path={model}",
            f"--instance_data_dir={folder / 'instance'}",
            f"--output_dir={folder / 'output'}",
        ]
        if family.cases[case].has_prior:
            folders.append(f"--class_data_dir={folder / 'class'}")
        script = _load_script(clone / "examples" / "dreambooth" / family.script)
        if case in family.captioned:
            _give_captions(script)
        script.args = script.parse_args([*arguments, *folders])
        vars(script.args).update(family.settings)
        recorder = ScriptRecorder()
        with recorder.watch(), _keep_float32(script, family.float32):
            script.main(script.args)
        facts = {"arguments": arguments, "scheduler": dict(family.cases[case].changes)}
        facts["captioned"] = case in family.captioned
        facts["saved_lora_keys"] = _saved_keys(folder / "output")
        return GoldenRun(recorder.steps, facts)


@contextmanager
def _keep_float32(script: ModuleType, names: Sequence[str]) -> Iterator[None]:
    """names: of classes whose networks are float32 whatever they are to be turned to"""

    def move(network: nn.Module, *args: Any, **_: Any) -> nn.Module:
        places = [arg for arg in args if isinstance(arg, str | torch.device)]
        return nn.Module.to(network, *places, torch.float32)

    with ExitStack() as stack:
        for name in names:
            stack.enter_context(patch.object(getattr(script, name), "to", move))
        yield


def _load_script(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = script
    specification.loader.exec_module(script)
    return script


def _give_captions(script: ModuleType) -> None:
    """Make the script's data set one with a caption for each image, as `--caption_column` does."""
    dataset_class = script.DreamBoothDataset

    def with_captions(*args: Any, **options: Any) -> Any:
        dataset = dataset_class(*args, **options)
        dataset.custom_instance_prompts = [options["instance_prompt"]] * len(dataset)
        return dataset

    script.DreamBoothDataset = with_captions  # type: ignore[attr-defined]


def _draw_images(folder: Path, seed: int, number: int) -> None:
    folder.mkdir()
    generator = np.random.default_rng(seed)
    for k in range(number):
        pixels = generator.integers(0, 256, (*reversed(_IMAGE_SIZE), 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")


def _saved_keys(output: Path) -> list[str]:
    path = output / "pytorch_lora_weights.safetensors"
    if not path.is_file():
        return []
    with safe_open(path, "pt") as file:
        return sorted(file.keys())


def _commit(clone: Path) -> str:
    """The clone's commit; of an archive of one, what its file COMMIT says."""
    if (clone / "COMMIT").is_file():
        return (clone / "COMMIT").read_text().strip()
    answer = subprocess.run(
        ["git", "-C", str(clone), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    )
    return answer.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", nargs="+", choices=GOLDEN_FAMILIES)
    parser.add_argument("--diffusers", type=Path, required=True, help="a clone of the repository")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.family:
        record_family(name, arguments.diffusers)


if __name__ == "__main__":
    main()
