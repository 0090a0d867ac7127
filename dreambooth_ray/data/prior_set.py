"""A set of class images in storage: which of its images count, and their posteriors.

A set is a folder of committed chunks of fixed indices. Each chunk holds the images as
PNG, their VAE posteriors, and a record of each. Blank images and near-duplicates are
passed over for the next index, so which image is the n-th follows from the records alone.

Legend: n images, F orientations (as is, mirrored), C latent channels, h, w latent sides.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from safetensors.torch import load as load_tensors
from torch import Tensor

from dreambooth_ray.data.image_hash import distance
from dreambooth_ray.errors import CheckpointError, DreamBoothError
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store

POSTERIOR = "posterior.safetensors"
NEAR_BITS = 6
_CACHED_CHUNKS = 64


@dataclass(frozen=True)
class Record:
    """One image of a chunk. caption: index into the set's captions."""

    index: int
    fingerprint: int
    blank: bool
    caption: int

    def to_json(self) -> dict[str, object]:
        """For the chunk's manifest."""
        bits = f"{self.fingerprint:064x}"
        return {
            "index": self.index, "fingerprint": bits, "blank": self.blank, "caption": self.caption,
        }  # fmt: skip

    @classmethod
    def from_json(cls, row: dict[str, object]) -> "Record":
        """Back from a manifest."""
        return cls(
            int(str(row["index"])), int(str(row["fingerprint"]), 16), bool(row["blank"]),
            int(str(row["caption"])),
        )  # fmt: skip


def read_records(store: Store, number: int) -> list[Record]:
    """Records of a committed chunk; raises CheckpointError if it is not, or damaged."""
    rows = manifest.about(store, paths.prior_chunk(number))["records"]
    if not isinstance(rows, list):
        raise CheckpointError(f"{store.uri}/{paths.prior_chunk(number)} has no records")
    return [Record.from_json(row) for row in rows]


class Selection:
    """The images that count, in order: neither blank nor nearly one before.

    every: take all, as a person's own images are
    """

    def __init__(self, every: bool = False) -> None:
        self._every = every
        self.taken: list[Record] = []
        self.refused: list[Record] = []
        self.chunks = 0

    def extend(self, records: list[Record]) -> None:
        """Take the next chunk's records, which must come in order."""
        for record in records:
            alike = any(
                distance(record.fingerprint, other.fingerprint) <= NEAR_BITS for other in self.taken
            )
            good = self._every or not (record.blank or alike)
            (self.taken if good else self.refused).append(record)
        self.chunks += 1


class PriorSet:
    """Reads a set that may still be growing; an image not there yet is waited for."""

    def __init__(
        self,
        store: Store,
        count: int,
        failure: Callable[[], str | None] = lambda: None,
        poll_s: float | None = None,
    ) -> None:
        """count: images to use; failure(): why no more will come, if so.

        raises: CheckpointError if there is no set
        """
        self._store, self.count, self._failure = store, count, failure
        self._poll_s = poll_s or (0.05 if store.is_local else 1.0)
        try:
            about = json.loads(store.read(paths.PRIOR_SPEC))
        except FileNotFoundError as error:
            raise CheckpointError(f"{store.uri} is not a set of class images") from error
        self.captions: list[str] = list(about["prompts"])
        self._chunk_size = int(about["chunk_size"])
        self._selection = Selection(every=bool(about.get("folder_digest")))
        self._posteriors: dict[int, Tensor] = {}

    def posterior(self, place: int) -> Tensor:
        """(F, 2, C, h, w) scaled mean and std of the image that is number `place`.

        raises: DreamBoothError if it will not come
        """
        record = self._record(place)
        number = record.index // self._chunk_size
        if number not in self._posteriors:
            if len(self._posteriors) >= _CACHED_CHUNKS:
                self._posteriors.pop(next(iter(self._posteriors)))
            data = manifest.read(self._store, paths.prior_chunk(number), POSTERIOR)
            self._posteriors[number] = load_tensors(data)["posterior"]
        return self._posteriors[number][record.index % self._chunk_size]

    def caption(self, place: int) -> int:
        """Which of `captions` the image was drawn from."""
        return self._record(place).caption

    def _record(self, place: int) -> Record:
        while len(self._selection.taken) <= place:
            self._wait(self._selection.chunks)
            self._selection.extend(read_records(self._store, self._selection.chunks))
        return self._selection.taken[place]

    def _wait(self, number: int) -> None:
        while not self._store.exists(f"{paths.prior_chunk(number)}.json"):
            why = self._failure()
            if why is not None:
                raise DreamBoothError(f"no more class images come to {self._store.uri}: {why}")
            time.sleep(self._poll_s)
