"""The complete training state of a step, or its weights, on this machine and verified."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.models.model_directory import has_matching_hash
from dreambooth_ray.models.tensor_files import SUFFIX
from dreambooth_ray.storage import artifact_files, fence, manifest
from dreambooth_ray.storage.store import Store

STATE = "state.ckpt"  # a file, or a folder with files of every worker
WEIGHTS = "state_dict"  # in a state, or in a file beside it: what is trained, by name
AVERAGE = "average"  # likewise: averaged weights, by the same names


@dataclass(frozen=True)
class BaseModel:
    """The model that a run fine-tunes: its directory on this host, and its hash."""

    directory: Path
    digest: str

    def matches_model_digest(self, digest: str) -> bool:
        """Whether a checkpoint's digest is this model's; so is none."""
        return digest in ("", self.digest) or has_matching_hash(self.directory, digest)


@dataclass(frozen=True)
class DownloadedCheckpoint:
    """A checkpoint on this machine, verified, not to be changed; about is what its manifest says.

    state: in the folder asked for, or in the store, where that is a folder of this machine
    """

    step: int
    state: Path
    about: dict[str, object]


@dataclass(frozen=True)
class CheckpointFiles:
    """Files of a checkpoint on this machine, not to be changed.

    state: its state; digests: SHA-256 of the files that are still to be verified, by their names
    in the state's folder
    """

    state: Path
    digests: Mapping[str, str] = field(default_factory=dict)


def tensor_file(state: Path, key: str) -> Path:
    """The file beside a state that holds its tensors of one kind, WEIGHTS or AVERAGE."""
    return state.with_name(f"{key}{SUFFIX}")


def download_weight_files(
    run: Store, checkpoint: fence.CheckpointId, local: Path
) -> CheckpointFiles:
    """The files of one checkpoint that its weights are in, for `verified_weights`.

    They are downloaded into `local`, unless the store is a folder of this machine: then they are
    where they lie. The others are not read: they must be there as storage says it, by sizes and
    checksums.

    raises: CheckpointError naming a file that is missing or differs
    """
    folder, _, file_entries = manifest.read_entries(run, checkpoint.name)
    if file_fault := manifest.find_mismatched_file(run, folder, file_entries):
        raise CheckpointError(f"{run.uri}/{file_fault}")
    weight_file_names = _choose_weight_files([file_entry.name for file_entry in file_entries])
    weight_file_entries = [
        file_entry for file_entry in file_entries if file_entry.name in weight_file_names
    ]
    if run.is_local:
        digests = {file_entry.name: file_entry.sha256 for file_entry in weight_file_entries}
        return CheckpointFiles(run.local_path(folder) / STATE, digests)
    manifest.download_files(run, folder, weight_file_entries, local)
    return CheckpointFiles(local / STATE)


def _choose_weight_files(names: list[str]) -> list[str]:
    """The file of averaged weights, else of weights; all where they are in one with the rest."""
    for tensor_file_key in (AVERAGE, WEIGHTS):
        if f"{tensor_file_key}{SUFFIX}" in names:
            return [f"{tensor_file_key}{SUFFIX}"]
    return names


def download_newest_checkpoint(
    run: Store, local: Path, on_damage: Callable[[str], None] = lambda _: None
) -> DownloadedCheckpoint | None:
    """The newest intact checkpoint; None if there is none at all.

    A damaged one is passed over for the one before, after a word to on_damage.
    raises: CheckpointError if there are checkpoints and none is intact
    """
    damage_reports: list[str] = []
    for step, checkpoint in reversed(fence.read_history(run).checkpoints.items()):
        folder = local / str(step)
        try:
            checkpoint_folder, metadata = artifact_files.ensure_local_artifact(
                run, checkpoint.name, folder
            )
        except CheckpointError as error:
            damage_reports.append(str(error))
            on_damage(f"checkpoint of step {step} is passed over: {error}")
            continue
        return DownloadedCheckpoint(step, checkpoint_folder / STATE, metadata)
    if damage_reports:
        raise CheckpointError(f"no intact checkpoint in {run.uri}: {'; '.join(damage_reports)}")
    return None


def check_same_model_and_strategy(
    checkpoint: DownloadedCheckpoint, strategy: str, model: BaseModel, run_uri: str
) -> None:
    """raises: CheckpointError if a checkpoint is of another model, or of another strategy"""
    metadata = checkpoint.about
    if not model.matches_model_digest(str(metadata.get("model_hash", ""))):
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} in {run_uri} is of another model than "
            "model.uri; give the model that the run was started with"
        )
    if metadata.get("strategy", strategy) != strategy:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} in {run_uri} was saved with train.strategy="
            f"{metadata['strategy']}, and this is {strategy}; resume with that"
        )
