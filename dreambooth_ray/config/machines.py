"""The sections that say where a run works and what it keeps there."""

import os
import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from dreambooth_ray.config.section import PathText, Section, Text

# The sections of this module, in a configuration: what a run learns does not depend on them.
MACHINE_SECTIONS = ("cluster", "memory", "storage", "checkpoint")
# Keys of metrics.jsonl of which the lowest is best.
_LOSS = re.compile(r"(val_)?((instance|prior)_)?loss|output_loss|val_(instance|prior)_loss_bin\d+")


class CountRange(Section):
    """A number that may lie between two bounds."""

    min: int = Field(1, ge=1, description="at least so many")
    max: int = Field(1, ge=1, description="at most so many")

    @model_validator(mode="after")
    def _in_order(self) -> "CountRange":
        if self.min > self.max:
            raise ValueError(f"min={self.min} is above max={self.max}")
        return self


class CheckpointConfig(Section):
    """Complete training state, committed to storage."""

    every: int = Field(100, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="newest checkpoints to keep")
    best: Text | None = Field(
        None, description="metric whose lowest checkpoint is kept as well: val_loss, loss"
    )

    @field_validator("best")
    @classmethod
    def _best_is_a_loss(cls, metric: str | None) -> str | None:
        if metric is not None and not _LOSS.fullmatch(metric):
            raise ValueError(
                "it is no loss of a run; take val_loss, val_instance_loss, val_prior_loss, loss, "
                "instance_loss, prior_loss or output_loss"
            )
        return metric


class ClusterConfig(Section):
    """Where the work runs."""

    address: str | None = Field(None, description="Ray address; none starts a local Ray")
    workers: int | CountRange = Field(
        1, description="training workers; {min, max}: as many as there is room for"
    )
    gpus: bool = Field(False, description="one GPU for each worker and each prior actor")
    max_failures: int = Field(
        3, ge=0, description="restarts of the workers in a row without a new checkpoint between"
    )
    wait_s: float = Field(
        900,
        gt=0,
        description="to wait for machines that workers or prior actors need and that are not there",
    )

    lease_s: float = Field(
        120,
        gt=0,
        le=3600,
        description="silence after which the process that works on a run is taken for dead",
    )

    @property
    def ray_address(self) -> str | None:
        """address, or that of the cluster whose job this process is; None: a local Ray."""
        address = (self.address or os.environ.get("RAY_ADDRESS") or "").strip()
        return None if address in ("", "local") else address

    @property
    def address_origin(self) -> str:
        """What ray_address was set by."""
        return "cluster.address" if self.address else "the environment's RAY_ADDRESS"

    @property
    def workers_text(self) -> str:
        """workers as a configuration has them."""
        worker_setting = self.workers
        return (
            str(worker_setting)
            if isinstance(worker_setting, int)
            else f"{{{worker_setting.min}, {worker_setting.max}}}"
        )

    @property
    def span(self) -> CountRange:
        """workers as bounds."""
        if isinstance(self.workers, CountRange):
            return self.workers
        return CountRange(min=self.workers, max=self.workers)

    @field_validator("workers")
    @classmethod
    def _some_worker(cls, workers: int | CountRange) -> int | CountRange:
        if isinstance(workers, int) and workers < 1:
            raise ValueError(f"cluster.workers={workers} must be at least 1")
        return workers


class MemoryConfig(Section):
    """What is done where a training step would not fit into a GPU."""

    fit: bool = Field(
        False,
        description="with cluster.gpus: set what makes a step fit, cheapest first, and say so",
    )


class StorageConfig(Section):
    """Where runs, checkpoints and class images are kept."""

    uri: PathText = Field("out", description="a folder, or s3://bucket/folder, or any fsspec URL")
    scratch: PathText | None = Field(
        None,
        description="folder on each host for checkpoints and bundles on their way; none is "
        "the system's temporary folder (TMPDIR)",
    )
    model_cache_gb: float = Field(
        50.0,
        gt=0,
        description="of models that were fetched, on each host; what is in use stays beyond it",
    )
    # May hold keys, so it is in no dump and in no text.
    options: dict[str, Any] = Field(
        default_factory=dict,
        exclude=True,
        repr=False,
        description="fsspec options: endpoint_url, key, secret; or by the environment, AWS_*",
    )

    @field_validator("scratch")
    @classmethod
    def _check_absolute_scratch(cls, scratch: str | None) -> str | None:
        if scratch is not None and not scratch.startswith(("/", "~")):
            raise ValueError(
                f"storage.scratch={scratch!r} must start with / or ~: it is a folder of every host"
            )
        return scratch
