"""Kinds of preservation side by side: at the end, at equal likeness, and at equal seconds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study_table import (
    Curve,
    compute_mean_and_deviation,
    format_mean_and_deviation,
    interpolate_scores_at_value,
)
from dreambooth_ray.config.count_text import describe_count

# Key of a score, and its column.
TITLES = {
    "dino": "subject fidelity, higher",
    "prompt_fidelity": "prompt fidelity, higher",
    "pres": "PRES, lower",
    "div": "DIV, higher",
    "class_div": "DIV of the bare class, higher",
    "drift": "other classes lost, lower",
}
BASELINE = "images"
_SECONDS_TITLES = {"seconds": "seconds of training", "with_images_s": "with class images"}
_COMPARISONS = {
    "equal_likeness": "At equal likeness",
    "equal_seconds": "At equal seconds, class images included",
}
MORE_IS_BETTER = {"dino", "prompt_fidelity", "div", "class_div"}


def summarize_by_method_and_kind(
    lines: list[tuple[str, str, dict[str, Any]]], class_images_s: Mapping[str, float]
) -> dict[str, Any]:
    """Every number of the page, by method and kind.

    lines: method, kind and cell; class_images_s: by method, what the class images of a run took on
    the machine that trained it
    """
    curves_by_method: dict[str, dict[str, dict[int, Curve]]] = {}
    for method, kind, cell_record in lines:
        curve = _read_curve(cell_record)
        if kind in ("images", "both"):
            curve["with_images_s"] = [s + class_images_s[method] for s in curve["seconds"]]
        curves_by_method.setdefault(method, {}).setdefault(kind, {})[cell_record["subject"]] = curve
    return {
        "methods": {m: _summarize_training_method(kinds) for m, kinds in curves_by_method.items()}
    }


def _read_curve(line: dict[str, Any]) -> Curve:
    scored_points = sorted(line["points"].items(), key=lambda item: int(item[0]))
    curve: Curve = {key: [p["judged"][key] for _, p in scored_points] for key in TITLES}
    curve["steps"] = [float(step) for step, _ in scored_points]
    curve["seconds"] = [p["seconds"]["trained"] for _, p in scored_points]
    curve["with_images_s"] = curve["seconds"]
    return curve


def _summarize_training_method(kinds: dict[str, dict[int, Curve]]) -> dict[str, Any]:
    subjects = sorted(set.intersection(*(set(curves) for curves in kinds.values())))
    curves_by_kind = {kind: [curves[s] for s in subjects] for kind, curves in kinds.items()}
    return {
        "subjects": subjects,
        "last": {kind: _summarize_last_scores(curves) for kind, curves in curves_by_kind.items()},
        "front": {kind: _average_curves(curves) for kind, curves in curves_by_kind.items()},
        "equal_likeness": {
            kind: _compare_at_likeness(curves, curves_by_kind[BASELINE])
            for kind, curves in curves_by_kind.items()
            if kind != BASELINE
        },
        "equal_seconds": {
            kind: _compare_at_seconds(curves, curves_by_kind[BASELINE])
            for kind, curves in curves_by_kind.items()
            if kind != BASELINE
        },
    }


def _summarize_last_scores(curves: list[Curve]) -> dict[str, Any]:
    score_keys = (*TITLES, "seconds", "with_images_s")
    return {
        key: compute_mean_and_deviation([curve[key][-1] for curve in curves]) for key in score_keys
    }


def _average_curves(curves: list[Curve]) -> Curve:
    return {
        key: [round(float(value), 4) for value in np.mean([c[key] for c in curves], axis=0)]
        for key in (*TITLES, "steps", "seconds", "with_images_s")
    }


def _compare_at_likeness(curves: list[Curve], baselines: list[Curve]) -> dict[str, Any]:
    """Where both are as faithful to the subject: at the lesser of their greatest fidelities."""
    score_pairs = []
    for curve, baseline_curve in zip(curves, baselines, strict=True):
        subject_fidelity = min(max(curve["dino"]), max(baseline_curve["dino"]))
        score_pairs.append(
            tuple(
                interpolate_scores_at_value(c, "dino", subject_fidelity)
                for c in (curve, baseline_curve)
            )
        )
    return _summarize_pairs(score_pairs)


def _compare_at_seconds(curves: list[Curve], baselines: list[Curve]) -> dict[str, Any]:
    """Where both have taken as long, class images included."""
    score_pairs = []
    for curve, baseline_curve in zip(curves, baselines, strict=True):
        compared_seconds = min(curve["with_images_s"][-1], baseline_curve["with_images_s"][-1])
        score_pairs.append(
            tuple(
                interpolate_scores_at_value(c, "with_images_s", compared_seconds)
                for c in (curve, baseline_curve)
            )
        )
    return _summarize_pairs(score_pairs)


def _summarize_pairs(pairs: list[tuple[dict[str, float], ...]]) -> dict[str, Any]:
    """Means of a kind and of class images, and in how many subjects the kind is better."""
    comparison_by_key = {}
    for key in (*TITLES, "steps", "seconds", "with_images_s"):
        better_flags = [
            (ours[key] > theirs[key]) if key in MORE_IS_BETTER else (ours[key] < theirs[key])
            for ours, theirs in pairs
        ]
        comparison_by_key[key] = {
            "kind": compute_mean_and_deviation([ours[key] for ours, _ in pairs]),
            BASELINE: compute_mean_and_deviation([theirs[key] for _, theirs in pairs]),
            "better_in": sum(better_flags),
        }
    return comparison_by_key


def format_page(results: dict[str, Any], setting: dict[str, Any]) -> str:
    """The summary as markdown."""
    page_lines = [
        "# Ways to keep what the model knows, measured",
        "",
        f"Random toy subjects{_describe_model(setting)}, {setting['steps']} steps of "
        f"{setting['photographs_a_step']} photographs; {setting['class_images']} class images took "
        f"{_describe_class_image_times(setting['class_images_s'])}. "
        "Seconds are the processor's. Made by `python -m benchmarks.preservation_study`; every "
        "cell is in the record beside this page.",
    ]
    for method, method_result in results["methods"].items():
        subject_count_text = describe_count(len(method_result["subjects"]), "subject")
        page_lines += [
            "",
            f"## {method}, {subject_count_text}",
            "",
            *format_last_scores(method_result),
        ]
        for key, title in _COMPARISONS.items():
            heading = (
                f"{title}: the kind / class images, and in how many subjects the kind is better"
            )
            page_lines += [
                "",
                heading,
                "",
                *_format_comparison_table(method_result[key], len(method_result["subjects"])),
            ]
    return "\n".join(page_lines) + "\n"


def _describe_class_image_times(class_images_s: Mapping[str, float]) -> str:
    return ", ".join(f"{seconds} s ({method})" for method, seconds in class_images_s.items())


def _describe_model(setting: dict[str, Any]) -> str:
    model = setting.get("model", "toyworld")
    return "" if model == "toyworld" else f" on `{model}`"


def format_last_scores(result: dict[str, Any]) -> list[str]:
    """Kinds after the last step, as a table."""
    column_titles = {**TITLES, **_SECONDS_TITLES}
    return [
        "| after the last step | " + " | ".join(column_titles.values()) + " |",
        "| --- |" + " ---: |" * len(column_titles),
        *(
            f"| {kind} | "
            + " | ".join(format_mean_and_deviation(row[k]) for k in column_titles)
            + " |"
            for kind, row in result["last"].items()
        ),
    ]


def format_equal_likeness(result: dict[str, Any]) -> list[str]:
    """Kinds where they are as faithful to the subject as class images are, as a table."""
    return _format_comparison_table(result["equal_likeness"], len(result["subjects"]))


def _format_comparison_table(table: dict[str, Any], num_subjects: int) -> list[str]:
    column_titles = {
        **TITLES,
        "steps": "steps",
        "seconds": "seconds",
        "with_images_s": "with class images",
    }
    return [
        "| kind | " + " | ".join(column_titles.values()) + " |",
        "| --- |" + " ---: |" * len(column_titles),
        *(
            f"| {kind} | "
            + " | ".join(
                f"{row[k]['kind']['mean']:.3f} / {row[k][BASELINE]['mean']:.3f}, "
                f"{row[k]['better_in']} of {num_subjects}"
                for k in column_titles
            )
            + " |"
            for kind, row in table.items()
        ),
    ]


def plot_fronts(results: dict[str, Any], path: Path) -> None:
    """Likeness to the subject against that of the bare class (PRES), a line a kind."""
    from matplotlib.figure import Figure  # noqa: PLC0415  takes a second

    results_by_method = results["methods"]
    figure = Figure(figsize=(5 * len(results_by_method), 4), layout="constrained")
    for index, (method, method_result) in enumerate(results_by_method.items()):
        axes = figure.add_subplot(1, len(results_by_method), index + 1)
        for kind, curve in method_result["front"].items():
            axes.plot(curve["dino"], curve["pres"], marker="o", label=kind)
        axes.set(title=method, xlabel="subject fidelity", ylabel="PRES (lower keeps the class)")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)
