"""A world that knows the truth about its images.

A `Subject` is one individual (that robot); a `Scene` is one photograph's circumstances.
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
from dreambooth_ray.toyworld.scenery import SCENERY, Brush
from dreambooth_ray.toyworld.shapes import SHAPES, Point, Traits

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
    traits: Traits
    tint: Colour

    @property
    def body_colour(self) -> Colour:
        """Its colour with the tint."""
        r, g, b = (
            min(255, max(0, c + t)) for c, t in zip(COLOURS[self.colour], self.tint, strict=True)
        )
        return (r, g, b)


@dataclass(frozen=True)
class Scene:
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
    chosen = CLASSES[rng.integers(len(CLASSES))]
    return Subject(
        class_noun=class_noun or chosen,
        colour=COLOUR_NAMES[rng.integers(len(COLOUR_NAMES))],
        pattern=PATTERNS[rng.integers(len(PATTERNS))],
        accent=int(rng.integers(len(ACCENTS))),
        traits=Traits(int(rng.integers(3)), float(rng.uniform()), float(rng.uniform())),
        tint=(int(rng.integers(-14, 15)), int(rng.integers(-14, 15)), int(rng.integers(-14, 15))),
    )


def random_scene(seed: int, index: int, background: str | None = None) -> Scene:
    """Scene `index` of the world drawn from `seed`: a pure function of its arguments."""
    rng = np.random.default_rng([seed, 2, index])
    chosen = BACKGROUND_NAMES[rng.integers(len(BACKGROUND_NAMES))]
    return Scene(
        background=background or chosen,
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

    def __init__(self, scene: Scene, side: int) -> None:
        a = math.radians(scene.angle_deg)
        self._c, self._s = math.cos(a) * scene.scale * side, math.sin(a) * scene.scale * side
        self._x, self._y = scene.x * side, scene.y * side
        self._m = -1.0 if scene.mirrored else 1.0

    def __call__(self, points: list[Point]) -> list[Point]:
        c, s, x0, y0, m = self._c, self._s, self._x, self._y, self._m
        return [(x0 + c * m * x - s * y, y0 + s * m * x + c * y) for x, y in points]


def _render_pattern(subject: Subject, frame: _SubjectFrame, side: int) -> Image.Image:
    """A canvas covered with the subject's pattern, fixed to the subject's frame."""
    pattern_image = Image.new("RGB", (side, side), subject.body_colour)
    draw, ink = ImageDraw.Draw(pattern_image), PATTERN_INK[subject.colour]
    if subject.pattern == "striped":
        for x in np.arange(-1.22, 1.3, 0.44):
            draw.polygon(frame([(x, -1.2), (x + 0.2, -1.2), (x + 0.2, 1.2), (x, 1.2)]), fill=ink)
    elif subject.pattern == "spotted":
        radius = 0.115 * abs(math.dist(frame([(0, 0)])[0], frame([(1, 0)])[0]))
        for row, y in enumerate(np.arange(-1.1, 1.2, 0.34)):
            for x in np.arange(-1.28 + 0.2 * (row % 2), 1.3, 0.4):
                (cx, cy) = frame([(x, y)])[0]
                draw.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=ink)
    elif subject.pattern == "checkered":
        for row, y in enumerate(np.arange(-1.2, 1.2, 0.28)):
            for x in np.arange(-1.28 + 0.28 * (row % 2), 1.3, 0.56):
                square = [(x, y), (x + 0.28, y), (x + 0.28, y + 0.28), (x, y + 0.28)]
                draw.polygon(frame(square), fill=ink)
    return pattern_image


def _draw_hat(draw: ImageDraw.ImageDraw, crown: Point, frame: _SubjectFrame) -> None:
    x, y = crown
    draw.polygon(
        frame([(x - 0.3, y + 0.06), (x, y - 0.62), (x + 0.3, y + 0.06)]), fill=(236, 60, 150)
    )
    band = [(x - 0.21, y - 0.14), (x - 0.12, y - 0.34), (x + 0.12, y - 0.34), (x + 0.21, y - 0.14)]
    draw.polygon(frame(band), fill=(252, 236, 80))
    (cx, cy) = frame([(x, y - 0.64)])[0]
    (ex, ey) = frame([(x + 0.12, y - 0.64)])[0]
    r = math.dist((cx, cy), (ex, ey))
    draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=(252, 250, 240))


def render_image(subject: Subject, scene: Scene, size_px: int = 64) -> Image.Image:
    """One image, `size_px` square RGB, drawn large and reduced so that edges are smooth."""
    side = size_px * SUPERSAMPLE
    canvas = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(canvas)
    SCENERY[scene.background](Brush(draw, side), np.random.default_rng(scene.seed))
    backdrop = canvas.copy()
    frame = _SubjectFrame(scene, side)
    shape = SHAPES[subject.class_noun](subject.traits)
    dark_body = subject.colour == "black"
    outline: Colour = (150, 150, 158) if dark_body else (34, 30, 36)
    width = max(1, round(side * 0.014))
    pattern_image = _render_pattern(subject, frame, side)
    for role, points in shape.parts:
        outer = frame(points)
        if role in ("body", "hole"):
            mask = Image.new("1", (side, side))
            ImageDraw.Draw(mask).polygon(outer, fill=1)
            canvas.paste(pattern_image if role == "body" else backdrop, mask=mask)
        else:
            fill = ACCENTS[subject.accent] if role == "accent" else _ROLE_COLOURS[role]
            draw.polygon(outer, fill=fill)
        if role in ("body", "accent", "hole"):
            draw.line([*outer, outer[0]], fill=outline, width=width, joint="curve")
    if scene.hat:
        _draw_hat(draw, shape.crown, frame)
    return canvas.reduce(SUPERSAMPLE)


def photographs(subject: Subject, seed: int, count: int, size_px: int = 256) -> list[Image.Image]:
    """`count` photographs of one subject in everyday places, no hat.

    Only four backgrounds are used, so that the other six are new contexts for it.
    """
    backgrounds = PHOTO_BACKGROUNDS
    scenes = [
        replace(random_scene(seed, 7919 + k, backgrounds[k % len(backgrounds)]), hat=False)
        for k in range(count)
    ]
    return [render_image(subject, scene, size_px) for scene in scenes]


PHOTO_BACKGROUNDS = ("plain", "table", "grass", "city")
