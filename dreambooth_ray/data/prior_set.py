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

from dreambooth_ray.data.image_hash import fingerprint_distance
from dreambooth_ray.data.image_shapes import ImageShape
from dreambooth_ray.errors import CheckpointError, DreamBoothError
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store

POSTERIOR = "posterior.safetensors"
NEAR_BITS = 6
_CACHED_CHUNKS = 64
_LONGEST_PAUSE_S = 10.0


@dataclass(frozen=True)
class PriorImageRecord:
    """One image of a chunk. caption_index: index into the set's captions."""

    index: int
    fingerprint: int
    blank: bool
    caption_index: int

    def to_json(self) -> dict[str, object]:
        """The record as a row of the chunk's manifest."""
        fingerprint_hex = f"{self.fingerprint:064x}"
        return {
            "index": self.index, "fingerprint": fingerprint_hex, "blank": self.blank,
            "caption": self.caption_index,
        }  # fmt: skip

    @classmethod
    def from_json(cls, row: dict[str, object]) -> "PriorImageRecord":
        """A record from its row of the manifest."""
        return cls(
            int(str(row["index"])), int(str(row["fingerprint"]), 16), bool(row["blank"]),
            int(str(row["caption"])),
        )  # fmt: skip


def read_chunk_records(store: Store, number: int) -> list[PriorImageRecord]:
    """Records of a committed chunk; raises CheckpointError if it is not, or damaged."""
    record_rows = manifest.read_artifact_metadata(store, paths.prior_chunk_artifact(number))[
        "records"
    ]
    if not isinstance(record_rows, list):
        raise CheckpointError(f"{store.uri}/{paths.prior_chunk_artifact(number)} has no records")
    return [PriorImageRecord.from_json(row) for row in record_rows]


class PriorSelection:
    """The images that count, in order: neither blank nor a near-duplicate of one before.

    accept_all: take all, as a person's own images are
    num_shapes: whose images take turns, a chunk each; so do shapes in the order of a set
    """

    def __init__(self, accept_all: bool = False, num_shapes: int = 1) -> None:
        self._accept_all = accept_all
        self._by_shape: list[list[PriorImageRecord]] = [[] for _ in range(num_shapes)]
        self.accepted: list[PriorImageRecord] = []
        self.rejected: list[PriorImageRecord] = []
        self.num_chunks = 0

    def extend(self, records: list[PriorImageRecord]) -> None:
        """Take the next chunk's records, which must come in order."""
        shape_records = self._by_shape[self.num_chunks % len(self._by_shape)]
        for record in records:
            is_duplicate = any(
                fingerprint_distance(record.fingerprint, other.fingerprint) <= NEAR_BITS
                for other in self.accepted
            )
            is_image_accepted = self._accept_all or not (record.blank or is_duplicate)
            (self.accepted if is_image_accepted else self.rejected).append(record)
            if is_image_accepted:
                shape_records.append(record)
        self.num_chunks += 1

    def find(self, position: int) -> PriorImageRecord | None:
        """The image at a position of the set, each of the next shape; None if it is not there."""
        index_in_shape, shape_index = divmod(position, len(self._by_shape))
        shape_records = self._by_shape[shape_index]
        return shape_records[index_in_shape] if index_in_shape < len(shape_records) else None

    def count_missing_images(self, count: int) -> list[int]:
        """How many of the first `count` positions have no image yet, by shape."""
        num_shapes = len(self._by_shape)
        return [
            max(0, len(range(index, count, num_shapes)) - len(shape_records))
            for index, shape_records in enumerate(self._by_shape)
        ]


class PriorSet:
    """Reads a set that may still be growing; an image not there yet is waited for."""

    def __init__(
        self,
        store: Store,
        count: int,
        failure: Callable[[], str | None] = lambda: None,
        poll_s: float | None = None,
    ) -> None:
        """count: images to use; failure(): why no more will come, or that all have, if so.

        raises: CheckpointError if there is no set
        """
        self._store, self.count, self._failure = store, count, failure
        self._poll_s = poll_s or (0.05 if store.is_local else 1.0)
        try:
            set_spec = json.loads(store.read(paths.PRIOR_SPEC))
        except FileNotFoundError as error:
            raise CheckpointError(f"{store.uri} is not a set of class images") from error
        self.captions: list[str] = list(set_spec["prompts"])
        self._chunk_size = int(set_spec["chunk_size"])
        self.shapes = tuple(ImageShape(*shape) for shape in set_spec.get("shapes", ()))
        self._selection = PriorSelection(
            bool(set_spec.get("folder_digest")), max(1, len(self.shapes))
        )
        self._posteriors: dict[int, Tensor] = {}

    def load_posterior(self, position: int) -> Tensor:
        """(F, 2, C, h, w) scaled mean and std of the image at `position` of the set.

        raises: DreamBoothError if it will not come
        """
        record = self._await_image_record(position)
        chunk_number = record.index // self._chunk_size
        if chunk_number not in self._posteriors:
            if len(self._posteriors) >= _CACHED_CHUNKS:
                self._posteriors.pop(next(iter(self._posteriors)))
            posterior_bytes = manifest.read_artifact_file(
                self._store, paths.prior_chunk_artifact(chunk_number), POSTERIOR
            )
            self._posteriors[chunk_number] = load_tensors(posterior_bytes)["posterior"]
        return self._posteriors[chunk_number][record.index % self._chunk_size]

    def caption_index(self, position: int) -> int:
        """Index into `captions` of the prompt that the image was generated from."""
        return self._await_image_record(position).caption_index

    def _await_image_record(self, position: int) -> PriorImageRecord:
        while (record := self._selection.find(position)) is None:
            self._wait_for_chunk(self._selection.num_chunks)
            self._selection.extend(read_chunk_records(self._store, self._selection.num_chunks))
        return record

    def _wait_for_chunk(self, chunk_number: int) -> None:
        poll_pause_s, pointer = self._poll_s, f"{paths.prior_chunk_artifact(chunk_number)}.json"
        while not self._store.exists(pointer):
            generation_failure = self._failure()
            # It may have come since the look, before the word that all have.
            if generation_failure is not None and not self._store.exists(pointer):
                raise DreamBoothError(
                    f"no more class images come to {self._store.uri}: {generation_failure}"
                )
            time.sleep(poll_pause_s)
            # A look into an object store is charged for.
            poll_pause_s = (
                poll_pause_s if self._store.is_local else min(1.5 * poll_pause_s, _LONGEST_PAUSE_S)
            )
