"""Measure it all: `python -m benchmarks.gpu [--dry] [--budget-s 420] [--out FILE]`."""

import argparse
import json
import logging
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.conditions import read_conditions
from benchmarks.gpu import device as devices
from benchmarks.gpu import fleet_cases, sampling, train_cases
from benchmarks.random_models import SD15, TINY
from dreambooth_ray.models.components import quiet_libraries
from dreambooth_ray.models.precision import resolve_device


def main() -> None:
    """Writes the record after each case: what is measured is kept whatever comes after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true", help="every path at tiny size on the CPU")
    parser.add_argument("--budget-s", type=float, default=420, help="no case begins after it")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--skip", type=int, default=0, help="so many cases, the first")
    options = parser.parse_args()
    quiet_libraries()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    device = resolve_device("cpu" if options.dry else "cuda")
    size = TINY if options.dry else SD15
    record: dict[str, Any] = {
        "theme": "gpu", "model": size.name, "side_px": size.side_px, "dry": options.dry,
        "conditions": read_conditions(), "cases": [],
    }  # fmt: skip
    end_s = time.monotonic() + options.budget_s
    for name, measure in list_cases(size, device, options.dry)[options.skip :]:
        if options.only not in name:
            continue
        case = {"case": name}
        if time.monotonic() > end_s:
            record["cases"].append({**case, "skipped": "the time was over"})
        else:
            record["cases"].append(devices.measure_or_record_error(case, measure))
        print(json.dumps(record["cases"][-1]), flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")


def list_cases(size: Any, device: torch.device, is_dry: bool) -> list[tuple[str, Any]]:
    """Name and measurement of each case, the most telling first."""
    num_timed = 2 if is_dry else 20
    cases = [
        (f"training: {case.name}", partial(train_cases.measure_case, case, size, device, num_timed))
        for case in train_cases.CASES
        if not (is_dry and ("adamw8bit" in case.name or "8-bit" in case.name))
    ]
    steps, repeats = (3, 1) if is_dry else (25, 2)
    sampling_cases = [
        ("sampling", partial(sampling.measure, size, device, steps, repeats)),
        ("half precision", partial(sampling.measure_half_error, device, steps)),
    ]
    fleets = [
        (f"fleet: {case.name}", partial(fleet_cases.measure_case, case, size, device, num_timed))
        for case in fleet_cases.CASES
    ]
    repeated = ("repeats", partial(train_cases.check_bit_equal_repeats, size, device))
    # Those that compile come last: they take as long as all others.
    return [*cases[:2], *sampling_cases, *fleets, *cases[2:-2], repeated, *cases[-2:]]


if __name__ == "__main__":
    main()
