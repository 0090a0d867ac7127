"""Every name of a file or folder below storage.uri, in one place."""

import re

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
BUNDLE = "bundle"
ADAPTER = "adapter"  # in a bundle
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
RAY_TRAIN = "ray_train"
_STEP = re.compile(r"step-(\d{8})\.json")


def run(run_id: str) -> str:
    """Folder of a run."""
    return f"runs/{run_id}"


def prior_set(digest: str) -> str:
    """Folder of a set of class images."""
    return f"priors/{digest}"


def prior_image(index: int) -> str:
    """File of class image `index` in its set."""
    return f"{index:06d}.png"


def checkpoint(step: int) -> str:
    """Artifact name of the checkpoint after `step` optimizer steps, in the run's folder."""
    return f"{CHECKPOINTS}/step-{step:08d}"


def checkpoint_steps(names: list[str]) -> list[int]:
    """Steps of the committed checkpoints among the names in a checkpoints folder, ascending."""
    found = (_STEP.fullmatch(name) for name in names)
    return sorted(int(m.group(1)) for m in found if m)
