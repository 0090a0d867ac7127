"""A world that knows the truth about its images.

A `Subject` is one individual (that robot); a `SceneLayout` is one photograph's circumstances.
`render_image(subject, scene)` is pure: the same two give the same image at any size.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from dreambooth_ray.toyworld.attributes import (
    ACCENTS,
    BACKGROUND_NAMES,
    CLASSES,
    COLOUR_NAMES,
    COLOURS,
    PATTERN_INK,
    PATTERNS,
)
from dreambooth_ray.toyworld.scenery import SCENERY, FractionCanvas
from dreambooth_ray.toyworld.shapes import SHAPES, Point, ShapeVariation

SUPERSAMPLE = 4
_ROLE_COLOURS = {
    "dark": (46, 46, 54),
    "light": (250, 250, 250),
    "glass": (168, 220, 240),
    "stem": (44, 120, 48),
    "rope": (110, 84, 60),
}
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Subject:
    """One individual. `tint` shifts its colour by up to 14 of 255 a channel."""

    class_noun: str
    colour: str
    pattern: str
    accent: int
    traits: ShapeVariation
    tint: Colour

    @property
    def body_colour(self) -> Colour:
        """Its colour with the tint."""
        r, g, b = (
            min(255, max(0, c + t)) for c, t in zip(COLOURS[self.colour], self.tint, strict=True)
        )
        return (r, g, b)


@dataclass(frozen=True)
class SceneLayout:
    """One image's circumstances. x, y, scale are fractions of the side; angle in degrees."""

    background: str
    hat: bool
    x: float
    y: float
    scale: float
    angle_deg: float
    mirrored: bool
    seed: int


def random_subject(seed: int, index: int = 0, class_noun: str | None = None) -> Subject:
    """Subject `index` of the world drawn from `seed`: a pure function of its arguments."""
    rng = np.random.default_rng([seed, 1, index])
    random_class_noun = CLASSES[rng.integers(len(CLASSES))]
    return Subject(
        class_noun=class_noun or random_class_noun,
        colour=COLOUR_NAMES[rng.integers(len(COLOUR_NAMES))],
        pattern=PATTERNS[rng.integers(len(PATTERNS))],
        accent=int(rng.integers(len(ACCENTS))),
        traits=ShapeVariation(int(rng.integers(3)), float(rng.uniform()), float(rng.uniform())),
        tint=(int(rng.integers(-14, 15)), int(rng.integers(-14, 15)), int(rng.integers(-14, 15))),
    )


def random_scene_layout(seed: int, index: int, background: str | None = None) -> SceneLayout:
    """Scene `index` of the world drawn from `seed`: a pure function of its arguments."""
    rng = np.random.default_rng([seed, 2, index])
    random_background = BACKGROUND_NAMES[rng.integers(len(BACKGROUND_NAMES))]
    return SceneLayout(
        background=background or random_background,
        hat=bool(rng.uniform() < 0.25),
        x=float(rng.uniform(0.44, 0.56)),
        y=float(rng.uniform(0.56, 0.63)),
        scale=float(rng.uniform(0.31, 0.38)),
        angle_deg=float(rng.uniform(-9, 9)),
        mirrored=bool(rng.uniform() < 0.5),
        seed=int(rng.integers(2**31)),
    )


class _SubjectFrame:
    """Maps an object's frame to canvas pixels."""

    def __init__(self, scene: SceneLayout, side: int) -> None:
        angle = math.radians(scene.angle_deg)
        self._c = math.cos(angle) * scene.scale * side
        self._s = math.sin(angle) * scene.scale * side
        self._x, self._y = scene.x * side, scene.y * side
        self._m = -1.0 if scene.mirrored else 1.0

    def __call__(self, points: list[Point]) -> list[Point]:
        cos_scale, sin_scale, centre_x, centre_y, mirror_sign = (
            self._c,
            self._s,
            self._x,
            self._y,
            self._m,
        )
        return [
            (
                centre_x + cos_scale * mirror_sign * x - sin_scale * y,
                centre_y + sin_scale * mirror_sign * x + cos_scale * y,
            )
            for x, y in points
        ]


