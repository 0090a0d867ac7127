"""What a run is trained on, as its folder remembers it: hashes of photographs, and captions."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dreambooth_ray.data.masks import find_mask
from dreambooth_ray.data.subject import Photograph
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.manifest import file_hash
from dreambooth_ray.storage.store import Store


@dataclass(frozen=True)
class PhotographRecord:
    """sha256: of the file; caption: its own, "" where it has the configuration's."""

    name: str
    sha256: str
    caption: str


@dataclass(frozen=True)
class RunInputs:
    """photographs: of each subject, in order; class_images: digest of prior.folder's, "" without.

    model: the directory of the model that is fine-tuned; where it lies is not remembered
    pins: what each model that the configuration names on the hub was when the run began, by what
        it is called there: OWNER/NAME@COMMIT
    """

    photographs: tuple[tuple[PhotographRecord, ...], ...]
    class_images: str
    model: Path
    pins: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """As stored in a run."""
        subject_records = [[asdict(record) for record in records] for records in self.photographs]
        inputs_record: dict[str, object] = {
            "photographs": subject_records,
            "class_images": self.class_images,
        }
        if self.pins:
            inputs_record["models"] = dict(self.pins)
        return json.dumps(inputs_record, indent=1).encode()

    def describe_differences(self, stored: bytes) -> list[str]:
        """What is no longer as `to_json` wrote it, each in words that begin with its key."""
        stored_inputs = json.loads(stored)
        stored_photographs = [
            tuple(PhotographRecord(**record) for record in records)
            for records in stored_inputs["photographs"]
        ]
        # Another number of subjects is a change of the configuration, which says so itself.
        stored_and_current = zip(stored_photographs, self.photographs, strict=False)
        input_differences = [
            change_text
            for before, now in stored_and_current
            if (change_text := _describe_photograph_changes(before, now))
        ]
        # Another folder, or none, likewise.
        if stored_inputs["class_images"] and self.class_images not in (
            "",
            stored_inputs["class_images"],
        ):
            input_differences.append("prior.folder: its class photographs are others than before")
        input_differences += [
            f"model.uri: {name!r} is {self.pins[name]} now, and the run was started with {pin}"
            for name, pin in stored_inputs.get("models", {}).items()
            if self.pins.get(name, pin) != pin
        ]
        return input_differences


def read_model_pins(run: Store) -> dict[str, str]:
    """What the models of a run were pinned to at its first start; empty for one that has not begun.

    raises: StorageError
    """
    try:
        model_pins = json.loads(run.read(paths.INPUTS, patience_s=0)).get("models", {})
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {str(name): str(pin) for name, pin in model_pins.items()}


def record_photographs(
    photographs: Sequence[Photograph], default_captions: tuple[str, ...]
) -> tuple[PhotographRecord, ...]:
    """Records of a subject's photographs; default_captions: of those that have none of their own"""
    return tuple(
        PhotographRecord(
            photograph.path.name,
            _hash_photograph(photograph),
            "" if (photograph.own_caption,) == default_captions else photograph.own_caption,
        )
        for photograph in photographs
    )


def _hash_photograph(photograph: Photograph) -> str:
    """Of its file; where a mask beside it is used, of both."""
    mask_path = find_mask(photograph.path) if photograph.mask is not None else None
    return digest_files([photograph.path, mask_path]) if mask_path else file_hash(photograph.path)


def digest_files(paths: Sequence[Path]) -> str:
    """SHA-256 over the contents of files, in order."""
    return hashlib.sha256("".join(map(file_hash, paths)).encode()).hexdigest()


def _describe_photograph_changes(
    before: tuple[PhotographRecord, ...], now: tuple[PhotographRecord, ...]
) -> str:
    """What training would see otherwise; names do not count, their order does."""
    hashes_and_captions = [
        [(record.sha256, record.caption) for record in records] for records in (before, now)
    ]
    if hashes_and_captions[0] == hashes_and_captions[1]:
        return ""
    file_hash_counts = [Counter(record.sha256 for record in records) for records in (before, now)]
    num_photos_removed = (file_hash_counts[0] - file_hash_counts[1]).total()
    num_photos_added = (file_hash_counts[1] - file_hash_counts[0]).total()
    if num_photos_removed or num_photos_added:
        return (
            f"subject.photos: of {len(before)} photographs {num_photos_removed} are gone or were "
            f"changed, and {num_photos_added} of {len(now)} are new"
        )
    captions_by_hash = {record.sha256: record.caption for record in before}
    recaptioned_names = [
        record.name for record in now if captions_by_hash[record.sha256] != record.caption
    ]
    if recaptioned_names:
        return (
            f"subject.photos: {len(recaptioned_names)} captions are others, "
            f"of {recaptioned_names[0]} for one"
        )
    return "subject.photos: the photographs come in another order, by their names"
