"""Which class images there should be, and which chunks are missing. Pure."""

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any

from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.data.prior_set import PriorImageRecord, PriorSelection
from dreambooth_ray.errors import DataError
from dreambooth_ray.objective.address import seed_of

# A model that keeps generating the same image is given up after this many times the count.
MAX_GENERATED_RATIO = 4
# What stands for the parameters of images that were not sampled.
_NOT_SAMPLED = {"solver": "", "num_inference_steps": 0, "guidance_scale": 0.0}


@dataclass(frozen=True)
class PriorSpec:
    """All that image i of a set depends on, besides i.

    prompts take turns: image i is of prompt i mod their number. chunk_size counts: a
    image's last bits depend on how many are generated at once, so the unit of work is a chunk
    of fixed indices, whichever actor generates it. folder_digest stands for a person's own images,
    which are taken instead of generated ones; "" for none. Those have no params.
    """

    model_hash: str
    prompts: tuple[str, ...]
    params: SamplingParams | None
    size_px: int
    seed: int
    chunk_size: int
    folder_digest: str = ""

    def as_json(self) -> dict[str, Any]:
        """To store, and to make the digest of."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "params"}
        return values | (self.params.identity_values() if self.params else _NOT_SAMPLED)

    @property
    def digest(self) -> str:
        """Name of the set: equal specifications share one, across runs and subjects."""
        text = json.dumps(self.as_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def image_seed(self, index: int) -> int:
        """Seed of class image `index`."""
        return seed_of(self.seed, "prior", index)

    def indices(self, number: int) -> range:
        """Image indices of a chunk."""
        return range(number * self.chunk_size, (number + 1) * self.chunk_size)


def select_records(spec: PriorSpec, records: dict[int, list[PriorImageRecord]]) -> PriorSelection:
    """The images that count, of the chunks committed without a gap from the first."""
    # Which image is the n-th depends on all before it: blanks and doubles give way to later ones.
    # Beyond a gap that is not known yet. So any number of actors, in any order, makes one set.
    selection = PriorSelection(accept_all=bool(spec.folder_digest))
    while selection.num_chunks in records:
        selection.extend(records[selection.num_chunks])
    return selection


def missing_chunks(
    spec: PriorSpec, count: int, records: dict[int, list[PriorImageRecord]]
) -> list[int]:
    """Chunks to generate, in order, until `count` images count.

    raises: DataError if the model generates only images that it has generated before
    """
    selection = select_records(spec, records)
    lacking = count - len(selection.accepted)
    if lacking <= 0:
        return []
    max_num_chunks = -(-count * MAX_GENERATED_RATIO // spec.chunk_size)
    if selection.num_chunks >= max_num_chunks:
        raise DataError(
            f"only {len(selection.accepted)} of {count} class images can be told apart after "
            f"{selection.num_chunks * spec.chunk_size} were generated of {spec.prompts}; choose "
            "another prior.prompt, more prior.num_inference_steps, or a smaller prior.count"
        )
    # Chunks beyond a gap may turn out to count whole, and so may those not generated yet.
    last = selection.num_chunks + -(-lacking // spec.chunk_size)
    return [n for n in range(selection.num_chunks, last) if n not in records]