def _render_pattern(subject: Subject, frame: _SubjectFrame, side: int) -> Image.Image:
    """A canvas covered with the subject's pattern, fixed to the subject's frame."""
    pattern_image = Image.new("RGB", (side, side), subject.body_colour)
    draw, pattern_colour = ImageDraw.Draw(pattern_image), PATTERN_INK[subject.colour]
    if subject.pattern == "striped":
        for x in np.arange(-1.22, 1.3, 0.44):
            draw.polygon(
                frame([(x, -1.2), (x + 0.2, -1.2), (x + 0.2, 1.2), (x, 1.2)]), fill=pattern_colour
            )
    elif subject.pattern == "spotted":
        spot_radius = 0.115 * abs(math.dist(frame([(0, 0)])[0], frame([(1, 0)])[0]))
        for row_index, y in enumerate(np.arange(-1.1, 1.2, 0.34)):
            for x in np.arange(-1.28 + 0.2 * (row_index % 2), 1.3, 0.4):
                (cx, cy) = frame([(x, y)])[0]
                draw.ellipse(
                    (cx - spot_radius, cy - spot_radius, cx + spot_radius, cy + spot_radius),
                    fill=pattern_colour,
                )
    elif subject.pattern == "checkered":
        for row_index, y in enumerate(np.arange(-1.2, 1.2, 0.28)):
            for x in np.arange(-1.28 + 0.28 * (row_index % 2), 1.3, 0.56):
                square_points = [(x, y), (x + 0.28, y), (x + 0.28, y + 0.28), (x, y + 0.28)]
                draw.polygon(frame(square_points), fill=pattern_colour)
    return pattern_image


def _draw_hat(draw: ImageDraw.ImageDraw, crown: Point, frame: _SubjectFrame) -> None:
    x, y = crown
    draw.polygon(
        frame([(x - 0.3, y + 0.06), (x, y - 0.62), (x + 0.3, y + 0.06)]), fill=(236, 60, 150)
    )
    hat_band = [
        (x - 0.21, y - 0.14),
        (x - 0.12, y - 0.34),
        (x + 0.12, y - 0.34),
        (x + 0.21, y - 0.14),
    ]
    draw.polygon(frame(hat_band), fill=(252, 236, 80))
    (cx, cy) = frame([(x, y - 0.64)])[0]
    (pompom_edge_x, pompom_edge_y) = frame([(x + 0.12, y - 0.64)])[0]
    pompom_radius = math.dist((cx, cy), (pompom_edge_x, pompom_edge_y))
    draw.ellipse(
        (cx - pompom_radius, cy - pompom_radius, cx + pompom_radius, cy + pompom_radius),
        fill=(252, 250, 240),
    )


def render_image(subject: Subject, scene: SceneLayout, size_px: int = 64) -> Image.Image:
    """One image, `size_px` square RGB, drawn large and reduced so that edges are smooth."""
    side = size_px * SUPERSAMPLE
    canvas = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(canvas)
    SCENERY[scene.background](FractionCanvas(draw, side), np.random.default_rng(scene.seed))
    background_image = canvas.copy()
    subject_frame = _SubjectFrame(scene, side)
    drawn_shape = SHAPES[subject.class_noun](subject.traits)
    is_black_body = subject.colour == "black"
    outline_colour: Colour = (150, 150, 158) if is_black_body else (34, 30, 36)
    outline_width = max(1, round(side * 0.014))
    pattern_image = _render_pattern(subject, subject_frame, side)
    for polygon_role, points in drawn_shape.parts:
        canvas_points = subject_frame(points)
        if polygon_role in ("body", "hole"):
            polygon_mask = Image.new("1", (side, side))
            ImageDraw.Draw(polygon_mask).polygon(canvas_points, fill=1)
            canvas.paste(
                pattern_image if polygon_role == "body" else background_image, mask=polygon_mask
            )
        else:
            part_colour = (
                ACCENTS[subject.accent] if polygon_role == "accent" else _ROLE_COLOURS[polygon_role]
            )
            draw.polygon(canvas_points, fill=part_colour)
        if polygon_role in ("body", "accent", "hole"):
            draw.line(
                [*canvas_points, canvas_points[0]],
                fill=outline_colour,
                width=outline_width,
                joint="curve",
            )
    if scene.hat:
        _draw_hat(draw, drawn_shape.crown, subject_frame)
    return canvas.reduce(SUPERSAMPLE)


def render_photographs(
    subject: Subject, seed: int, count: int, size_px: int = 256
) -> list[Image.Image]:
    """`count` photographs of one subject in everyday places, no hat.

    Only four backgrounds are used, so that the other six are new contexts for it.
    """
    backgrounds = PHOTO_BACKGROUNDS
    scenes = [
        replace(random_scene_layout(seed, 7919 + k, backgrounds[k % len(backgrounds)]), hat=False)
        for k in range(count)
    ]
    return [render_image(subject, scene, size_px) for scene in scenes]


PHOTO_BACKGROUNDS = ("plain", "table", "grass", "city")
