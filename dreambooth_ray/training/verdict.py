"""What the evaluation beside a training has decided so far, as the training reads it."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from dreambooth_ray.storage import layout
from dreambooth_ray.storage.store import Store


@dataclass(frozen=True)
class Verdict:
    """best: step to keep; judged: steps evaluated; stop: whether the run should end."""

    best: int | None = None
    judged: tuple[int, ...] = ()
    stop: bool = False


def read_verdict(run: Store) -> Verdict:
    """The newest, or an empty one."""
    if not run.exists(layout.VERDICT):
        return Verdict()
    content = json.loads(run.read(layout.VERDICT))
    return Verdict(content["best"], tuple(content["judged"]), content["stop"])


def write_verdict(run: Store, verdict: Verdict) -> None:
    """Replace it."""
    run.write(layout.VERDICT, json.dumps(asdict(verdict)).encode())


def spared(steps: Iterable[int], verdict: Verdict) -> frozenset[int]:
    """Checkpoints that rotation must leave: the best, and those not evaluated yet."""
    return frozenset(s for s in steps if s == verdict.best or s not in verdict.judged)


def write_end(run: Store, step: int) -> None:
    """Note that a run ended early, at `step`, by its evaluations."""
    run.write(layout.END, json.dumps({"step": step}).encode())


def read_end(run: Store) -> int | None:
    """The step a run was ended at by its evaluations; None if it was not."""
    return int(json.loads(run.read(layout.END))["step"]) if run.exists(layout.END) else None
