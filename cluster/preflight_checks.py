"""What can go wrong, found before anything is paid for. Each finding names the key to change."""

import platform
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import version

import requests

from cluster.cluster_registry import ClusterEntry
from cluster.dashboard import TIMEOUT_S, ClusterCapacity, Dashboard
from cluster.preflight_finding import PreflightFinding
from cluster.subject_checks import check_subjects
from dreambooth_ray.config.idle_settings import find_idle_settings
from dreambooth_ray.config.learning_rate_rules import check_rates
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError, DreamBoothError
from dreambooth_ray.memory.device_memory import list_gpu_total_bytes, usable_bytes
from dreambooth_ray.memory.memory_advice import (
    describe_shortage,
    find_fitting_settings,
    find_heaviest_key,
)
from dreambooth_ray.memory.training_memory import TrainingFootprint, estimate_training_footprint
from dreambooth_ray.models.model_checks import check_training_settings
from dreambooth_ray.models.model_directory import check_image_sizes, model_directory, model_outline
from dreambooth_ray.models.model_source import parse_source
from dreambooth_ray.storage.store import Store

_BY_ITSELF = "for a cluster that adds them by itself, put autoscaled: true into clusters.yaml"


def run_preflight(
    config: Config, entry: ClusterEntry | None = None, *, is_elsewhere: bool = False
) -> list[PreflightFinding]:
    """Check everything that needs no start of Ray; fatal findings first.

    entry: the cluster that the run is meant for; none is this machine
    is_elsewhere: it is meant for machines of which nothing is known yet
    """
    footprints: list[TrainingFootprint] = []
    checks: list[Callable[[], Iterator[PreflightFinding]]] = [
        lambda: check_subjects(config),
        lambda: _find_setting_warnings(config),
        lambda: _check_model(config, footprints),
        lambda: _check_storage(config, entry),
    ]
    if entry is not None:
        checks += [
            lambda: _check_cluster(config, entry, footprints),
            lambda: _check_image_in_registry(entry),
        ]
    elif config.cluster.gpus and not is_elsewhere:
        checks += [lambda: _check_local_gpus(config, footprints)]
    findings = [finding for check in checks for finding in check()]
    return sorted(findings, key=lambda finding: not finding.fatal)


def fit_to_gpu_memory(config: Config, entry: ClusterEntry, say: Callable[[str], None]) -> Config:
    """For memory.fit: the configuration with what a worker's step needs to fit, which is said.

    As it is where nothing helps, or where a cluster's GPUs are not there before they are needed.
    """
    if not (config.memory.fit and config.cluster.gpus) or entry.autoscaled:
        return config
    gpu_memory_bytes = Dashboard(entry).capacity().gpu_memory_bytes
    limit_bytes = usable_bytes(gpu_memory_bytes, is_gpu=True)
    model_folder = model_outline(config.model.source)
    fitting_settings = (
        find_fitting_settings(config, model_folder, limit_bytes) if gpu_memory_bytes else None
    )
    if fitting_settings is None:
        return config
    if fitting_settings.settings:
        say(f"memory.fit: a worker takes about {fitting_settings.text}")
    # Done: the cluster's own processes have nothing to look for.
    memory_section = config.memory.model_copy(update={"fit": False})
    return fitting_settings.config.model_copy(update={"memory": memory_section})


def _find_setting_warnings(config: Config) -> Iterator[PreflightFinding]:
    for warning in (*check_rates(config), *find_idle_settings(config)):
        yield PreflightFinding(warning.partition("=")[0], warning, fatal=False)


def _check_model(config: Config, footprints: list[TrainingFootprint]) -> Iterator[PreflightFinding]:
    try:
        model_folder = model_outline(config.model.source)
    except DreamBoothError as error:
        yield PreflightFinding("model.uri", str(error))
        return
    try:
        check_image_sizes(model_folder, config.train)
        check_training_settings(config, model_folder)
        footprints.append(footprint := estimate_training_footprint(config, model_folder))
        yield _note_memory_estimate(config, footprint)
        if parse_source(config.model.source).is_directory:
            model_directory(config.model.source)  # last: it reads all weights
    except DreamBoothError as error:
        yield PreflightFinding(str(error).split("=", maxsplit=1)[0].split(":")[0], str(error))
    except (OSError, ValueError, KeyError) as error:
        finding_text = (
            f"model.uri={config.model.uri!r} can't be read: {error}; its download is incomplete"
        )
        yield PreflightFinding("model.uri", finding_text)


def _note_memory_estimate(config: Config, footprint: TrainingFootprint) -> PreflightFinding:
    needed_gib, device_word = (
        footprint.total_bytes / 2**30,
        "GPU" if config.cluster.gpus else "host",
    )
    finding_text = f"a worker's step takes about {needed_gib:.1f} GiB of its {device_word}'s memory"
    return PreflightFinding("memory", finding_text, fatal=False, is_note=True)


def _check_storage(config: Config, entry: ClusterEntry | None) -> Iterator[PreflightFinding]:
    storage_uri = config.storage.uri
    try:
        store = Store(storage_uri)
        if store.is_local and entry is not None and "//127." not in entry.address:
            finding_text = (
                f"storage.uri={storage_uri!r} is a folder of this machine, which the hosts of the "
            )
            yield PreflightFinding(
                "storage.uri", finding_text + "cluster do not see; give an object store, s3://..."
            )
            return
        store.check_writable()
        probe_file = f".probe-{uuid.uuid4().hex}"
        is_first_created, is_second_created = (
            store.create(probe_file, b"1"),
            store.create(probe_file, b"2"),
        )
        store.remove_file(probe_file)
    except (DreamBoothError, OSError, ImportError) as error:
        yield PreflightFinding("storage.uri", f"storage.uri={storage_uri!r} can't be used: {error}")
        return
    if not is_first_created or is_second_created:
        finding_text = (
            f"storage.uri={storage_uri!r} has no conditional writes: two runs could overwrite each "
        )
        yield PreflightFinding(
            "storage.uri", finding_text + "other; take a store with If-None-Match, as S3 has"
        )


