"""Fidelity against drift, as an image."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from dreambooth_ray.evaluation.pareto_front import ScoredCheckpoint, find_front

_SIZE_PX, _EDGE_PX = (560, 420), 56
_INK, _FAINT, _LINE, _BEST = (30, 30, 30), (150, 150, 150), (47, 109, 181), (42, 125, 63)


def plot_front(
    scored: Sequence[ScoredCheckpoint], best: int | None, max_drift: float
) -> Image.Image:
    """Every checkpoint as a dot with its step; the front joined, the best ringed, the bound dashed.

    560 x 420 RGB
    """
    canvas = Image.new("RGB", _SIZE_PX, (255, 255, 255))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    drifts, fidelities = [s.drift for s in scored], [s.fidelity for s in scored]
    x_min, x_max = _axis_range([*drifts, max_drift] if drifts else [0.0, 1.0])
    y_min, y_max = _axis_range(fidelities or [0.0, 1.0])
    width, height = _SIZE_PX[0] - 2 * _EDGE_PX, _SIZE_PX[1] - 2 * _EDGE_PX

    def to_pixels(drift: float, fidelity: float) -> tuple[float, float]:
        x = _EDGE_PX + (drift - x_min) / (x_max - x_min) * width
        return x, _EDGE_PX + (y_max - fidelity) / (y_max - y_min) * height

    draw.rectangle((_EDGE_PX, _EDGE_PX, _EDGE_PX + width, _EDGE_PX + height), outline=_FAINT)
    for axis_fraction in (0.0, 0.5, 1.0):
        x, y = to_pixels(
            x_min + axis_fraction * (x_max - x_min), y_min + axis_fraction * (y_max - y_min)
        )
        draw.text(
            (x - 14, _EDGE_PX + height + 6),
            f"{x_min + axis_fraction * (x_max - x_min):.2f}",
            _INK,
            font,
        )
        draw.text((12, y - 8), f"{y_min + axis_fraction * (y_max - y_min):.2f}", _INK, font)
    draw.text((_EDGE_PX, 14), "fidelity (up) against drift (right) of the checkpoints", _INK, font)
    drift_limit_x, _ = to_pixels(max_drift, y_min)
    for y in range(_EDGE_PX, _EDGE_PX + height, 10):
        draw.line((drift_limit_x, y, drift_limit_x, y + 5), fill=_FAINT)
    front = sorted(find_front(scored), key=lambda s: s.drift)
    draw.line([to_pixels(s.drift, s.fidelity) for s in front], fill=_LINE, width=2)
    for checkpoint in scored:
        x, y = to_pixels(checkpoint.drift, checkpoint.fidelity)
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=_LINE)
        if checkpoint.step == best:
            draw.ellipse((x - 9, y - 9, x + 9, y + 9), outline=_BEST, width=3)
        draw.text((x + 8, y - 18), str(checkpoint.step), _INK, font)
    return canvas


def _axis_range(values: list[float]) -> tuple[float, float]:
    margin = max(0.05 * (max(values) - min(values)), 0.01)
    return min(values) - margin, max(values) + margin
