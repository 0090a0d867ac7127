"""Which settings fit into which card: a table of what the estimate says, without weights or a GPU.

    python -m benchmarks.memory_table tests/published docs/how-to/gpu.md

The models are directories of published configurations. Beside it stand the peaks that were measured
on a GPU (benchmarks/results/gpu.json), as far as they count a step alone.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench_report import put_table
from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.memory.device_memory import usable_bytes
from dreambooth_ray.memory.memory_advice import find_fitting_settings
from dreambooth_ray.memory.training_memory import estimate_training_footprint

GIB = 2**30
CARDS_GB = (8, 12, 16, 24)
MARKS = "<!-- memory -->", "<!-- /memory -->"
RESULTS = Path(__file__).parent / "results" / "gpu.json"


@dataclass(frozen=True)
class PublishedModelConfig:
    """folder: below that of all configurations; side_px: that it was trained at."""

    name: str
    folder: str
    side_px: int


MODELS = (
    PublishedModelConfig("SD 1.5", "stable-diffusion-1.5", 512),
    PublishedModelConfig("SD 2.1", "stable-diffusion-2.1", 768),
)
METHODS = {"LoRA": "lora", "all weights and text encoder": "full"}
# Of gpu.json: the cases whose peak is a step's own, with their settings.
MEASURED = {
    "lora, bf16, 4 + 4 images": ("train.method=lora", "train.batch_size=4"),
    "full, bf16, checkpointing": (
        "train.method=full", "train.text_encoder=false", "train.gradient_checkpointing=true",
    ),
}  # fmt: skip


def make_bf16_training_config(model: PublishedModelConfig, *settings: str) -> Config:
    """One photograph and one class image a step, in bf16, on one GPU."""
    default_overrides = (
        "subject.photos=photos", "subject.class_noun=dog", "prior.count=8", "train.batch_size=1",
        f"train.resolution={model.side_px}", "train.precision=bf16-mixed", "cluster.gpus=true",
    )  # fmt: skip
    return parse_config("", "the table", [*default_overrides, *settings])


def describe_card_fit(models: Path, model: PublishedModelConfig, method: str, card_gb: int) -> str:
    """What a step takes on a card, and with which settings, cheapest first."""
    config = make_bf16_training_config(model, f"train.method={method}")
    limit_bytes = usable_bytes(card_gb * GIB, is_gpu=True)
    fitting_settings = find_fitting_settings(config, models / model.folder, limit_bytes)
    if fitting_settings is None:
        return "nothing fits"
    settings_text = ", ".join(f"`{setting}`" for setting in fitting_settings.settings) or "as it is"
    return f"{settings_text}: {fitting_settings.needed_bytes / GIB:.1f}"


def make_advice_rows(models: Path) -> list[str]:
    """A row a model and method, a column a card."""
    table_rows = []
    for published_model in MODELS:
        for method_title, method in METHODS.items():
            cell_texts = [
                describe_card_fit(models, published_model, method, card_gb) for card_gb in CARDS_GB
            ]
            table_rows.append(
                f"| {published_model.name}, {published_model.side_px} px, {method_title} "
                f"| {' | '.join(cell_texts)} |"
            )
            print(table_rows[-1], file=sys.stderr)
    return table_rows


def make_measured_rows(models: Path, results: Path) -> list[str]:
    """Predicted beside measured, of the steps that were measured."""
    record: dict[str, Any] = json.loads(results.read_text())
    peak_bytes_by_case = {case["case"]: case.get("allocated_bytes") for case in record["cases"]}
    table_rows = []
    for case_name, settings in MEASURED.items():
        config = make_bf16_training_config(MODELS[0], *settings)
        predicted_bytes = estimate_training_footprint(config, models / MODELS[0].folder).total_bytes
        measured_gib = peak_bytes_by_case[f"training: {case_name}"] / GIB
        table_rows.append(
            f"| {MODELS[0].name}, {case_name} | {predicted_bytes / GIB:.1f} | {measured_gib:.1f} |"
        )
    return table_rows


def format_tables(models: Path, results: Path = RESULTS) -> str:
    """Both, as Markdown."""
    card_titles = " | ".join(f"{card_gb} GB" for card_gb in CARDS_GB)
    return "\n".join(
        [
            f"| **predicted** GiB of a step | {card_titles} |",
            f"| --- |{' --- |' * len(CARDS_GB)}",
            *make_advice_rows(models),
            "",
            "| a step on an H100 | **predicted** GiB | **measured** GiB |",
            "| --- | --- | --- |",
            *make_measured_rows(models, results),
        ]
    )


def main() -> None:
    """Print the tables, or put them into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, help="folder of published configurations")
    parser.add_argument("page", type=Path, nargs="?", help="page with marks to put them between")
    arguments = parser.parse_args()
    tables_text = format_tables(arguments.models)
    if arguments.page is None:
        print(tables_text)
    else:
        put_table(arguments.page, tables_text, MARKS)


if __name__ == "__main__":
    main()
