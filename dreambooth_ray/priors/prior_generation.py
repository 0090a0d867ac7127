"""Generates the missing class images of a set with a pool of Ray actors."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from dreambooth_ray.actor_pool import ActorPool, PoolWords
from dreambooth_ray.config.allocator import worker_environment
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.config.prior import PriorConfig
from dreambooth_ray.data.prior_set import PriorImageRecord, read_chunk_records
from dreambooth_ray.errors import CapacityError, CheckpointError
from dreambooth_ray.priors.prior_spec import PriorSpec, missing_chunks, select_counted_images
from dreambooth_ray.priors.prior_worker_actor import PriorWorkerActor
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store, get_storage_options

_WORDS = PoolWords(
    "class-image",
    when_memory_runs_out="lower prior.actors or prior.batch_size",
    when_room_is_short="lower prior.actors, ask for less by prior.num_cpus, prior.num_gpus or "
    "prior.resources, or raise cluster.wait_s",
)
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class PriorSetRequest:
    """The set of class images to generate, and how many images of it.

    images(number): PNG files of a chunk, for sets of a person's own images
    stop:             set from another thread to end early
    """

    spec: PriorSpec
    count: int
    directory: Path
    images: Callable[[int], list[bytes]] | None = None
    stop: threading.Event = field(default_factory=threading.Event)


def read_committed_chunks(store: Store) -> dict[int, list[PriorImageRecord]]:
    """Records of every intact chunk of a set; damaged ones are removed, to be generated again."""
    records_by_chunk = {}
    for file_name in store.names():
        chunk_number = paths.parse_prior_chunk_number(file_name)
        if chunk_number is None:
            continue
        if manifest.find_damage(store, paths.prior_chunk_artifact(chunk_number)):
            manifest.remove_artifact(store, paths.prior_chunk_artifact(chunk_number))
            continue
        try:
            records_by_chunk[chunk_number] = read_chunk_records(store, chunk_number)
        except CheckpointError:
            continue
    return records_by_chunk


def open_prior_set(store: Store, spec: PriorSpec) -> Store:
    """The set's own store, with its specification written down."""
    set_store = store.sub(paths.prior_set(spec.digest))
    set_store.create(paths.PRIOR_SPEC, json.dumps(spec.as_json(), indent=1).encode())
    return set_store


def generate_priors(
    request: PriorSetRequest,
    store: Store,
    prior_config: PriorConfig,
    cluster: ClusterConfig,
    on_progress: OnProgress,
) -> Store:
    """Generate what is missing until `request.count` images of a set count; returns its store.

    on_progress(done, total) is called in images. Actors that die are replaced and their
    chunk generated again: the images are the same.
    raises: DreamBoothError if chunks keep failing, CapacityError if too few actors start in time,
        DataError if the model repeats itself
    """
    spec, set_store = request.spec, open_prior_set(store, request.spec)
    records_by_chunk = read_committed_chunks(set_store)
    pending_chunks = missing_chunks(spec, request.count, records_by_chunk)
    if not pending_chunks:
        return set_store

    def report_progress() -> None:
        num_missing_images = sum(
            select_counted_images(spec, records_by_chunk).count_missing_images(request.count)
        )
        on_progress(request.count - num_missing_images, request.count)

    def start_chunk_generation(actor: Any, number: int) -> Any:
        return actor.generate.remote(number, request.images(number) if request.images else None)

    report_progress()
    _check_gpus(prior_config, cluster)
    create_actor = _make_actor_factory(request, set_store, prior_config, cluster.gpus)
    actor_pool = ActorPool[list[PriorImageRecord]](
        create_actor, prior_config.span, len(pending_chunks), cluster.wait_s, _WORDS
    )
    try:
        while pending_chunks and not request.stop.is_set():
            for number, chunk_records in actor_pool.process_chunks(
                pending_chunks, start_chunk_generation
            ):
                records_by_chunk[number] = chunk_records
                report_progress()
            pending_chunks = missing_chunks(spec, request.count, records_by_chunk)
    finally:
        actor_pool.close()
    return set_store


def cluster_has_room(prior_config: PriorConfig, cluster: ClusterConfig) -> bool:
    """Whether the cluster has room now for the fewest actors and all training workers."""
    free_resources, min_actors, max_workers = (
        ray.available_resources(),
        prior_config.span.min,
        cluster.span.max,
    )
    needed_cpus = min_actors * prior_config.num_cpus + max_workers
    needed_gpus = min_actors * _gpus_per_actor(prior_config, cluster.gpus) + (
        max_workers if cluster.gpus else 0
    )
    return bool(
        free_resources.get("CPU", 0) >= needed_cpus and free_resources.get("GPU", 0) >= needed_gpus
    )


def _check_gpus(prior_config: PriorConfig, cluster: ClusterConfig) -> None:
    """raises: CapacityError if an actor asks for more of a GPU than a machine of its own has"""
    gpus_per_actor = _gpus_per_actor(prior_config, cluster.gpus)
    num_gpus_present = ray.cluster_resources().get("GPU", 0.0)
    if cluster.ray_address is None and gpus_per_actor > num_gpus_present:
        raise CapacityError(
            f"a class-image actor asks for {gpus_per_actor:g} GPUs and this machine has "
            f"{num_gpus_present:g}; set prior.num_gpus=0, or cluster.address to a cluster that has "
            "them"
        )


def _gpus_per_actor(prior_config: PriorConfig, gpu: bool) -> float:
    return prior_config.num_gpus if prior_config.num_gpus is not None else float(gpu)


def _make_actor_factory(
    request: PriorSetRequest, set_store: Store, prior_config: PriorConfig, gpu: bool
) -> Callable[[], Any]:
    gpus_per_actor = _gpus_per_actor(prior_config, gpu)
    actor_class = ray.remote(
        num_cpus=prior_config.num_cpus,
        num_gpus=gpus_per_actor,
        resources=prior_config.resources or None,
        runtime_env=worker_environment(),
    )(PriorWorkerActor)

    def create_actor() -> Any:
        model_directory, storage_options = str(request.directory), get_storage_options()
        return actor_class.remote(
            model_directory, set_store.uri, request.spec, gpus_per_actor > 0, storage_options
        )

    return create_actor
