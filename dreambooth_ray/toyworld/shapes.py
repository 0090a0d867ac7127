"""How each class of thing is drawn: polygons in the object's own frame.

The frame is [-1, 1] x [-1, 1], y downwards. A part is (role, points); roles are
"body" (the subject's colour and pattern), "accent", "dark", "light" and "glass".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

Point = tuple[float, float]
Part = tuple[str, list[Point]]


@dataclass(frozen=True)
class Traits:
    """What makes one subject of a class differ from another, beyond colour and pattern.

    variant: 0, 1 or 2, the form of its accessories
    girth, reach: 0 to 1, proportions
    """

    variant: int
    girth: float
    reach: float


@dataclass(frozen=True)
class Shape:
    """parts: in drawing order; crown: where a hat's brim sits."""

    parts: list[Part]
    crown: Point


def ellipse(cx: float, cy: float, rx: float, ry: float, num_points: int = 28) -> list[Point]:
    """Points on an ellipse, clockwise from its right end."""
    turn = 2 * math.pi / num_points
    return [(cx + rx * math.cos(i * turn), cy + ry * math.sin(i * turn)) for i in range(num_points)]


def box(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    """An upright rectangle."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _robot(t: Traits) -> Shape:
    w, head = 0.44 + 0.2 * t.girth, 0.32 + 0.14 * t.reach
    parts: list[Part] = [
        ("dark", box(-w + 0.05, 0.5, -w + 0.3, 0.98)),
        ("dark", box(w - 0.3, 0.5, w - 0.05, 0.98)),
        ("accent", box(-w - 0.28, -0.1, -w, 0.42)),
        ("accent", box(w, -0.1, w + 0.28, 0.42)),
        ("body", box(-w, -0.22, w, 0.62)),
        ("body", box(-head, -0.86, head, -0.26)),
        ("light", ellipse(-head * 0.48, -0.58, 0.13, 0.13)),
        ("light", ellipse(head * 0.48, -0.58, 0.13, 0.13)),
        ("dark", ellipse(-head * 0.48, -0.58, 0.06, 0.06, 12)),
        ("dark", ellipse(head * 0.48, -0.58, 0.06, 0.06, 12)),
    ]
    if t.variant == 1:
        parts.append(("accent", ellipse(0, 0.18, 0.2, 0.2)))
    elif t.variant == 2:
        parts.append(("accent", box(-0.26, -0.02, 0.26, 0.3)))
    return Shape(parts, (0.0, -0.86))


def _car(t: Traits) -> Shape:
    roof, wheel = 0.36 + 0.16 * t.reach, 0.2 + 0.09 * t.girth
    body = [(-0.98, 0.42), (-0.98, 0.02), (-0.6, -0.06), (0.66, -0.06), (0.98, 0.1), (0.98, 0.42)]
    cabin = [(-0.62, 0.0), (-roof, -0.56), (roof - 0.06, -0.56), (0.6, 0.0)]
    parts: list[Part] = [
        ("body", cabin),
        ("glass", [(-0.44, -0.04), (-roof + 0.12, -0.42), (-0.05, -0.42), (-0.05, -0.04)]),
        ("glass", [(0.06, -0.04), (0.06, -0.42), (roof - 0.16, -0.42), (0.4, -0.04)]),
        ("body", body),
        ("dark", ellipse(-0.52, 0.46, wheel, wheel)),
        ("dark", ellipse(0.52, 0.46, wheel, wheel)),
        ("accent", ellipse(-0.52, 0.46, wheel * 0.55, wheel * 0.55)),
        ("accent", ellipse(0.52, 0.46, wheel * 0.55, wheel * 0.55)),
    ]
    if t.variant == 1:
        parts.insert(0, ("accent", box(-1.0, -0.34, -0.66, 0.0)))
    elif t.variant == 2:
        parts.append(("accent", box(-0.98, 0.1, 0.98, 0.22)))
    return Shape(parts, (0.0, -0.56))


def _teapot(t: Traits) -> Shape:
    rx, ry = 0.5 + 0.12 * t.girth, 0.42 + 0.1 * t.reach
    spout = [(rx * 0.8, 0.4), (0.98, -0.28), (0.8, -0.34), (rx * 0.7, 0.0)]
    parts: list[Part] = [
        ("accent", ellipse(-rx - 0.08, 0.16, 0.34, 0.34)),
        ("hole", ellipse(-rx - 0.08, 0.16, 0.18, 0.18)),
        ("body", spout),
        ("body", ellipse(0, 0.2, rx, ry)),
        ("accent", box(-0.32, 0.2 + ry * 0.86, 0.32, 0.2 + ry + 0.1)),
        ("accent", ellipse(0, 0.2 - ry, 0.32, 0.12)),
    ]
    if t.variant != 0:
        parts.append(("dark" if t.variant == 1 else "accent", ellipse(0, 0.02 - ry, 0.13, 0.13)))
    if t.variant == 2:
        parts.append(("light", ellipse(0, 0.2, 0.17, 0.17)))
    return Shape(parts, (0.0, 0.12 - ry))


def _flower(t: Traits) -> Shape:
    petals, radius = 5 + t.variant, 0.24 + 0.05 * t.girth
    heart = 0.2 + 0.1 * t.reach
    parts: list[Part] = [
        ("stem", box(-0.06, 0.2, 0.06, 0.98)),
        ("stem", ellipse(0.24, 0.66, 0.22, 0.1)),
    ]
    for i in range(petals):
        a = 2 * math.pi * i / petals - math.pi / 2
        parts.append(
            ("body", ellipse(0.42 * math.cos(a), -0.26 + 0.42 * math.sin(a), radius, radius))
        )
    parts.append(("accent", ellipse(0, -0.26, heart, heart)))
    return Shape(parts, (0.0, -0.74))


def _star(t: Traits) -> Shape:
    inner = 0.4 + 0.14 * t.girth
    points: list[Point] = []
    for i in range(10):
        r, a = (0.98 if i % 2 == 0 else inner), math.pi * i / 5 - math.pi / 2
        points.append((r * math.cos(a), r * math.sin(a)))
    parts: list[Part] = [("body", points)]
    core = 0.18 + 0.1 * t.reach
    if t.variant == 0:
        parts.append(("accent", ellipse(0, 0.02, core, core)))
    elif t.variant == 1:
        parts += [
            ("light", ellipse(-0.2, -0.08, 0.13, 0.15)),
            ("light", ellipse(0.2, -0.08, 0.13, 0.15)),
            ("dark", ellipse(-0.2, -0.08, 0.06, 0.07, 12)),
            ("dark", ellipse(0.2, -0.08, 0.06, 0.07, 12)),
            ("accent", ellipse(0, 0.24, core, 0.08)),
        ]
    else:
        parts.append(("accent", [(-core, 0.0), (0, -core * 1.3), (core, 0.0), (0, core * 1.3)]))
    return Shape(parts, (0.0, -0.86))


def _dog(t: Traits) -> Shape:
    leg, belly = 0.1 + 0.05 * t.girth, 0.28 + 0.1 * t.girth
    tail = -0.3 - 0.3 * t.reach
    parts: list[Part] = [
        ("body", [(-0.72, 0.04), (-0.98, tail), (-0.82, tail - 0.06), (-0.56, 0.0)]),
        ("body", box(-0.66, 0.3, -0.66 + 2 * leg, 0.96)),
        ("body", box(0.26, 0.3, 0.26 + 2 * leg, 0.96)),
        ("body", ellipse(-0.14, 0.24, 0.62, belly)),
        ("body", ellipse(0.52, -0.28, 0.36, 0.34)),
        ("body", ellipse(0.8, -0.16, 0.2, 0.15)),
        ("dark", ellipse(0.94, -0.2, 0.08, 0.08, 12)),
        ("light", ellipse(0.6, -0.38, 0.1, 0.1, 16)),
        ("dark", ellipse(0.62, -0.38, 0.05, 0.05, 12)),
    ]
    ears = {
        0: ellipse(0.3, -0.2, 0.13, 0.3),
        1: [(0.22, -0.42), (0.26, -0.9), (0.5, -0.56)],
        2: ellipse(0.28, -0.46, 0.2, 0.2),
    }
    parts.append(("accent", ears[t.variant]))
    parts.append(("accent", [(0.2, 0.0), (0.66, 0.06), (0.64, 0.2), (0.14, 0.12)]))
    return Shape(parts, (0.52, -0.6))


def _house(t: Traits) -> Shape:
    w, roof = 0.56 + 0.16 * t.girth, -0.62 - 0.3 * t.reach
    parts: list[Part] = [
        ("body", box(-w, -0.16, w, 0.92)),
        ("accent", [(-w - 0.2, -0.12), (0, roof), (w + 0.2, -0.12)]),
        ("dark", box(-0.16, 0.38, 0.16, 0.92)),
    ]
    if t.variant == 0:
        parts += [
            ("glass", box(-w + 0.1, 0.06, -0.2, 0.36)),
            ("glass", box(0.2, 0.06, w - 0.1, 0.36)),
        ]
    elif t.variant == 1:
        parts.append(("glass", ellipse(0, 0.1, 0.18, 0.18)))
    else:
        parts.insert(1, ("dark", box(0.28, roof - 0.02, 0.5, -0.2)))
        parts.append(("glass", box(0.22, 0.1, w - 0.08, 0.42)))
    return Shape(parts, (0.0, roof + 0.06))


def _fish(t: Traits) -> Shape:
    ry, tail = 0.34 + 0.14 * t.girth, 0.3 + 0.18 * t.reach
    fins = {
        0: [(-0.3, -ry * 0.8), (0.1, -ry - 0.32), (0.3, -ry * 0.8)],
        1: [(-0.46, -ry * 0.6), (-0.4, -ry - 0.3), (-0.1, -ry * 0.9)],
        2: box(-0.36, -ry - 0.14, 0.3, -ry * 0.7),
    }
    parts: list[Part] = [
        ("accent", [(-0.5, 0.0), (-0.98, -tail), (-0.84, 0.0), (-0.98, tail)]),
        ("accent", fins[t.variant]),
        ("body", ellipse(0.12, 0, 0.72, ry)),
        ("accent", [(-0.02, 0.06), (-0.26, 0.3), (0.14, 0.22)]),
        ("light", ellipse(0.56, -0.1, 0.12, 0.12)),
        ("dark", ellipse(0.58, -0.1, 0.06, 0.06, 12)),
    ]
    return Shape(parts, (0.26, -ry * 0.94))


def _boat(t: Traits) -> Shape:
    hull, mast = 0.66 + 0.2 * t.girth, -0.84 + 0.16 * t.reach
    parts: list[Part] = [
        ("body", [(-0.98, 0.22), (0.98, 0.22), (hull, 0.82), (-hull, 0.82)]),
        ("dark", box(-0.05, mast, 0.05, 0.24)),
    ]
    if t.variant == 0:
        parts.append(("accent", [(0.1, mast), (0.1, 0.1), (0.8, 0.1)]))
    elif t.variant == 1:
        parts.append(("accent", [(0.1, mast), (0.1, 0.1), (0.7, 0.1)]))
        parts.append(("light", [(-0.1, mast + 0.1), (-0.1, 0.1), (-0.6, 0.1)]))
    else:
        parts.append(("accent", box(-0.56, mast + 0.12, 0.56, 0.02)))
    return Shape(parts, (0.0, mast + 0.04))


def _balloon(t: Traits) -> Shape:
    rx, ry = 0.52 + 0.14 * t.girth, 0.62
    basket = 0.14 + 0.08 * t.reach
    parts: list[Part] = [
        (
            "rope",
            [(-rx * 0.7, 0.1), (-basket + 0.03, 0.76), (-basket - 0.03, 0.76), (-rx * 0.8, 0.1)],
        ),
        ("rope", [(rx * 0.7, 0.1), (basket - 0.03, 0.76), (basket + 0.03, 0.76), (rx * 0.8, 0.1)]),
        ("body", ellipse(0, -0.34, rx, ry)),
        ("accent", box(-basket, 0.7, basket, 0.98)),
    ]
    if t.variant == 1:
        parts.append(("accent", ellipse(0, -0.34, 0.2, 0.2)))
    elif t.variant == 2:
        parts.append(("accent", [(-rx, -0.3), (rx, -0.3), (rx * 0.96, -0.12), (-rx * 0.96, -0.12)]))
    return Shape(parts, (0.0, -0.92))


SHAPES: dict[str, Callable[[Traits], Shape]] = {
    "robot": _robot,
    "car": _car,
    "teapot": _teapot,
    "flower": _flower,
    "star": _star,
    "dog": _dog,
    "house": _house,
    "fish": _fish,
    "boat": _boat,
    "balloon": _balloon,
}
