"""Subjects that are put into the queue of a storage, in tests."""

from pathlib import Path

from cluster.fleet_plan import FleetConfig
from cluster.fleet_store import FleetStore, add_subjects

LORA = [
    "train.method=lora", "train.text_encoder=false", "prior.count=0", "train.resolution=64",
    "train.steps=2", "sample.every=0", "cluster.workers=1",
]  # fmt: skip


class Added:
    """Subjects with photographs, added to a storage."""

    def __init__(self, folder: Path, model: Path, photos: Path) -> None:
        self._folder, self._photos = folder, photos
        self.storage = str(folder / "out")
        self._overrides = [f"model.uri={model}", f"storage.uri={self.storage}", *LORA]
        self.lines: list[str] = []

    def add(self, *subjects: dict[str, object], overrides: tuple[str, ...] = ()) -> None:
        fleet = {
            "recipe": "toy-robot",
            "overrides": [*self._overrides, *overrides],
            "subjects": [
                {"photos": str(self._photos), "class_noun": "robot", **subject}
                for subject in subjects
            ],
        }
        add_subjects(FleetConfig.model_validate(fleet), self.lines.append)

    @property
    def store(self) -> FleetStore:
        return FleetStore(self.storage)

    @property
    def waiting(self) -> list[str]:
        return [mark.id for _, mark in self.store.list_unfinished_works("waiting")]
