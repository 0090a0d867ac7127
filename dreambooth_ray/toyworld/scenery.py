"""The ten backgrounds. Coordinates are fractions of the image's side, y downwards."""

from collections.abc import Callable

import numpy as np
from PIL import ImageDraw

Colour = tuple[int, int, int]


class FractionCanvas:
    """Draws in fractions of a square canvas of `side` pixels."""

    def __init__(self, draw: ImageDraw.ImageDraw, side: int) -> None:
        self.draw, self.side = draw, side

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
        """Fill a rectangle."""
        s = self.side
        self.draw.rectangle((x0 * s, y0 * s, x1 * s, y1 * s), fill=fill)

    def disc(self, x: float, y: float, r: float, fill: Colour, squash: float = 1.0) -> None:
        """Fill an ellipse of half-width r and half-height r * squash."""
        s = self.side
        self.draw.ellipse(
            ((x - r) * s, (y - r * squash) * s, (x + r) * s, (y + r * squash) * s), fill=fill
        )

    def polygon(self, points: list[tuple[float, float]], fill: Colour) -> None:
        """Fill a polygon."""
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=fill)


def _grass(b: FractionCanvas, rng: np.random.Generator) -> None:
    horizon = rng.uniform(0.4, 0.6)
    b.box(0, 0, 1, horizon, (150, 208, 244))
    b.box(0, horizon, 1, 1, (104, 188, 72))
    for _ in range(7):
        x, y = rng.uniform(0, 1), rng.uniform(horizon + 0.06, 0.98)
        b.polygon([(x - 0.03, y), (x, y - 0.1), (x + 0.03, y)], (60, 142, 48))


def _beach(b: FractionCanvas, rng: np.random.Generator) -> None:
    horizon = rng.uniform(0.28, 0.4)
    shore_y = horizon + rng.uniform(0.16, 0.26)
    b.box(0, 0, 1, horizon, (172, 224, 248))
    b.box(0, horizon, 1, shore_y, (44, 138, 200))
    b.box(0, shore_y, 1, 1, (240, 218, 160))
    b.disc(rng.uniform(0.1, 0.9), 0.12, 0.09, (255, 232, 110))
    b.box(0, shore_y - 0.02, 1, shore_y + 0.02, (246, 248, 244))


def _snow(b: FractionCanvas, rng: np.random.Generator) -> None:
    horizon = rng.uniform(0.42, 0.58)
    b.box(0, 0, 1, horizon, (176, 196, 220))
    peak_x = rng.uniform(0.2, 0.8)
    b.polygon([(peak_x - 0.4, horizon), (peak_x, 0.12), (peak_x + 0.4, horizon)], (136, 158, 190))
    b.polygon([(peak_x - 0.12, 0.26), (peak_x, 0.12), (peak_x + 0.12, 0.26)], (240, 244, 250))
    b.box(0, horizon, 1, 1, (232, 240, 250))
    for _ in range(10):
        b.disc(rng.uniform(0, 1), rng.uniform(0, 1), 0.022, (252, 253, 255))


def _night(b: FractionCanvas, rng: np.random.Generator) -> None:
    b.box(0, 0, 1, 1, (20, 24, 66))
    b.box(0, rng.uniform(0.76, 0.86), 1, 1, (34, 44, 54))
    x, y = rng.uniform(0.12, 0.88), rng.uniform(0.1, 0.2)
    b.disc(x, y, 0.1, (248, 244, 200))
    b.disc(x + 0.05, y - 0.02, 0.085, (20, 24, 66))
    for _ in range(12):
        b.disc(rng.uniform(0, 1), rng.uniform(0, 0.7), 0.014, (240, 240, 220))


def _desert(b: FractionCanvas, rng: np.random.Generator) -> None:
    horizon = rng.uniform(0.46, 0.58)
    b.box(0, 0, 1, horizon, (252, 196, 128))
    b.disc(rng.uniform(0.1, 0.9), horizon, 0.14, (250, 232, 150))
    b.box(0, horizon, 1, 1, (222, 168, 92))
    b.disc(rng.uniform(0, 1), 1.02, 0.5, (204, 146, 76), 0.6)
    x = rng.choice([rng.uniform(0.06, 0.18), rng.uniform(0.82, 0.94)])
    b.box(x - 0.03, 0.3, x + 0.03, 0.74, (78, 128, 62))
    b.box(x - 0.1, 0.42, x + 0.1, 0.48, (78, 128, 62))


def _forest(b: FractionCanvas, rng: np.random.Generator) -> None:
    b.box(0, 0, 1, 1, (30, 86, 52))
    b.box(0, 0.8, 1, 1, (62, 76, 40))
    for i in range(5):
        x = 0.02 + 0.23 * i + rng.uniform(-0.05, 0.05)
        b.box(x - 0.035, 0, x + 0.035, 0.84, (84, 60, 40))
    for _ in range(7):
        b.disc(rng.uniform(0, 1), rng.uniform(0, 0.12), 0.13, (24, 116, 56))


def _table(b: FractionCanvas, rng: np.random.Generator) -> None:
    table_edge_y = rng.uniform(0.44, 0.56)
    b.box(0, 0, 1, table_edge_y, (236, 224, 202))
    b.box(0, table_edge_y, 1, 1, (172, 112, 62))
    b.box(0, table_edge_y, 1, table_edge_y + 0.03, (112, 68, 34))
    for y in np.arange(table_edge_y + 0.14, 1, 0.14):
        b.box(0, y, 1, y + 0.018, (132, 82, 42))


def _plain(b: FractionCanvas, rng: np.random.Generator) -> None:
    grey_level = int(rng.integers(176, 216))
    b.box(0, 0, 1, 1, (grey_level, grey_level, grey_level))


def _city(b: FractionCanvas, rng: np.random.Generator) -> None:
    b.box(0, 0, 1, 1, (196, 204, 214))
    x = -0.04
    while x < 1:
        building_width, building_top = rng.uniform(0.16, 0.26), rng.uniform(0.06, 0.42)
        shade = int(rng.integers(96, 142))
        b.box(x, building_top, x + building_width - 0.02, 0.82, (shade, shade, shade + 16))
        for window_y in np.arange(building_top + 0.05, 0.74, 0.12):
            for window_x in np.arange(x + 0.035, x + building_width - 0.06, 0.085):
                b.box(window_x, window_y, window_x + 0.04, window_y + 0.055, (250, 226, 140))
        x += building_width
    b.box(0, 0.8, 1, 1, (84, 86, 92))


def _underwater(b: FractionCanvas, rng: np.random.Generator) -> None:
    b.box(0, 0, 1, 1, (20, 128, 160))
    b.box(0, 0, 1, 0.22, (52, 168, 190))
    b.box(0, 0.86, 1, 1, (190, 180, 130))
    for _ in range(7):
        b.disc(rng.uniform(0, 1), rng.uniform(0.05, 0.8), rng.uniform(0.018, 0.04), (190, 236, 244))
    for _ in range(3):
        x = rng.uniform(0, 1)
        b.polygon([(x - 0.03, 0.9), (x + 0.02, 0.58), (x + 0.05, 0.9)], (30, 150, 84))


SCENERY: dict[str, Callable[[FractionCanvas, np.random.Generator], None]] = {
    "grass": _grass,
    "beach": _beach,
    "snow": _snow,
    "night": _night,
    "desert": _desert,
    "forest": _forest,
    "table": _table,
    "plain": _plain,
    "city": _city,
    "water": _underwater,
}
