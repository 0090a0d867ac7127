"""Metrics of an endpoint and of a run."""

import ast
import re
import sys

from pages.markdown import ROOT, cell, code, page, table

# Keys of metrics.jsonl.
METRIC_KEYS = {
    "step": "optimizer step, from 1",
    "images_seen": "photographs and class images seen so far, over all workers",
    "loss": "instance_loss, plus prior_loss and output_loss by their weights in `prior`",
    "instance_loss": "mean error over the photographs of the step",
    "prior_loss": "mean error over the class images of the step, 0 without them; with prior.kind "
    "output, of the output that is kept",
    "output_loss": "with prior.kind both: of the output that is kept, beside prior_loss",
    "lr": "learning rate of the step",
    "text_encoder_lr": "learning rate of the text encoder, where it differs",
    "identifier_lr": "learning rate of learned words, where it differs",
    "grad_norm": "global gradient norm before clipping",
    "val_loss": "validation loss: of photographs and class images, not of an output that is kept",
    "val_instance_loss": "of the photographs looked at",
    "val_prior_loss": "of the class images kept for validation",
    "val_instance_loss_bin{k}": "of the photographs, in range k of noise levels; 0 has least noise",
    "val_prior_loss_bin{k}": "of the class images, in range k of noise levels",
    "restarts": "how often workers have been started again, once there is one",
    "side_failures": "failures of work beside the steps (loggers, samples), once there is one",
    "skipped_steps": "steps skipped, as their gradient was no number, once there is one",
}


def metrics() -> str:
    """Prometheus' metrics of a gateway, and the keys of metrics.jsonl."""
    from dreambooth_ray.compat.prometheus_client import describe_metrics  # noqa: PLC0415
    from serve.gateway_metrics import Metrics  # noqa: PLC0415

    rows = []
    for metric in describe_metrics(Metrics().registry):
        suffix = {"counter": "_total", "histogram": "_bucket, _sum, _count"}.get(metric.kind, "")
        name = ", ".join(f"{metric.name}{s}" for s in suffix.split(", "))
        labels = ", ".join(code(label) for label in metric.labels)
        rows.append((code(name), metric.kind, labels, cell(metric.documentation)))
    in_code = metric_keys()
    if in_code != set(METRIC_KEYS):
        sys.exit(f"METRIC_KEYS differs from the code by {sorted(in_code ^ set(METRIC_KEYS))}")
    keys = [(code(key), cell(about)) for key, about in METRIC_KEYS.items()]
    return page(
        "Metrics",
        "serve/gateway_metrics.py and dreambooth_ray/training",
        "## Of the endpoint",
        "`GET /metrics` answers in Prometheus' text format. Every gateway counts for itself; "
        "the label `gateway`, which all of them have, says which it is.",
        table(("name", "kind", "labels", "meaning"), *rows),
        "## Of a run",
        "`metrics.jsonl` in the run's folder has one JSON object a line, one line an optimizer "
        "step. Keys that begin with `val_` are there at steps with a validation "
        "(`validation.every`). TensorBoard and the other loggers show the same, and beside it "
        "`throughput/images_per_s` and the sample images.",
        table(("key", "meaning"), *keys),
    )


def metric_keys() -> set[str]:
    """The keys that training writes, read from its source."""
    training = ROOT / "dreambooth_ray" / "training"
    found = set[str]()
    for node in ast.walk(ast.parse((training / "step_record.py").read_text())):
        if isinstance(node, ast.Dict):
            keys = [k.value for k in node.keys if isinstance(k, ast.Constant)]
            found |= set(keys) if "images_seen" in keys else set()
    text = (training / "callbacks" / "validation.py").read_text()
    found |= set(re.findall(r'"(val_\w+)"', text))
    if re.search(r'f"val_\{\w+\}_loss_bin\{\w+\}"', text):
        found |= {f"val_{half}_loss_bin{{k}}" for half in ("instance", "prior")}
    from dreambooth_ray.training.early_stopping import VALIDATION_LOSS  # noqa: PLC0415
    from dreambooth_ray.training.metrics_log import (  # noqa: PLC0415
        FAILURES,
        PART_RATES,
        RESTARTS,
        SKIPPED,
    )

    return found | {VALIDATION_LOSS, FAILURES, RESTARTS, SKIPPED, *PART_RATES.values()}
