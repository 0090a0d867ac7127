"""The sets of class images that a storage holds: what they are, who uses them, what is waste."""

import json
from dataclasses import dataclass

from dreambooth_ray.errors import CheckpointError, ConfigError
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store


@dataclass(frozen=True)
class SetInfo:
    """One set. images: images in its committed chunks, blanks and doubles included."""

    digest: str
    prompts: tuple[str, ...]
    images: int
    size_bytes: int
    runs: tuple[str, ...]


def list_sets(store: Store) -> list[SetInfo]:
    """Every set of a storage, with the runs that draw on it."""
    users: dict[str, list[str]] = {}
    for run_id in store.names("runs"):
        use = f"{paths.run(run_id)}/{paths.PRIOR_USE}"
        if store.exists(use):
            users.setdefault(str(json.loads(store.read(use))["set"]), []).append(run_id)
    return [_info(store, digest, users.get(digest, [])) for digest in store.names(paths.PRIORS)]


def _info(store: Store, digest: str, runs: list[str]) -> SetInfo:
    folder = store.sub(paths.prior_set(digest))
    prompts: tuple[str, ...] = ()
    if folder.exists(paths.PRIOR_SPEC):
        prompts = tuple(json.loads(folder.read(paths.PRIOR_SPEC))["prompts"])
    images = size_bytes = 0
    for number in _chunks(folder):
        try:
            rows = manifest.about(folder, paths.prior_chunk(number))["records"]
            images += len(rows) if isinstance(rows, list) else 0
            size_bytes += manifest.size_bytes(folder, paths.prior_chunk(number))
        except CheckpointError:
            continue
    return SetInfo(digest, prompts, images, size_bytes, tuple(runs))


def _chunks(folder: Store) -> list[int]:
    numbers = (paths.prior_chunk_number(name) for name in folder.names())
    return sorted(n for n in numbers if n is not None)


def verify(store: Store, digest: str) -> list[str]:
    """What is wrong with a set, chunk by chunk; empty if every byte is as committed.

    raises: ConfigError if there is no such set
    """
    folder = store.sub(paths.prior_set(digest))
    if not folder.exists(paths.PRIOR_SPEC):
        raise ConfigError(
            f"{store.uri} has no set {digest!r}; `dreambooth priors list` shows those there are"
        )
    found = (manifest.damage(folder, paths.prior_chunk(n)) for n in _chunks(folder))
    return [problem for problem in found if problem]


def waste(store: Store) -> list[str]:
    """Names below the storage that nothing needs: sets of no run, folders of no pointer."""
    names = []
    for info in list_sets(store):
        root = paths.prior_set(info.digest)
        if not info.runs:
            names.append(root)
            continue
        folder = store.sub(root)
        kept = {manifest.folder_of(folder, paths.prior_chunk(n)) for n in _chunks(folder)}
        names += [
            f"{root}/{name}"
            for name in folder.names()
            if name.startswith("chunk-") and not name.endswith(".json") and name not in kept
        ]
    return names
