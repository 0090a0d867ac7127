"""Which class images there should be, and which chunks are still to draw. Pure."""

import hashlib
import json
from dataclasses import asdict, dataclass

from dreambooth_ray.data.prior_set import Record, Selection
from dreambooth_ray.errors import DataError

# A model that keeps drawing the same image is given up on after so many times the count.
MOST_TIMES = 4


@dataclass(frozen=True)
class PriorSpec:
    """All that image i of a set depends on, besides i.

    prompts take turns: image i is of prompt i mod their number. chunk_size counts: a
    image's last bits depend on how many are drawn at once, so the unit of work is a chunk
    of fixed indices, whoever draws it. folder_digest stands for a person's own images,
    which are taken instead of drawn; "" for none.
    """

    model_hash: str
    prompts: tuple[str, ...]
    solver: str
    num_inference_steps: int
    guidance_scale: float
    size_px: int
    seed: int
    chunk_size: int
    folder_digest: str = ""

    @property
    def digest(self) -> str:
        """Name of the set: equal specifications share one, across runs and subjects."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def image_seed(self, index: int) -> int:
        """Seed of class image `index`."""
        key = hashlib.blake2b(f"{self.seed}/prior/{index}".encode(), digest_size=8).digest()
        return int.from_bytes(key, "little") >> 1

    def indices(self, number: int) -> range:
        """Image indices of a chunk."""
        return range(number * self.chunk_size, (number + 1) * self.chunk_size)


def select(spec: PriorSpec, records: dict[int, list[Record]]) -> Selection:
    """The images that count among the chunks committed without a gap from the first."""
    selection = Selection(every=bool(spec.folder_digest))
    while selection.chunks in records:
        selection.extend(records[selection.chunks])
    return selection


def missing(spec: PriorSpec, count: int, records: dict[int, list[Record]]) -> list[int]:
    """Chunks to draw, first first, until `count` images count: wanted minus committed.

    raises: DataError if the model draws nothing but what it has drawn before
    """
    selection = select(spec, records)
    lacking = count - len(selection.taken)
    if lacking <= 0:
        return []
    most = -(-count * MOST_TIMES // spec.chunk_size)
    if selection.chunks >= most:
        raise DataError(
            f"only {len(selection.taken)} of {count} class images can be told apart after "
            f"{selection.chunks * spec.chunk_size} were drawn of {spec.prompts}; choose another "
            "prior.prompt, more prior.num_inference_steps, or a smaller prior.count"
        )
    # Chunks beyond a gap may turn out to count whole, and so may those not drawn yet.
    last = selection.chunks + -(-lacking // spec.chunk_size)
    return [n for n in range(selection.chunks, last) if n not in records]
