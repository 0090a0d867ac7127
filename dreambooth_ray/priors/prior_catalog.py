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


def list_prior_sets(store: Store) -> list[PriorSetInfo]:
    """Every set of a storage, with the runs that use it."""
    runs_by_set: dict[str, list[str]] = {}
    for run_id in store.names("runs"):
        with suppress(FileNotFoundError):
            prior_use = json.loads(store.read(f"{paths.run(run_id)}/{paths.PRIOR_USE}"))
            runs_by_set.setdefault(str(prior_use["set"]), []).append(run_id)
    return [
        _read_set_info(store, set_digest, runs_by_set.get(set_digest, []))
        for set_digest in store.names(paths.PRIORS)
    ]


def _read_set_info(store: Store, digest: str, runs: list[str]) -> PriorSetInfo:
    set_store = store.sub(paths.prior_set(digest))
    prompts: tuple[str, ...] = ()
    if set_store.exists(paths.PRIOR_SPEC):
        prompts = tuple(json.loads(set_store.read(paths.PRIOR_SPEC))["prompts"])
    num_images = size_bytes = 0
    for chunk_number in _list_chunk_numbers(set_store):
        try:
            image_records = manifest.read_artifact_metadata(
                set_store, paths.prior_chunk_artifact(chunk_number)
            )["records"]
            num_images += len(image_records) if isinstance(image_records, list) else 0
            size_bytes += manifest.artifact_size_bytes(
                set_store, paths.prior_chunk_artifact(chunk_number)
            )
        except CheckpointError:
            continue
    return PriorSetInfo(digest, prompts, num_images, size_bytes, tuple(runs))


def _list_chunk_numbers(set_store: Store) -> list[int]:
    chunk_numbers = (paths.parse_prior_chunk_number(file_name) for file_name in set_store.names())
    return sorted(n for n in chunk_numbers if n is not None)


def verify_prior_set(store: Store, digest: str) -> list[str]:
    """What is wrong with a set, chunk by chunk; empty if every byte is as committed.

    raises: ConfigError if there is no such set
    """
    set_store = store.sub(paths.prior_set(digest))
    if not set_store.exists(paths.PRIOR_SPEC):
        raise ConfigError(
            f"{store.uri} has no set {digest!r}; `dreambooth priors list` shows those there are"
        )
    chunk_damages = (
        manifest.find_damage(set_store, paths.prior_chunk_artifact(n))
        for n in _list_chunk_numbers(set_store)
    )
    return [chunk_damage for chunk_damage in chunk_damages if chunk_damage]
