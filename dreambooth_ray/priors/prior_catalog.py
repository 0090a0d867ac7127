"""The sets of class images in a storage: their contents, the runs that use them."""

import json
from contextlib import suppress
from dataclasses import dataclass

from dreambooth_ray.errors import CheckpointError, ConfigError
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store


@dataclass(frozen=True)
class PriorSetInfo:
    """One set. images: images in its committed chunks, blanks and doubles included."""

    digest: str
    prompts: tuple[str, ...]
    images: int
    size_bytes: int
    runs: tuple[str, ...]


def list_sets(store: Store) -> list[PriorSetInfo]:
    """Every set of a storage, with the runs that use it."""
    runs_by_set: dict[str, list[str]] = {}
    for run_id in store.names("runs"):
        with suppress(FileNotFoundError):
            prior_use = json.loads(store.read(f"{paths.run(run_id)}/{paths.PRIOR_USE}"))
            runs_by_set.setdefault(str(prior_use["set"]), []).append(run_id)
    return [
        _load_info(store, digest, runs_by_set.get(digest, []))
        for digest in store.names(paths.PRIORS)
    ]


def _load_info(store: Store, digest: str, runs: list[str]) -> PriorSetInfo:
    set_store = store.sub(paths.prior_set(digest))
    prompts: tuple[str, ...] = ()
    if set_store.exists(paths.PRIOR_SPEC):
        prompts = tuple(json.loads(set_store.read(paths.PRIOR_SPEC))["prompts"])
    num_images = size_bytes = 0
    for chunk_number in _chunk_numbers(set_store):
        try:
            records = manifest.read_artifact_metadata(set_store, paths.prior_chunk(chunk_number))[
                "records"
            ]
            num_images += len(records) if isinstance(records, list) else 0
            size_bytes += manifest.artifact_size_bytes(set_store, paths.prior_chunk(chunk_number))
        except CheckpointError:
            continue
    return PriorSetInfo(digest, prompts, num_images, size_bytes, tuple(runs))


def _chunk_numbers(set_store: Store) -> list[int]:
    numbers = (paths.prior_chunk_number(name) for name in set_store.names())
    return sorted(n for n in numbers if n is not None)


def verify_set(store: Store, digest: str) -> list[str]:
    """What is wrong with a set, chunk by chunk; empty if every byte is as committed.

    raises: ConfigError if there is no such set
    """
    set_store = store.sub(paths.prior_set(digest))
    if not set_store.exists(paths.PRIOR_SPEC):
        raise ConfigError(
            f"{store.uri} has no set {digest!r}; `dreambooth priors list` shows those there are"
        )
    problems = (
        manifest.find_damage(set_store, paths.prior_chunk(n)) for n in _chunk_numbers(set_store)
    )
    return [problem for problem in problems if problem]
