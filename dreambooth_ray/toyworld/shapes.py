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
class ShapeVariation:
    """What makes one subject of a class differ from another, beyond colour and pattern.

    variant: 0, 1 or 2, the form of its accessories
    girth, reach: 0 to 1, proportions
    """

    variant: int
    girth: float
    reach: float


@dataclass(frozen=True)
class ShapeGeometry:
    """parts: in drawing order; crown: where a hat's brim sits."""

    parts: list[Part]
    crown: Point


def ellipse_points(cx: float, cy: float, rx: float, ry: float, num_points: int = 28) -> list[Point]:
    """Points on an ellipse, clockwise from its right end."""
    angle_step = 2 * math.pi / num_points
    return [
        (cx + rx * math.cos(i * angle_step), cy + ry * math.sin(i * angle_step))
        for i in range(num_points)
    ]


def rectangle_points(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    """An upright rectangle."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _robot(t: ShapeVariation) -> ShapeGeometry:
    body_half_width, head_half_width = 0.44 + 0.2 * t.girth, 0.32 + 0.14 * t.reach
    shape_parts: list[Part] = [
        ("dark", rectangle_points(-body_half_width + 0.05, 0.5, -body_half_width + 0.3, 0.98)),
        ("dark", rectangle_points(body_half_width - 0.3, 0.5, body_half_width - 0.05, 0.98)),
        ("accent", rectangle_points(-body_half_width - 0.28, -0.1, -body_half_width, 0.42)),
        ("accent", rectangle_points(body_half_width, -0.1, body_half_width + 0.28, 0.42)),
        ("body", rectangle_points(-body_half_width, -0.22, body_half_width, 0.62)),
        ("body", rectangle_points(-head_half_width, -0.86, head_half_width, -0.26)),
        ("light", ellipse_points(-head_half_width * 0.48, -0.58, 0.13, 0.13)),
        ("light", ellipse_points(head_half_width * 0.48, -0.58, 0.13, 0.13)),
        ("dark", ellipse_points(-head_half_width * 0.48, -0.58, 0.06, 0.06, 12)),
        ("dark", ellipse_points(head_half_width * 0.48, -0.58, 0.06, 0.06, 12)),
    ]
    if t.variant == 1:
        shape_parts.append(("accent", ellipse_points(0, 0.18, 0.2, 0.2)))
    elif t.variant == 2:
        shape_parts.append(("accent", rectangle_points(-0.26, -0.02, 0.26, 0.3)))
    return ShapeGeometry(shape_parts, (0.0, -0.86))


def _car(t: ShapeVariation) -> ShapeGeometry:
    roof_half_width, wheel_radius = 0.36 + 0.16 * t.reach, 0.2 + 0.09 * t.girth
    body_points = [
        (-0.98, 0.42),
        (-0.98, 0.02),
        (-0.6, -0.06),
        (0.66, -0.06),
        (0.98, 0.1),
        (0.98, 0.42),
    ]
    cabin_points = [
        (-0.62, 0.0),
        (-roof_half_width, -0.56),
        (roof_half_width - 0.06, -0.56),
        (0.6, 0.0),
    ]
    shape_parts: list[Part] = [
        ("body", cabin_points),
        (
            "glass",
            [(-0.44, -0.04), (-roof_half_width + 0.12, -0.42), (-0.05, -0.42), (-0.05, -0.04)],
        ),
        ("glass", [(0.06, -0.04), (0.06, -0.42), (roof_half_width - 0.16, -0.42), (0.4, -0.04)]),
        ("body", body_points),
        ("dark", ellipse_points(-0.52, 0.46, wheel_radius, wheel_radius)),
        ("dark", ellipse_points(0.52, 0.46, wheel_radius, wheel_radius)),
        ("accent", ellipse_points(-0.52, 0.46, wheel_radius * 0.55, wheel_radius * 0.55)),
        ("accent", ellipse_points(0.52, 0.46, wheel_radius * 0.55, wheel_radius * 0.55)),
    ]
    if t.variant == 1:
        shape_parts.insert(0, ("accent", rectangle_points(-1.0, -0.34, -0.66, 0.0)))
    elif t.variant == 2:
        shape_parts.append(("accent", rectangle_points(-0.98, 0.1, 0.98, 0.22)))
    return ShapeGeometry(shape_parts, (0.0, -0.56))


def _teapot(t: ShapeVariation) -> ShapeGeometry:
    rx, ry = 0.5 + 0.12 * t.girth, 0.42 + 0.1 * t.reach
    spout_points = [(rx * 0.8, 0.4), (0.98, -0.28), (0.8, -0.34), (rx * 0.7, 0.0)]
    shape_parts: list[Part] = [
        ("accent", ellipse_points(-rx - 0.08, 0.16, 0.34, 0.34)),
        ("hole", ellipse_points(-rx - 0.08, 0.16, 0.18, 0.18)),
        ("body", spout_points),
        ("body", ellipse_points(0, 0.2, rx, ry)),
        ("accent", rectangle_points(-0.32, 0.2 + ry * 0.86, 0.32, 0.2 + ry + 0.1)),
        ("accent", ellipse_points(0, 0.2 - ry, 0.32, 0.12)),
    ]
    if t.variant != 0:
        shape_parts.append(
            ("dark" if t.variant == 1 else "accent", ellipse_points(0, 0.02 - ry, 0.13, 0.13))
        )
    if t.variant == 2:
        shape_parts.append(("light", ellipse_points(0, 0.2, 0.17, 0.17)))
    return ShapeGeometry(shape_parts, (0.0, 0.12 - ry))


def _flower(t: ShapeVariation) -> ShapeGeometry:
    num_petals, petal_radius = 5 + t.variant, 0.24 + 0.05 * t.girth
    centre_radius = 0.2 + 0.1 * t.reach
    shape_parts: list[Part] = [
        ("stem", rectangle_points(-0.06, 0.2, 0.06, 0.98)),
        ("stem", ellipse_points(0.24, 0.66, 0.22, 0.1)),
    ]
    for i in range(num_petals):
        petal_angle = 2 * math.pi * i / num_petals - math.pi / 2
        x, y = 0.42 * math.cos(petal_angle), -0.26 + 0.42 * math.sin(petal_angle)
        shape_parts.append(("body", ellipse_points(x, y, petal_radius, petal_radius)))
    shape_parts.append(("accent", ellipse_points(0, -0.26, centre_radius, centre_radius)))
    return ShapeGeometry(shape_parts, (0.0, -0.74))


def _star(t: ShapeVariation) -> ShapeGeometry:
    inner_radius = 0.4 + 0.14 * t.girth
    points: list[Point] = []
    for i in range(10):
        r, corner_angle = (0.98 if i % 2 == 0 else inner_radius), math.pi * i / 5 - math.pi / 2
        points.append((r * math.cos(corner_angle), r * math.sin(corner_angle)))
    shape_parts: list[Part] = [("body", points)]
    core_radius = 0.18 + 0.1 * t.reach
    if t.variant == 0:
        shape_parts.append(("accent", ellipse_points(0, 0.02, core_radius, core_radius)))
    elif t.variant == 1:
        shape_parts += [
            ("light", ellipse_points(-0.2, -0.08, 0.13, 0.15)),
            ("light", ellipse_points(0.2, -0.08, 0.13, 0.15)),
            ("dark", ellipse_points(-0.2, -0.08, 0.06, 0.07, 12)),
            ("dark", ellipse_points(0.2, -0.08, 0.06, 0.07, 12)),
            ("accent", ellipse_points(0, 0.24, core_radius, 0.08)),
        ]
    else:
        rx, ry = core_radius, core_radius * 1.3
        shape_parts.append(("accent", [(-rx, 0.0), (0, -ry), (rx, 0.0), (0, ry)]))
    return ShapeGeometry(shape_parts, (0.0, -0.86))


def _dog(t: ShapeVariation) -> ShapeGeometry:
    leg_half_width, belly_radius = 0.1 + 0.05 * t.girth, 0.28 + 0.1 * t.girth
    tail_tip_y = -0.3 - 0.3 * t.reach
    shape_parts: list[Part] = [
        ("body", [(-0.72, 0.04), (-0.98, tail_tip_y), (-0.82, tail_tip_y - 0.06), (-0.56, 0.0)]),
        ("body", rectangle_points(-0.66, 0.3, -0.66 + 2 * leg_half_width, 0.96)),
        ("body", rectangle_points(0.26, 0.3, 0.26 + 2 * leg_half_width, 0.96)),
        ("body", ellipse_points(-0.14, 0.24, 0.62, belly_radius)),
        ("body", ellipse_points(0.52, -0.28, 0.36, 0.34)),
        ("body", ellipse_points(0.8, -0.16, 0.2, 0.15)),
        ("dark", ellipse_points(0.94, -0.2, 0.08, 0.08, 12)),
        ("light", ellipse_points(0.6, -0.38, 0.1, 0.1, 16)),
        ("dark", ellipse_points(0.62, -0.38, 0.05, 0.05, 12)),
    ]
    ear_points = {
        0: ellipse_points(0.3, -0.2, 0.13, 0.3),
        1: [(0.22, -0.42), (0.26, -0.9), (0.5, -0.56)],
        2: ellipse_points(0.28, -0.46, 0.2, 0.2),
    }
    shape_parts.append(("accent", ear_points[t.variant]))
    shape_parts.append(("accent", [(0.2, 0.0), (0.66, 0.06), (0.64, 0.2), (0.14, 0.12)]))
    return ShapeGeometry(shape_parts, (0.52, -0.6))


def _house(t: ShapeVariation) -> ShapeGeometry:
    wall_half_width, roof_top_y = 0.56 + 0.16 * t.girth, -0.62 - 0.3 * t.reach
    shape_parts: list[Part] = [
        ("body", rectangle_points(-wall_half_width, -0.16, wall_half_width, 0.92)),
        (
            "accent",
            [(-wall_half_width - 0.2, -0.12), (0, roof_top_y), (wall_half_width + 0.2, -0.12)],
        ),
        ("dark", rectangle_points(-0.16, 0.38, 0.16, 0.92)),
    ]
    if t.variant == 0:
        shape_parts += [
            ("glass", rectangle_points(-wall_half_width + 0.1, 0.06, -0.2, 0.36)),
            ("glass", rectangle_points(0.2, 0.06, wall_half_width - 0.1, 0.36)),
        ]
    elif t.variant == 1:
        shape_parts.append(("glass", ellipse_points(0, 0.1, 0.18, 0.18)))
    else:
        shape_parts.insert(1, ("dark", rectangle_points(0.28, roof_top_y - 0.02, 0.5, -0.2)))
        shape_parts.append(("glass", rectangle_points(0.22, 0.1, wall_half_width - 0.08, 0.42)))
    return ShapeGeometry(shape_parts, (0.0, roof_top_y + 0.06))


def _fish(t: ShapeVariation) -> ShapeGeometry:
    ry, tail_half_height = 0.34 + 0.14 * t.girth, 0.3 + 0.18 * t.reach
    fin_points = {
        0: [(-0.3, -ry * 0.8), (0.1, -ry - 0.32), (0.3, -ry * 0.8)],
        1: [(-0.46, -ry * 0.6), (-0.4, -ry - 0.3), (-0.1, -ry * 0.9)],
        2: rectangle_points(-0.36, -ry - 0.14, 0.3, -ry * 0.7),
    }
    shape_parts: list[Part] = [
        (
            "accent",
            [(-0.5, 0.0), (-0.98, -tail_half_height), (-0.84, 0.0), (-0.98, tail_half_height)],
        ),
        ("accent", fin_points[t.variant]),
        ("body", ellipse_points(0.12, 0, 0.72, ry)),
        ("accent", [(-0.02, 0.06), (-0.26, 0.3), (0.14, 0.22)]),
        ("light", ellipse_points(0.56, -0.1, 0.12, 0.12)),
        ("dark", ellipse_points(0.58, -0.1, 0.06, 0.06, 12)),
    ]
    return ShapeGeometry(shape_parts, (0.26, -ry * 0.94))


def _boat(t: ShapeVariation) -> ShapeGeometry:
    hull_half_width, mast_top_y = 0.66 + 0.2 * t.girth, -0.84 + 0.16 * t.reach
    shape_parts: list[Part] = [
        ("body", [(-0.98, 0.22), (0.98, 0.22), (hull_half_width, 0.82), (-hull_half_width, 0.82)]),
        ("dark", rectangle_points(-0.05, mast_top_y, 0.05, 0.24)),
    ]
    if t.variant == 0:
        shape_parts.append(("accent", [(0.1, mast_top_y), (0.1, 0.1), (0.8, 0.1)]))
    elif t.variant == 1:
        shape_parts.append(("accent", [(0.1, mast_top_y), (0.1, 0.1), (0.7, 0.1)]))
        shape_parts.append(("light", [(-0.1, mast_top_y + 0.1), (-0.1, 0.1), (-0.6, 0.1)]))
    else:
        shape_parts.append(("accent", rectangle_points(-0.56, mast_top_y + 0.12, 0.56, 0.02)))
    return ShapeGeometry(shape_parts, (0.0, mast_top_y + 0.04))


def _balloon(t: ShapeVariation) -> ShapeGeometry:
    rx, ry = 0.52 + 0.14 * t.girth, 0.62
    basket_half_width = 0.14 + 0.08 * t.reach
    shape_parts: list[Part] = [
        (
            "rope",
            [
                (-rx * 0.7, 0.1),
                (-basket_half_width + 0.03, 0.76),
                (-basket_half_width - 0.03, 0.76),
                (-rx * 0.8, 0.1),
            ],
        ),
        (
            "rope",
            [
                (rx * 0.7, 0.1),
                (basket_half_width - 0.03, 0.76),
                (basket_half_width + 0.03, 0.76),
                (rx * 0.8, 0.1),
            ],
        ),
        ("body", ellipse_points(0, -0.34, rx, ry)),
        ("accent", rectangle_points(-basket_half_width, 0.7, basket_half_width, 0.98)),
    ]
    if t.variant == 1:
        shape_parts.append(("accent", ellipse_points(0, -0.34, 0.2, 0.2)))
    elif t.variant == 2:
        shape_parts.append(
            ("accent", [(-rx, -0.3), (rx, -0.3), (rx * 0.96, -0.12), (-rx * 0.96, -0.12)])
        )
    return ShapeGeometry(shape_parts, (0.0, -0.92))


SHAPES: dict[str, Callable[[ShapeVariation], ShapeGeometry]] = {
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
