"""Plot and table of the measured ratios, from the records alone."""

import json
from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"


def read_benchmark_records(folder: Path) -> list[dict[str, Any]]:
    """Every record of `bench` in a folder, by name; raises ConfigError if there is none."""
    contents = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    # Programs of their own, `benchmarks.gpu` for one, write records of other shapes beside them.
    records = [record for record in contents if {"theme", "setting"} <= record.keys()]
    if not records:
        raise ConfigError(
            f"{folder} holds no record; measure with `dreambooth bench THEME --json {folder}/...`"
        )
    return records


def format_table(records: list[dict[str, Any]]) -> str:
    """One row a case: the ratio with its spread, the bar, and under which conditions."""
    table_lines = [
        "| theme | case | against | ratio, or seconds (p5 to p95) | bar | conditions |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for record in records:
        for case in record["cases"]:
            table_lines.append(_format_row(record, case))
    return "\n".join(table_lines)


def _format_row(record: dict[str, Any], case: dict[str, Any]) -> str:
    conditions = record["conditions"]
    load_averages = conditions["load_average"][0], record["load_average_after"][0]
    conditions_text = (
        f"{record['setting']['profile']}, {conditions['cores']} cores, load {max(load_averages)}"
    )
    result_text, threshold_text = _format_result(case), ""
    if case.get("bar") is not None:
        threshold_text = f"{case['bar']:.2f}" + (" of memory" if "bar_is_of" in case else "")
    elif "bar_s" in case:
        threshold_text = f"{case['bar_s']:.0f} s"
    if threshold_text and not case.get("reached", False):
        threshold_text += ", not reached"
    cell_texts = (
        record["theme"],
        case["case"],
        case["peer"],
        result_text,
        threshold_text,
        conditions_text,
    )
    return f"| {' | '.join(cell_texts)} |"


def _format_result(case: dict[str, Any]) -> str:
    if "out_of_memory" in case:
        return f"out of memory: {case['out_of_memory']}"
    result_quantiles, unit = (case["seconds"], " s") if "seconds" in case else (case["ratio"], "")
    result_text = (
        f"{result_quantiles['median']:.2f}{unit} "
        f"({result_quantiles['p5']:.2f} to {result_quantiles['p95']:.2f})"
    )
    result_text += ", unsteady" if "unsteady" in case else ""
    return result_text + (f"; memory {case['memory_ratio']:.2f}" if "memory_ratio" in case else "")


def put_table(readme: Path, text: str, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Put the table between the marks of a file; raises ConfigError if they are not there."""
    begin_mark, end_mark = marks
    text_before, found_begin_mark, text_after_begin_mark = readme.read_text().partition(begin_mark)
    _, found_end_mark, text_after = text_after_begin_mark.partition(end_mark)
    if not found_begin_mark or not found_end_mark:
        raise ConfigError(f"{readme} has no {begin_mark} and {end_mark} to put the table between")
    readme.write_text(f"{text_before}{begin_mark}\n{text}\n{end_mark}{text_after}")


def plot_ratios(records: list[dict[str, Any]], path: Path) -> None:
    """A bar a case from 1, our rate over theirs, with p5 and p95."""
    from matplotlib.figure import Figure  # noqa: PLC0415  comes with the extra alone

    labelled_cases = [
        (f"{r['theme']}: {c['case']}", c) for r in records for c in r["cases"] if "ratio" in c
    ]
    figure = Figure(figsize=(8, 1 + 0.4 * len(labelled_cases)), layout="constrained")
    axes = figure.subplots()
    for row_index, (_, case) in enumerate(labelled_cases):
        ratio = case["ratio"]
        axes.barh(row_index, ratio["median"] - 1, left=1, color="#4477aa")
        axes.plot([ratio["p5"], ratio["p95"]], [row_index, row_index], color="black", linewidth=1.5)
        if case.get("bar") is not None and "bar_is_of" not in case:
            axes.plot([case["bar"]] * 2, [row_index - 0.4, row_index + 0.4], color="#cc3311")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(
        range(len(labelled_cases)), [f"{name} ({case['peer']})" for name, case in labelled_cases]
    )
    axes.invert_yaxis()
    axes.set_xlabel("our rate over theirs; line: p5 to p95; red: the bar")
    figure.savefig(path, format="svg", metadata={"Date": None})
