"""Names of files and folders in storage."""

import ast
import sys

from pages.markdown import ROOT, cell, code, page, table

# Names of storage/paths.py that have no comment there, or too short a one for readers.
FILES = {
    "config.yaml": "in a run: the resolved configuration, without keys of storage",
    "requested.yaml": "in a run that was sent to a cluster: its configuration as it was sent",
    "metrics.jsonl": "in a run: one line an optimizer step, see [metrics](metrics.md); "
    "of a run that was taken up again `metrics-000002.jsonl`, with the number of its lease",
    "bundle": "in a run: the model for diffusers, with `card.md` and a manifest; "
    "of a lora run the adapters alone",
    "adapter": "in a bundle of a lora run: the adapters in peft's format",
    "checkpoints": "in a run: the complete training state, committed with hashes",
    "tensorboard": "in a run: metrics, throughput and sample images; "
    "`csv`, `wandb` and `mlflow` lie beside it if asked for",
    "ray_train": "in a run: Ray Train's own files",
    "evaluations": "in a run: results of evaluations",
    "priors": "beside `runs`: class images, shared by all runs that ask for the same",
    "end.json": "in a run: that its evaluations or validations ended it early; "
    "numbered like the metrics",
    "priors_end.json": "in a run: that its class images are made, or why they could not be; "
    "numbered like the metrics",
    "set.json": "in a set of class images: what it was asked for",
}
PLACEHOLDERS = {"run_id": "RUN_ID", "digest": "HASH"}


def run_files() -> str:
    """Names of files and folders, from storage/paths.py."""
    text = (ROOT / "dreambooth_ray" / "storage" / "paths.py").read_text()
    from dreambooth_ray.storage import paths  # noqa: PLC0415

    names, shapes = [], []
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            value = str(node.value.value)
            comment = lines[node.lineno - 1].partition("  # ")[2]
            about = FILES.get(value) or cell(comment)
            if not about:
                sys.exit(f"{value!r} in storage/paths.py has no comment; give it one")
            names.append((code(value), about))
        returns = getattr(node, "returns", None)
        is_name = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        if is_name and returns and ast.unparse(returns) == "str":
            arguments = [example(a) for a in node.args.args]
            about = (ast.get_docstring(node) or "").splitlines()[0]
            shapes.append((code(getattr(paths, node.name)(*arguments)), cell(about)))
    return page(
        "Files of a run",
        "dreambooth_ray/storage/paths.py",
        "Everything lies below `storage.uri`: runs in `runs/RUN_ID/`, class images in "
        "`priors/HASH/`, uploaded photographs in `photographs/HASH/`. Other files are read only "
        "after the manifest that names them: a write is seen whole or not at all.",
        "## Names",
        table(("name", "what it is"), *names),
        "## Names with a number or a hash",
        "Numbers are examples. An artifact is a folder, its manifest and a pointer to it.",
        table(("looks like", "what it is"), *shapes),
    )


def example(argument: ast.arg) -> object:
    """A value for an argument of a function in storage/paths.py."""
    if argument.arg == "lease":
        return 2
    is_number = argument.annotation is not None and ast.unparse(argument.annotation) == "int"
    return 400 if is_number else PLACEHOLDERS.get(argument.arg, argument.arg.upper())