def _check_cluster(
    config: Config, entry: ClusterEntry, footprints: list[TrainingFootprint]
) -> Iterator[PreflightFinding]:
    try:
        dashboard = Dashboard(entry)
        versions, capacity = dashboard.versions(), dashboard.capacity()
    except ConfigError as error:
        yield PreflightFinding("token", str(error))
        return
    except (DreamBoothError, requests.RequestException, KeyError) as error:
        yield PreflightFinding("address", str(error))
        return
    for checked_software, cluster_version, local_version in (
        ("Ray", versions.ray, version("ray")),
        ("Python", versions.python, platform.python_version()),
    ):
        needs_exact_match = checked_software == "Ray" or not cluster_version
        if cluster_version and (
            cluster_version if needs_exact_match else _minor_version(cluster_version)
        ) != (local_version if needs_exact_match else _minor_version(local_version)):
            yield PreflightFinding(
                "image",
                f"the cluster at {entry.address} has {checked_software} {cluster_version}, this "
                f"machine {local_version}; give the cluster an image with {checked_software} "
                f"{local_version}",
            )
    if not entry.autoscaled:
        yield from _check_capacity(config, capacity, footprints)


def _check_capacity(
    config: Config, capacity: ClusterCapacity, footprints: list[TrainingFootprint]
) -> Iterator[PreflightFinding]:
    num_workers = config.cluster.span.min
    if config.cluster.gpus and capacity.gpus < num_workers:
        finding_text = f"cluster.workers={num_workers} want a GPU each, and the cluster has "
        finding_text += (
            f"{capacity.gpus:g}; lower it, set cluster.gpus=false, or add GPU hosts; {_BY_ITSELF}"
        )
        yield PreflightFinding("cluster.workers", finding_text)
    elif not config.cluster.gpus and capacity.cpus < num_workers:
        finding_text = f"cluster.workers={num_workers} want a CPU each, and the cluster has "
        finding_text += f"{capacity.cpus:g}; lower it, or add hosts; {_BY_ITSELF}"
        yield PreflightFinding("cluster.workers", finding_text)
    uses_gpus = config.cluster.gpus
    device_memory_bytes = capacity.gpu_memory_bytes if uses_gpus else capacity.memory_bytes
    yield from _check_memory(config, footprints, device_memory_bytes)


def _check_local_gpus(
    config: Config, footprints: list[TrainingFootprint]
) -> Iterator[PreflightFinding]:
    gpus_bytes = list_gpu_total_bytes()
    if not gpus_bytes and config.cluster.ray_address is None:
        yield PreflightFinding(
            "cluster.gpus",
            "cluster.gpus=true, and nvidia-smi tells of no GPU of this machine; set "
            "cluster.gpus=false, or cluster.address to a cluster that has some",
        )
    yield from _check_memory(config, footprints, min(gpus_bytes, default=0))


def _check_memory(
    config: Config, footprints: list[TrainingFootprint], total_bytes: int
) -> Iterator[PreflightFinding]:
    """total_bytes: of the device that a worker gets; 0 where it is not known"""
    uses_gpus = config.cluster.gpus
    for footprint in footprints:
        if total_bytes and footprint.total_bytes > usable_bytes(total_bytes, is_gpu=uses_gpus):
            model_folder = model_outline(config.model.source)
            finding_text = describe_shortage(config, model_folder, footprint, total_bytes)
            yield PreflightFinding(find_heaviest_key(config, footprint), finding_text)


def _check_image_in_registry(entry: ClusterEntry) -> Iterator[PreflightFinding]:
    """Ask the registry for the image's manifest, as the hosts will."""
    if entry.code == "image" and not entry.image:
        yield PreflightFinding(
            "image", "code=image needs image: the name and tag that hosts are to pull"
        )
    if not entry.image:
        return
    image_registry, _, repository_and_tag = entry.image.partition("/")
    # NAME:TAG, NAME@sha256:DIGEST, or both; the digest decides.
    tagged_name, _, image_digest = repository_and_tag.partition("@")
    image_repository, _, image_tag = (
        tagged_name.rpartition(":") if ":" in tagged_name else (tagged_name, "", "latest")
    )
    if not image_repository or not ({".", ":"} & set(image_registry)):
        return  # a short name is the hosts' own business
    scheme = "http" if image_registry.startswith(("127.", "localhost")) else "https"
    try:
        response = requests.head(
            f"{scheme}://{image_registry}/v2/{image_repository}/manifests/"
            f"{image_digest or image_tag}",
            timeout=TIMEOUT_S,
        )
    except requests.RequestException as error:
        finding_text = (
            f"image={entry.image!r}: {image_registry} does not answer here ({type(error).__name__})"
        )
        yield PreflightFinding("image", finding_text + "; its presence is unknown", fatal=False)
        return
    if response.status_code == requests.codes.not_found:
        yield PreflightFinding(
            "image", f"image={entry.image!r} is not in {image_registry}; push it, or mend the tag"
        )


def _minor_version(text: str) -> str:
    return ".".join(text.split(".")[:2])


def format_findings(findings: list[PreflightFinding]) -> list[str]:
    """A line a finding, for people."""
    return [f"{_name_severity(finding)}: {finding.key}: {finding.text}" for finding in findings]


def _name_severity(finding: PreflightFinding) -> str:
    if finding.is_note:
        return "note"
    return "error" if finding.fatal else "warning"
