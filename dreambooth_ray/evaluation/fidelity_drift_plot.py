"""Fidelity against drift, as an image."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from dreambooth_ray.evaluation.pareto_front import ScoredCheckpoint, find_fidelity_drift_front

_SIZE_PX, _EDGE_PX = (560, 420), 56
_INK, _FAINT, _LINE, _BEST = (30, 30, 30), (150, 150, 150), (47, 109, 181), (42, 125, 63)


def plot_pareto_front(
    scored: Sequence[ScoredCheckpoint], best: int | None, max_drift: float
) -> Image.Image:
    """Every checkpoint as a dot with its step; the front joined, the best ringed, the bound dashed.

    560 x 420 RGB
    """
    canvas = Image.new("RGB", _SIZE_PX, (255, 255, 255))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    drifts, fidelities = [s.drift for s in scored], [s.fidelity for s in scored]
    drift_min, drift_max = _axis_range([*drifts, max_drift] if drifts else [0.0, 1.0])
    fidelity_min, fidelity_max = _axis_range(fidelities or [0.0, 1.0])
    width, height = _SIZE_PX[0] - 2 * _EDGE_PX, _SIZE_PX[1] - 2 * _EDGE_PX

    def to_pixels(drift: float, fidelity: float) -> tuple[float, float]:
        x = _EDGE_PX + (drift - drift_min) / (drift_max - drift_min) * width
        return x, _EDGE_PX + (fidelity_max - fidelity) / (fidelity_max - fidelity_min) * height

    draw.rectangle((_EDGE_PX, _EDGE_PX, _EDGE_PX + width, _EDGE_PX + height), outline=_FAINT)
    for axis_fraction in (0.0, 0.5, 1.0):
        x, y = to_pixels(
            drift_min + axis_fraction * (drift_max - drift_min),
            fidelity_min + axis_fraction * (fidelity_max - fidelity_min),
        )
        draw.text(
            (x - 14, _EDGE_PX + height + 6),
            f"{drift_min + axis_fraction * (drift_max - drift_min):.2f}",
            _INK,
            font,
        )
        draw.text(
            (12, y - 8),
            f"{fidelity_min + axis_fraction * (fidelity_max - fidelity_min):.2f}",
            _INK,
            font,
        )
    draw.text((_EDGE_PX, 14), "fidelity (up) against drift (right) of the checkpoints", _INK, font)
    drift_limit_x, _ = to_pixels(max_drift, fidelity_min)
    for y in range(_EDGE_PX, _EDGE_PX + height, 10):
        draw.line((drift_limit_x, y, drift_limit_x, y + 5), fill=_FAINT)
    pareto_front = sorted(find_fidelity_drift_front(scored), key=lambda s: s.drift)
    draw.line([to_pixels(s.drift, s.fidelity) for s in pareto_front], fill=_LINE, width=2)
    for scored_checkpoint in scored:
        x, y = to_pixels(scored_checkpoint.drift, scored_checkpoint.fidelity)
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=_LINE)
        if scored_checkpoint.step == best:
            draw.ellipse((x - 9, y - 9, x + 9, y + 9), outline=_BEST, width=3)
        draw.text((x + 8, y - 18), str(scored_checkpoint.step), _INK, font)
    return canvas


def _axis_range(values: list[float]) -> tuple[float, float]:
    axis_margin = max(0.05 * (max(values) - min(values)), 0.01)
    return min(values) - axis_margin, max(values) + axis_margin
