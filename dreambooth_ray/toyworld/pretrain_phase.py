"""One pretraining phase: a resumable, seeded loop over a loss, on one or more processes."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Batch = tuple[Tensor, ...]
Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True)
class Phase:
    """model(*batch(step, rank)) is the loss. lr follows a cosine after a short warm-up.

    batch must be a pure function of (step, rank): that is what makes a resume exact.
    """

    name: str
    model: nn.Module
    batch: Callable[[int, int], Batch]
    steps: int
    lr: float
    ema_decay: float = 0.999


class WarmupMovingAverage:
    """Exponential moving average whose window grows with the number of steps.

    With a fixed decay the untrained weights would keep a share of decay ** steps: after
    2,000 steps at 0.999 that is 13 %, and images dissolve into noise.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay

    @torch.no_grad()
    def __call__(self, averaged: Tensors, current: Tensors, num_averaged: Tensor | int) -> None:
        """Move `averaged` towards `current`, in place."""
        step = int(num_averaged)
        decay = min(self.decay, (1 + step) / (10 + step))
        average_in_place = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average_in_place(list(averaged), list(current), step)


def train_phase_in_processes(make: Callable[[Path], Phase], work: Path, processes: int) -> None:
    """Train a phase to its end, from its newest checkpoint if there is one.

    Leaves {work}/{name}.pt with the averaged weights under "ema".
    """
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**33))
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**33))
    with tempfile.TemporaryDirectory(prefix="dreambooth-rendezvous-") as folder:
        rendezvous_file = Path(folder) / "file"
        start_processes(  # type: ignore[no-untyped-call]
            _train_process,
            (make, work, processes, rendezvous_file),
            nprocs=processes,
            start_method="spawn",
        )


def _train_process(
    rank: int, make: Callable[[Path], Phase], work: Path, processes: int, rendezvous: Path
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=processes
    )
    try:
        _train_phase(make(work), work, rank)
    finally:
        dist.destroy_process_group()


def _train_phase(phase: Phase, work: Path, rank: int) -> None:
    parallel_loss_module = DistributedDataParallel(
        phase.model, bucket_cap_mb=100, gradient_as_bucket_view=True
    )
    averaged_model = AveragedModel(phase.model, multi_avg_fn=WarmupMovingAverage(phase.ema_decay))
    optimizer = torch.optim.AdamW(
        phase.model.parameters(), lr=phase.lr, fused=True, weight_decay=0.01
    )
    num_warmup_steps = min(200, phase.steps // 10 + 1)
    lr_scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.02, total_iters=num_warmup_steps),
            torch.optim.lr_scheduler.CosineAnnealingLR(
                optimizer, phase.steps - num_warmup_steps, phase.lr * 0.01
            ),
        ],
        [num_warmup_steps],
    )
    path = work / f"{phase.name}.pt"
    stateful_parts = {
        "model": phase.model,
        "ema": averaged_model,
        "optimizer": optimizer,
        "schedule": lr_scheduler,
    }
    first_step = _restore_checkpoint(path, stateful_parts)
    progress_columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
    )
    with Progress(*progress_columns, TimeRemainingColumn(), disable=rank != 0) as progress_bar:
        progress_task = progress_bar.add_task(phase.name, total=phase.steps, completed=first_step)
        smoothed_loss = 0.0
        for step in range(first_step, phase.steps):
            torch.manual_seed((step * 64 + rank) * 2654435761 % 2**31)
            loss = parallel_loss_module(*phase.batch(step, rank))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(phase.model.parameters(), 1.0, foreach=True)
            optimizer.step()
            lr_scheduler.step()
            averaged_model.update_parameters(phase.model)
            smoothed_loss = (
                0.98 * smoothed_loss + 0.02 * loss.item() if step > first_step else loss.item()
            )
            progress_bar.update(
                progress_task, advance=1, description=f"{phase.name} loss {smoothed_loss:.4f}"
            )
            if rank == 0 and (step % 250 == 249 or step == phase.steps - 1):
                _save_checkpoint(path, stateful_parts, step + 1)
                progress_bar.console.print(f"{phase.name} step {step + 1} loss {smoothed_loss:.4f}")


def _save_checkpoint(path: Path, stateful_parts: dict[str, object], step: int) -> None:
    checkpoint_state = {
        name: part.state_dict()  # type: ignore[attr-defined]
        for name, part in stateful_parts.items()
    }
    partial_path = path.with_suffix(".partial")
    torch.save({**checkpoint_state, "step": step}, partial_path)
    partial_path.replace(path)


def _restore_checkpoint(path: Path, stateful_parts: dict[str, object]) -> int:
    if not path.exists():
        return 0
    checkpoint_state = torch.load(path, weights_only=True)
    for name, stateful_part in stateful_parts.items():
        stateful_part.load_state_dict(checkpoint_state[name])  # type: ignore[attr-defined]
    return int(checkpoint_state["step"])


def read_averaged_weights(path: Path) -> dict[str, Tensor]:
    """The averaged weights a finished phase left at `path`, under the model's own names."""
    average_state = torch.load(path, weights_only=True)["ema"]
    return {k.removeprefix("module."): v for k, v in average_state.items() if k != "n_averaged"}
