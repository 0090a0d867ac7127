"""What a training worker is told."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """config is YAML; the rest are URIs and local paths."""

    config: str
    run_uri: str
    model_directory: str
    photos: str
    priors_uri: str
