"""What can go wrong, found before anything is paid for. Each finding names the key to change."""

import platform
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

import requests

from cluster.cluster_registry import ClusterEntry
from cluster.dashboard import TIMEOUT_S, Capacity, Dashboard
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.photographs import find_photographs, read_photograph
from dreambooth_ray.data.quality.inspection import examine
from dreambooth_ray.data.remote_images import photographs_folder
from dreambooth_ray.data.subject import identifier_warning
from dreambooth_ray.errors import ConfigError, DreamBoothError
from dreambooth_ray.memory.training_memory import TrainingFootprint, footprint
from dreambooth_ray.models.model_checks import check_method
from dreambooth_ray.models.source import check_resolution, model_directory
from dreambooth_ray.storage.store import Store

_GIB = 2**30
_BY_ITSELF = "for a cluster that adds them by itself, put autoscaled: true into clusters.yaml"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (fatal) or doubtful, with the key to change."""

    key: str
    text: str
    fatal: bool = True


def preflight(config: Config, entry: ClusterEntry | None = None) -> list[Finding]:
    """Everything that can be told without starting anything; fatal findings first.

    entry: the cluster that the run is meant for; none is this machine
    """
    needed: list[TrainingFootprint] = []
    checks: list[Callable[[], Iterator[Finding]]] = [
        lambda: _photographs(config),
        lambda: _words(config),
        lambda: _model(config, needed),
        lambda: _storage(config, entry),
    ]
    if entry is not None:
        checks += [lambda: _cluster(config, entry, needed), lambda: _image(entry)]
    found = [finding for check in checks for finding in check()]
    return sorted(found, key=lambda finding: not finding.fatal)


def _photographs(config: Config) -> Iterator[Finding]:
    for subject in config.all_subjects:
        try:
            folder = photographs_folder(subject.photos)
            paths = find_photographs(folder)
        except DreamBoothError as error:
            yield Finding("subject.photos", str(error))
            continue
        unreadable = False
        for path in paths:
            try:
                read_photograph(path)
            except DreamBoothError as error:
                unreadable = True
                yield Finding("subject.photos", str(error))
        if not unreadable:
            side_px, word = config.train.resolution, config.word(subject)
            for said in examine(folder, side_px, word, subject.class_noun).findings:
                if said.severity != "note":
                    yield Finding("subject.photos", said.sentence, fatal=False)


def _words(config: Config) -> Iterator[Finding]:
    for subject in config.all_subjects:
        warning = identifier_warning(config.word(subject), subject.class_noun)
        if warning:
            yield Finding("subject.identifier", warning, fatal=False)


def _model(config: Config, needed: list[TrainingFootprint]) -> Iterator[Finding]:
    try:
        directory = model_directory(config.model.uri)
    except DreamBoothError as error:
        yield Finding("model.uri", str(error))
        return
    try:
        check_resolution(directory, config.train.resolution)
        check_method(config, directory)
        needed.append(footprint(config, directory))
    except DreamBoothError as error:
        yield Finding(str(error).split("=", maxsplit=1)[0].split(":")[0], str(error))
    except (OSError, ValueError, KeyError) as error:
        text = f"model.uri={config.model.uri!r} can't be read: {error}; its download is incomplete"
        yield Finding("model.uri", text)


def _storage(config: Config, entry: ClusterEntry | None) -> Iterator[Finding]:
    uri = config.storage.uri
    try:
        store = Store(uri)
        if store.is_local and entry is not None and "//127." not in entry.address:
            text = (
                f"storage.uri={uri!r} is a folder of this machine, which the hosts of the cluster "
            )
            yield Finding("storage.uri", text + "do not see; give an object store, s3://...")
            return
        store.check_writable()
        probe = f".probe-{uuid.uuid4().hex}"
        first, second = store.create(probe, b"1"), store.create(probe, b"2")
        store.remove(probe)
    except (DreamBoothError, OSError, ImportError) as error:
        yield Finding("storage.uri", f"storage.uri={uri!r} can't be used: {error}")
        return
    if not first or second:
        text = (
            f"storage.uri={uri!r} has no conditional writes: two runs could overwrite each other; "
        )
        yield Finding("storage.uri", text + "take a store with If-None-Match, as S3 has")


def _cluster(
    config: Config, entry: ClusterEntry, needed: list[TrainingFootprint]
) -> Iterator[Finding]:
    try:
        dashboard = Dashboard(entry)
        versions, capacity = dashboard.versions(), dashboard.capacity()
    except ConfigError as error:
        yield Finding("token", str(error))
        return
    except (DreamBoothError, requests.RequestException, KeyError) as error:
        yield Finding("address", str(error))
        return
    for what, theirs, ours in (
        ("Ray", versions.ray, version("ray")),
        ("Python", versions.python, platform.python_version()),
    ):
        exact = what == "Ray" or not theirs
        if theirs and (theirs if exact else _minor(theirs)) != (ours if exact else _minor(ours)):
            text = f"the cluster at {entry.address} has {what} {theirs}, this machine {ours}; "
            yield Finding("image", text + f"give the cluster an image with {what} {ours}")
    if not entry.autoscaled:
        yield from _room(config, capacity, needed)


def _room(config: Config, capacity: Capacity, needed: list[TrainingFootprint]) -> Iterator[Finding]:
    workers = config.cluster.span.min
    if config.cluster.gpus and capacity.gpus < workers:
        text = f"cluster.workers={workers} want a GPU each, and the cluster has {capacity.gpus:g}; "
        text += f"lower it, set cluster.gpus=false, or add GPU hosts; {_BY_ITSELF}"
        yield Finding("cluster.workers", text)
    elif not config.cluster.gpus and capacity.cpus < workers:
        text = f"cluster.workers={workers} want a CPU each, and the cluster has {capacity.cpus:g}; "
        yield Finding("cluster.workers", text + f"lower it, or add hosts; {_BY_ITSELF}")
    limit = capacity.gpu_memory_bytes if config.cluster.gpus else capacity.memory_bytes
    device = "GPU" if config.cluster.gpus else "host"
    for worker in needed:
        if limit and worker.total_bytes > limit:
            yield Finding(_heaviest(config, worker), _too_much(worker, limit, device))


def _heaviest(config: Config, needed: TrainingFootprint) -> str:
    """The key that saves most."""
    if needed.activations_bytes > needed.states_bytes:
        alone = config.images_a_step // config.cluster.span.max // config.train.accumulate <= 2
        return "train.resolution" if alone else "train.batch_size"
    return "train.method"


def _too_much(needed: TrainingFootprint, limit: int, device: str) -> str:
    parts = (needed.states_bytes, needed.frozen_bytes, needed.activations_bytes)
    states, frozen, activations = (f"{part / _GIB:.1f}" for part in parts)
    return (
        f"a worker needs about {needed.total_bytes / _GIB:.1f} GiB ({states} trained weights with "
        f"optimizer, {frozen} frozen, {activations} activations), and the largest {device} has "
        f"{limit / _GIB:.1f}; lower train.resolution or train.batch_size, raise train.accumulate, "
        "or take train.method=lora"
    )


def _image(entry: ClusterEntry) -> Iterator[Finding]:
    """Ask the registry for the image's manifest, as the hosts will."""
    if entry.code == "image" and not entry.image:
        yield Finding("image", "code=image needs image: the name and tag that hosts are to pull")
    if not entry.image:
        return
    registry, _, rest = entry.image.partition("/")
    name, _, tag = rest.rpartition(":")
    if not name or not ({".", ":"} & set(registry)):
        return  # a short name is the hosts' own business
    scheme = "http" if registry.startswith(("127.", "localhost")) else "https"
    try:
        answer = requests.head(
            f"{scheme}://{registry}/v2/{name}/manifests/{tag}", timeout=TIMEOUT_S
        )
    except requests.RequestException as error:
        text = f"image={entry.image!r}: {registry} does not answer here ({type(error).__name__})"
        yield Finding("image", text + "; its presence is unknown", fatal=False)
        return
    if answer.status_code == requests.codes.not_found:
        yield Finding(
            "image", f"image={entry.image!r} is not in {registry}; push it, or mend the tag"
        )


def _minor(text: str) -> str:
    return ".".join(text.split(".")[:2])


def report(findings: list[Finding]) -> list[str]:
    """A line a finding, for people."""
    return [f"{'error' if f.fatal else 'warning'}: {f.key}: {f.text}" for f in findings]
