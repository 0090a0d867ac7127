"""What a training worker gets."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class WorkerJob:
    """config is YAML; num_priors of the set at priors_uri are used; the rest are paths.

    lease: number of the run's lease that the workers work under
    """

    config: str
    run_uri: str
    model_directory: str
    priors_uri: str = ""
    num_priors: int = 0
    model_hash: str = ""
    lease: int = 1
    storage_options: dict[str, Any] = field(default_factory=dict, repr=False)
