"""Which class images there should be, and which chunks are missing. Pure."""

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any

from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.data.image_shapes import ImageShape
from dreambooth_ray.data.prior_set import PriorImageRecord, PriorSelection
from dreambooth_ray.errors import DataError
from dreambooth_ray.objective.seed_derivation import derive_seed

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
    which are taken instead of generated ones; "" for none. Those have no params. Widths and heights
    in `shapes` take turns, a chunk each; without any, all images are squares of size_px.
    """

    model_hash: str
    prompts: tuple[str, ...]
    params: SamplingParams | None
    size_px: int
    seed: int
    chunk_size: int
    folder_digest: str = ""
    shapes: tuple[tuple[int, int], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """To store, and to make the digest of."""
        spec_values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "params"}
        if not self.shapes:
            # Sets keep the names they had before there were shapes.
            del spec_values["shapes"]
        return spec_values | (self.params.identity_values() if self.params else _NOT_SAMPLED)

    @property
    def digest(self) -> str:
        """Name of the set: equal specifications share one, across runs and subjects."""
        spec_json = json.dumps(self.as_json(), sort_keys=True)
        return hashlib.sha256(spec_json.encode()).hexdigest()[:24]

    def image_seed(self, index: int) -> int:
        """Seed of class image `index`."""
        return derive_seed(self.seed, "prior", index)

    def image_indices(self, number: int) -> range:
        """Image indices of a chunk."""
        return range(number * self.chunk_size, (number + 1) * self.chunk_size)

    @property
    def num_shapes(self) -> int:
        """In how many shapes its images are."""
        return max(1, len(self.shapes))

    def chunk_shape(self, number: int) -> ImageShape:
        """Of the images of a chunk."""
        image_shapes = self.shapes or ((self.size_px, self.size_px),)
        return ImageShape(*image_shapes[number % len(image_shapes)])

    def list_chunk_image_positions(self, number: int) -> range:
        """Which images of a set a chunk holds, where none is passed over: of its shape, in turns.

        Without shapes, its indices.
        """
        shape_turn, shape_index = divmod(number, self.num_shapes)
        first_image_position = shape_turn * self.chunk_size * self.num_shapes + shape_index
        return range(
            first_image_position,
            first_image_position + self.chunk_size * self.num_shapes,
            self.num_shapes,
        )


def select_counted_images(
    spec: PriorSpec, records: dict[int, list[PriorImageRecord]]
) -> PriorSelection:
    """The images that count, of the chunks committed without a gap from the first."""
    # Which image is the n-th depends on all before it: blanks and doubles give way to later ones.
    # Beyond a gap that is not known yet. So any number of actors, in any order, makes one set.
    prior_selection = PriorSelection(bool(spec.folder_digest), spec.num_shapes)
    while prior_selection.num_chunks in records:
        prior_selection.extend(records[prior_selection.num_chunks])
    return prior_selection


def missing_chunks(
    spec: PriorSpec, count: int, records: dict[int, list[PriorImageRecord]]
) -> list[int]:
    """Chunks to generate, in order, until `count` images count.

    raises: DataError if the model generates only images that it has generated before
    """
    prior_selection = select_counted_images(spec, records)
    num_missing_by_shape = prior_selection.count_missing_images(count)
    if not any(num_missing_by_shape):
        return []
    max_images_per_shape = -(-count // spec.num_shapes)
    max_chunks_per_shape = -(-max_images_per_shape * MAX_GENERATED_RATIO // spec.chunk_size)
    if prior_selection.num_chunks >= max_chunks_per_shape * spec.num_shapes:
        raise DataError(
            f"only {count - sum(num_missing_by_shape)} of {count} class images can be told apart "
            f"after {prior_selection.num_chunks * spec.chunk_size} were generated of "
            f"{spec.prompts}; choose another prior.prompt, more prior.num_inference_steps, or a "
            "smaller prior.count"
        )
    # Chunks beyond a gap may turn out to count whole, and so may those not generated yet.
    # Those of one shape may be there before those of another: then the latter come with its turns.
    first_missing_chunk, chunk_numbers = prior_selection.num_chunks, list[int]()
    for shape_index, num_missing_images in enumerate(num_missing_by_shape):
        next_chunk_of_shape = (
            first_missing_chunk + (shape_index - first_missing_chunk) % spec.num_shapes
        )
        num_missing_chunks = -(-num_missing_images // spec.chunk_size)
        chunk_numbers += range(
            next_chunk_of_shape,
            next_chunk_of_shape + num_missing_chunks * spec.num_shapes,
            spec.num_shapes,
        )
    return [n for n in range(first_missing_chunk, max(chunk_numbers) + 1) if n not in records]
