"""Names of files and folders below storage.uri that one module writes and another reads.

Manifests, the files of an evaluation and the endpoint's jobs are named where they are made.
"""

import re

CONFIG = "config.yaml"
REQUESTED_CONFIG = "requested.yaml"  # before the model's own values were filled in, where sent so
METRICS = "metrics.jsonl"
INPUTS = "inputs.json"  # in a run: hashes of the photographs it is trained on, and their captions
BUNDLE = "bundle"
ADAPTER = "adapter"  # in a bundle
ADAPTER_SCHEDULER = "adapter/scheduler"  # in a bundle whose forward process is not its base's
CHECKPOINTS = "checkpoints"
LEASES = "leases"  # in a run: who works on it, a file a holder, numbered in their order
TENSORBOARD = "tensorboard"
RAY_TRAIN = "ray_train"
CHECKPOINT_SELECTION = "verdict.json"  # in a run: what its evaluations decided; numbered too
END = "end.json"  # in a run that they ended early
EVALUATIONS = "evaluations"
SAMPLES = "samples"  # in a run whose workers hold shares of the weights: sample images by step
PRIORS = "priors"
MODELS = "models"  # beside `runs`: base models for hosts that lack them, by their hash
MODEL_SOURCES = "models/sources"  # which of them a commit of the hub is
CATALOG = "catalog"  # beside `runs`: an entry for each subject, what endpoints look up
CATALOG_VERSIONS = "catalog_versions"  # beside `runs`: the commits that entries are made of
CATALOG_COMPLETE = "catalog_complete.json"  # beside `runs`: all runs have entries, old ones too
PRIOR_SPEC = "set.json"
PRIOR_END = "priors_end.json"  # in a run
RESTARTS = "restarts.json"  # in a run: why its workers were started again
STOP = "stop"  # in a run: somebody asked it to checkpoint and end
PRIOR_USE = "priors.json"  # in a run: the set it uses
_CHUNK = re.compile(r"chunk-(\d{6})\.json")
_STEP = re.compile(r"step-(\d{8})(?:-(\d{6}))?\.json")
_TAKEOVER = re.compile(r"takeover-(\d{6})-step-(\d{8})\.json")


def run(run_id: str) -> str:
    """Folder of a run."""
    return f"runs/{run_id}"


def model(digest: str) -> str:
    """Artifact name of a base model."""
    return f"{MODELS}/{digest}"


def photographs(digest: str) -> str:
    """Artifact name of uploaded photographs."""
    return f"photographs/{digest}"


def prior_set(digest: str) -> str:
    """Folder of a set of class images."""
    return f"{PRIORS}/{digest}"


def prior_chunk_artifact(number: int) -> str:
    """Artifact name of chunk `number` in the folder of a set."""
    return f"chunk-{number:06d}"


def parse_prior_chunk_number(name: str) -> int | None:
    """Which chunk a name in a set's folder points to; None for other files."""
    match = _CHUNK.fullmatch(name)
    return int(match.group(1)) if match else None


def prior_image_file(index: int) -> str:
    """File of class image `index` in its chunk."""
    return f"{index:06d}.png"


def checkpoint(step: int, lease: int = 0) -> str:
    """Artifact name of the checkpoint after `step` steps by the holder of `lease`, in a run."""
    return f"{CHECKPOINTS}/{_step_name(step, lease)}"


def evaluation(step: int, lease: int = 0) -> str:
    """File of the evaluation of that checkpoint, in a run."""
    return f"{EVALUATIONS}/{_step_name(step, lease)}.json"


def _step_name(step: int, lease: int) -> str:
    return f"step-{step:08d}-{lease:06d}" if lease else f"step-{step:08d}"


def parse_checkpoint_names(names: list[str]) -> list[tuple[int, int]]:
    """Step and lease of each pointer or evaluation among names in their folder, ascending."""
    matches = (_STEP.fullmatch(name) for name in names)
    return sorted((int(match.group(1)), int(match.group(2) or 0)) for match in matches if match)


def takeover_file(lease: int, step: int) -> str:
    """File that says from which step the holder of `lease` goes on, in a run."""
    return f"{CHECKPOINTS}/takeover-{lease:06d}-step-{step:08d}.json"


def step_samples_artifact(step: int) -> str:
    """Artifact name of the sample images of the checkpoint after `step` optimizer steps."""
    return f"{SAMPLES}/step-{step:08d}"


def sample_image_file(index: int) -> str:
    """File of the image of sample prompt `index` in that artifact."""
    return f"{index:03d}.png"


def parse_sampled_steps(names: list[str]) -> list[int]:
    """Steps among the names in a samples folder, ascending."""
    return [step for step, _ in parse_checkpoint_names(names)]


def parse_takeover_names(names: list[str]) -> tuple[tuple[int, int], ...]:
    """Lease and step of each takeover among the names in a checkpoints folder, ascending."""
    matches = (_TAKEOVER.fullmatch(name) for name in names)
    return tuple(sorted((int(match.group(1)), int(match.group(2))) for match in matches if match))
