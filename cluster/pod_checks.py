"""What pods can't use of a run's settings, found before a manifest is made.

Pods share no folder with the machine that sends a run, and see none of its environment: a folder,
an option or an address of it would be missed only after machines have come.
"""

import re
from collections.abc import Iterator

from cluster.preflight_finding import PreflightFinding
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.remote_images import is_remote_uri
from dreambooth_ray.evaluation.protocol import list_protocol_names
from dreambooth_ray.models.model_source import SUFFIXES, find_hub_id, find_packaged_model

NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# Folders of the pods that can be written; all others are the image's, which is read-only.
WRITABLE = ("/tmp", "/home/ray")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAMED = re.compile(
    r"(?P<name>([a-z0-9.-]+(:\d+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*)"
    r"(:(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
)


def check_pod_settings(config: Config, image: str, namespace: str) -> Iterator[PreflightFinding]:
    """Everything that stands in the way of a run in pods, each with its key; all are fatal."""
    if image_problem := find_image_name_problem(image):
        yield PreflightFinding("--image", image_problem)
    if not NAMESPACE.fullmatch(namespace):
        yield PreflightFinding(
            "--namespace",
            f"--namespace={namespace!r} is no name of a namespace; it has small letters, digits "
            "and -, 63 at most",
        )
    yield from _check_storage(config)
    yield from _check_local_paths(config)
    yield from _check_model_location(config)
    if config.cluster.address:
        yield PreflightFinding(
            "cluster.address",
            f"cluster.address={config.cluster.address!r} is another cluster than the one that the "
            "RayJob starts; leave it out",
        )


def find_image_name_problem(image: str) -> str:
    """What is wrong with an image's name; empty if nothing is.

    What comes from a registry has to be named by its digest: a tag may mean something else when a
    lost pod is replaced. A name without a registry, as kind loads it, may have a tag.
    """
    if not image:
        return "--image is not given; name the image that the pods run, NAME@sha256:DIGEST"
    image_name_match = _NAMED.fullmatch(image.partition("@")[0])
    image_digest = image.partition("@")[2]
    if image_name_match is None:
        return f"--image={image!r} is no name of an image; give NAME@sha256:DIGEST"
    if "@" in image and not _DIGEST.fullmatch(image_digest):
        return f"--image={image!r}: a digest is sha256: and 64 digits of 0-9 and a-f"
    if not image_digest and "/" in image_name_match["name"]:
        return (
            f"--image={image!r} has no digest: what the tag means may change while the run goes "
            "on; give NAME@sha256:DIGEST, as the push of the image printed it"
        )
    if not image_digest and image_name_match["tag"] in (None, "latest"):
        return f"--image={image!r} names no version; give NAME:VERSION or NAME@sha256:DIGEST"
    return ""


def _check_storage(config: Config) -> Iterator[PreflightFinding]:
    storage_config = config.storage
    uri_scheme = storage_config.uri.partition("://")[0] if is_remote_uri(storage_config.uri) else ""
    if uri_scheme in ("", "file", "local", "memory"):
        yield PreflightFinding(
            "storage.uri",
            f"storage.uri={storage_config.uri!r} is seen by one machine alone; give an object "
            "store, s3://BUCKET/FOLDER",
        )
    if storage_config.options:
        yield PreflightFinding(
            "storage.options",
            f"storage.options ({', '.join(sorted(storage_config.options))}) is in no recipe and no "
            "manifest, it may hold keys; put them into the Secret dreambooth-storage as AWS_*",
        )
    if storage_config.scratch and not storage_config.scratch.startswith(WRITABLE):
        yield PreflightFinding(
            "storage.scratch",
            f"storage.scratch={storage_config.scratch!r} can't be written in a pod; give a folder "
            f"below {' or '.join(WRITABLE)}, or none",
        )


def _check_local_paths(config: Config) -> Iterator[PreflightFinding]:
    """Folders and files of this machine that a run reads."""
    paths_by_key = {
        "prior.folder": config.prior.folder,
        "tracking.mlflow_uri": config.tracking.mlflow_uri,
    }
    if config.subjects:
        paths_by_key |= {f"subjects[{k}].photos": s.photos for k, s in enumerate(config.subjects)}
    else:
        paths_by_key["subject.photos"] = config.subject.photos
    evaluation_protocol = config.choice.protocol
    if (
        config.choice.rule == "best"
        and evaluation_protocol
        and evaluation_protocol not in list_protocol_names()
    ):
        paths_by_key["choice.protocol"] = config.choice.protocol
    for key, path in paths_by_key.items():
        if path and not is_remote_uri(path):
            remedy = "copy it to the object store and give its URI, s3://BUCKET/FOLDER"
            if key == "choice.protocol":
                remedy = "take a protocol that ships, or choice.rule=last"
            yield PreflightFinding(
                key, f"{key}={path!r} lies on this machine, which pods do not see; {remedy}"
            )


def _check_model_location(config: Config) -> Iterator[PreflightFinding]:
    """What ships, what has a URL and what the hub has need not be on this machine."""
    for key, model_uri in (
        ("model.uri", config.model.uri),
        ("model.vae", config.model.vae),
        ("model.text_encoder", config.model.text_encoder),
    ):
        is_weight_file = model_uri is not None and model_uri.endswith(SUFFIXES)
        if (
            not model_uri
            or is_remote_uri(model_uri)
            or find_packaged_model(model_uri)
            or (find_hub_id(model_uri) and not is_weight_file)
        ):
            continue
        yield PreflightFinding(
            key,
            f"{key}={model_uri!r} lies on this machine, which pods do not see; give a model of the "
            "hub, OWNER/NAME, or copy the folder to the object store and give its URI",
        )
