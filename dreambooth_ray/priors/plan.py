"""Which class images there should be, and which are still missing. Pure."""

import hashlib
import json
from dataclasses import asdict, dataclass

from dreambooth_ray.storage import layout

Chunk = tuple[int, ...]


@dataclass(frozen=True)
class PriorSpec:
    """All that image i of a set depends on, besides i.

    chunk_size counts: a picture's last bits depend on how many are drawn at once, so the
    unit of work is a chunk of fixed indices, whoever draws it.
    """

    model_hash: str
    prompt: str
    num_inference_steps: int
    guidance_scale: float
    size_px: int
    seed: int
    chunk_size: int

    @property
    def digest(self) -> str:
        """Name of the set: equal specifications share one, across runs and subjects."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def image_seed(self, index: int) -> int:
        """Seed of class image `index`."""
        key = hashlib.blake2b(f"{self.seed}/prior/{index}".encode(), digest_size=8).digest()
        return int.from_bytes(key, "little") >> 1


def chunks(count: int, chunk_size: int) -> list[Chunk]:
    """Indices 0..count-1 and the rest of the last chunk, in fixed chunks."""
    return [tuple(range(i, i + chunk_size)) for i in range(0, count, chunk_size)]


def missing_chunks(count: int, chunk_size: int, committed: set[str]) -> list[Chunk]:
    """Chunks of which at least one image below `count` is not among the committed names."""
    return [
        chunk
        for chunk in chunks(count, chunk_size)
        if any(layout.prior_image(i) not in committed for i in chunk if i < count)
    ]
