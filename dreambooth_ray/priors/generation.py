"""A pool of Ray actors that draws what a set of class images still lacks."""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray

from dreambooth_ray.config.allocator import worker_environment
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.config.schema import PriorConfig
from dreambooth_ray.data.prior_set import Record, read_records
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.priors.actor_pool import ActorPool
from dreambooth_ray.priors.prior_spec import PriorSpec, missing, select
from dreambooth_ray.priors.worker_actor import PriorWorkerActor
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store, given_options

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class PriorRequest:
    """Which set is wanted, and how much of it.

    images(number): PNG files of a chunk, for sets of a person's own images
    stop:             set from another thread to end early
    """

    spec: PriorSpec
    count: int
    directory: Path
    images: Callable[[int], list[bytes]] | None = None
    stop: threading.Event = field(default_factory=threading.Event)


def committed_chunks(store: Store) -> dict[int, list[Record]]:
    """Records of every intact chunk of a set; damaged ones are removed, to be drawn again."""
    found = {}
    for name in store.names():
        number = paths.prior_chunk_number(name)
        if number is None:
            continue
        if manifest.damage(store, paths.prior_chunk(number)):
            manifest.discard(store, paths.prior_chunk(number))
            continue
        try:
            found[number] = read_records(store, number)
        except CheckpointError:
            continue
    return found


def open_set(store: Store, spec: PriorSpec) -> Store:
    """The set's own store, with its specification written down."""
    set_store = store.sub(paths.prior_set(spec.digest))
    set_store.create(paths.PRIOR_SPEC, json.dumps(asdict(spec), indent=1).encode())
    return set_store


def make_priors(
    order: PriorRequest,
    store: Store,
    wanted: PriorConfig,
    cluster: ClusterConfig,
    on_progress: OnProgress,
) -> Store:
    """Draw what is missing until `order.count` images of a set count; returns its store.

    on_progress(done, total) is called in images. Actors that die are replaced and their
    chunk drawn again: the images are the same.
    raises: DreamBoothError if chunks keep failing, CapacityError if too few actors start in time,
        DataError if the model repeats itself
    """
    spec, set_store = order.spec, open_set(store, order.spec)
    records = committed_chunks(set_store)
    todo = missing(spec, order.count, records)
    if not todo:
        return set_store

    def tell() -> None:
        on_progress(min(len(select(spec, records).taken), order.count), order.count)

    tell()
    make = _maker(order, set_store, wanted, cluster.gpus)
    crew = ActorPool(make, wanted.span, len(todo), cluster.wait_s)
    try:
        while todo and not order.stop.is_set():
            for number, drawn in crew.work(todo, order.images):
                records[number] = drawn
                tell()
            todo = missing(spec, order.count, records)
    finally:
        crew.dismiss()
    return set_store


def has_room(wanted: PriorConfig, cluster: ClusterConfig) -> bool:
    """Whether the least number of actors and all training workers find a place now, at once."""
    free, least, workers = ray.available_resources(), wanted.span.min, cluster.span.max
    cpus = least * wanted.num_cpus + workers
    gpus = least * _num_gpus(wanted, cluster.gpus) + (workers if cluster.gpus else 0)
    return bool(free.get("CPU", 0) >= cpus and free.get("GPU", 0) >= gpus)


def _num_gpus(wanted: PriorConfig, gpu: bool) -> float:
    return wanted.num_gpus if wanted.num_gpus is not None else float(gpu)


def _maker(
    order: PriorRequest, set_store: Store, wanted: PriorConfig, gpu: bool
) -> Callable[[], Any]:
    num_gpus = _num_gpus(wanted, gpu)
    remote = ray.remote(
        num_cpus=wanted.num_cpus,
        num_gpus=num_gpus,
        resources=wanted.resources or None,
        runtime_env=worker_environment(),
    )(PriorWorkerActor)

    def make() -> Any:
        directory, options = str(order.directory), given_options()
        return remote.remote(directory, set_store.uri, order.spec, num_gpus > 0, options)

    return make
