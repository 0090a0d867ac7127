"""Names of files and folders below storage.uri that one module writes and another reads.

Manifests, leases, the files of an evaluation and the endpoint's jobs are named where they are made.
"""

import re

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
BUNDLE = "bundle"
ADAPTER = "adapter"  # in a bundle
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
RAY_TRAIN = "ray_train"
CHECKPOINT_SELECTION = "verdict.json"  # in a run: what its evaluations have decided
END = "end.json"  # in a run that they ended early
EVALUATIONS = "evaluations"
PRIORS = "priors"
CATALOG = "catalog"  # beside `runs`: an entry for each subject, what endpoints look up
CATALOG_VERSIONS = "catalog_versions"  # beside `runs`: the commits that entries are made of
CATALOG_COMPLETE = "catalog_complete.json"  # beside `runs`: all runs have entries, old ones too
PRIOR_SPEC = "set.json"
PRIOR_FAILURE = "priors_failed.json"  # in a run
RESTARTS = "restarts.json"  # in a run: why its workers were started again
STOP = "stop"  # in a run: somebody asked it to checkpoint and end
PRIOR_USE = "priors.json"  # in a run: the set it uses
_CHUNK = re.compile(r"chunk-(\d{6})\.json")
_STEP = re.compile(r"step-(\d{8})\.json")


def run(run_id: str) -> str:
    """Folder of a run."""
    return f"runs/{run_id}"


def photographs(digest: str) -> str:
    """Artifact name of uploaded photographs."""
    return f"photographs/{digest}"


def prior_set(digest: str) -> str:
    """Folder of a set of class images."""
    return f"{PRIORS}/{digest}"


def prior_chunk(number: int) -> str:
    """Artifact name of chunk `number` in the folder of a set."""
    return f"chunk-{number:06d}"


def prior_chunk_number(name: str) -> int | None:
    """Which chunk a name in a set's folder points to; None for other files."""
    match = _CHUNK.fullmatch(name)
    return int(match.group(1)) if match else None


def prior_image(index: int) -> str:
    """File of class image `index` in its chunk."""
    return f"{index:06d}.png"


def checkpoint(step: int) -> str:
    """Artifact name of the checkpoint after `step` optimizer steps, in the run's folder."""
    return f"{CHECKPOINTS}/step-{step:08d}"


def checkpoint_steps(names: list[str]) -> list[int]:
    """Steps of the committed checkpoints among the names in a checkpoints folder, ascending."""
    matches = (_STEP.fullmatch(name) for name in names)
    return sorted(int(match.group(1)) for match in matches if match)


def evaluation(step: int) -> str:
    """File of the evaluation of the checkpoint after `step` optimizer steps, in a run."""
    return f"{EVALUATIONS}/step-{step:08d}.json"


def evaluation_steps(names: list[str]) -> list[int]:
    """Steps among the names in an evaluations folder, ascending."""
    return checkpoint_steps(names)
