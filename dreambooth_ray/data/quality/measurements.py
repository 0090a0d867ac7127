"""Numbers about one photograph, from its pixels alone, without a network.

The bounds that turn them into issues are in `photo_checks.py` and `inspection.py`.
"""

import math

import numpy as np
from PIL import Image

SHARPNESS_SIDE_PX = 512
_TILE_PX = 32
_HASH_SIDE_PX = 32
_RIM_SAMPLES = 250


def _resize_short_side(image: Image.Image, side_px: int) -> Image.Image:
    """Short side to `side_px`."""
    scale = side_px / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _to_grey(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"), dtype=np.float32)


def _split_tiles(plane: np.ndarray, side: int) -> np.ndarray:
    """(H, W) to (tiles, side * side); what is left over at the edges is dropped."""
    rows, columns = plane.shape[0] // side, plane.shape[1] // side
    cut = plane[: rows * side, : columns * side]
    return cut.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side * side)


def sharpness(image: Image.Image) -> float:
    """Finest detail against contrast, where the image is sharpest; 0.6 and up is sharp.

    Root of the 80th percentile, over tiles of more than middling contrast, of the
    Laplacian's variance over the grey values' variance, at 512 px: a soft background
    does not count against a sharp subject.
    """
    grey = _to_grey(_resize_short_side(image, min(SHARPNESS_SIDE_PX, *image.size)))
    north, south, west, east = grey[:-2, 1:-1], grey[2:, 1:-1], grey[1:-1, :-2], grey[1:-1, 2:]
    laplacian = 4 * grey[1:-1, 1:-1] - north - south - west - east
    side = min(_TILE_PX, *laplacian.shape)
    detail = _split_tiles(laplacian, side).var(axis=1)
    contrast = _split_tiles(grey[1:-1, 1:-1], side).var(axis=1)
    busy = contrast >= np.percentile(contrast, 60)
    # The constant keeps the grain of an even wall from reading as detail.
    return float(np.sqrt(np.percentile(detail[busy] / (contrast[busy] + 25), 80)))


def brightness(image: Image.Image) -> tuple[float, float]:
    """10th and 90th percentile of the grey values, 0 to 255."""
    low, high = np.percentile(_to_grey(_resize_short_side(image, min(256, *image.size))), [10, 90])
    return float(low), float(high)


def bars(image: Image.Image) -> tuple[int, int, int, int]:
    """Width in pixels of the even bars at left, top, right and bottom; 0 where there is none."""
    grey = _to_grey(image)
    columns, rows = grey.std(axis=0) < 2.5, grey.std(axis=1) < 2.5
    dark_columns, dark_rows = grey.mean(axis=0) < 12, grey.mean(axis=1) < 12
    across, down = columns & dark_columns, rows & dark_rows
    return _bar_width(across), _bar_width(down), _bar_width(across[::-1]), _bar_width(down[::-1])


def _bar_width(marks: np.ndarray) -> int:
    return len(marks) if marks.all() else int(np.argmin(marks))


def crop_bars(image: Image.Image) -> Image.Image:
    """The image inside its bars; all of it where nothing else would be left."""
    left_px, top_px, right_px, bottom_px = bars(image)
    width, height = image.width - left_px - right_px, image.height - top_px - bottom_px
    if min(width, height) < 16:
        return image
    return image.crop((left_px, top_px, left_px + width, top_px + height))


def to_lab(image: Image.Image) -> np.ndarray:
    """(H, W, 3) float32 CIE L*a*b*, D65, of an sRGB image."""
    rgb = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32
    )
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089], np.float32)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    planes = (116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2]))
    return np.stack(planes, axis=-1).astype(np.float32)


def extents(image: Image.Image) -> tuple[float, float]:
    """Share of the frame that the subject spreads over, by colour and by detail.

    By colour: pixels unlike all but 2 % of the frame's edge. By detail: the tenth of the
    pixels with the steepest change, weighted by how much steeper it is than all the others', so
    that a soft ground's slow changes weigh nothing beside an edge. Each is the area of the
    ellipse of two standard deviations around where they lie; an estimate of size, not a
    segmentation.
    """
    inner = crop_bars(image)
    colours = to_lab(_resize_short_side(inner, 64))
    edge = max(2, len(colours) // 20)
    rim = np.concatenate(
        [part.reshape(-1, 3) for part in (
            colours[:edge], colours[-edge:], colours[:, :edge], colours[:, -edge:]
        )]
    )  # fmt: skip
    rim = rim[:: max(1, len(rim) // _RIM_SAMPLES)]
    squares = (colours**2).sum(axis=-1)[..., None] + (rim**2).sum(axis=-1)
    distance = np.sqrt(np.maximum(squares - 2 * colours @ rim.T, 0))
    near = int(0.02 * len(rim))
    unlike = np.partition(distance, near, axis=-1)[..., near]
    bound = max(_otsu_threshold(unlike.ravel()), 6.0)
    return _ellipse_area(np.where(unlike > bound, unlike, 0)), _ellipse_area(_steepness(inner))


def _steepness(image: Image.Image) -> np.ndarray:
    planes = to_lab(_resize_short_side(image, 128))
    change = (
        np.abs(np.diff(planes, axis=1)).sum(axis=-1)[:-1]
        + np.abs(np.diff(planes, axis=0)).sum(axis=-1)[:, :-1]
    )
    excess: np.ndarray = np.maximum(change - np.percentile(change, 90), 0)
    return excess


def _otsu_threshold(values: np.ndarray) -> float:
    """The bound that parts values into two groups as far apart as can be (Otsu 1979)."""
    counts, edges = np.histogram(values, 64)
    middles = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts), counts.sum()
    moment = np.cumsum(counts * middles)
    inside = (below > 0) & (below < total)
    if not inside.any():
        return float(edges[-1])
    b, m = below[inside], moment[inside]
    between = b * (total - b) * (m / b - (moment[-1] - m) / (total - b)) ** 2
    return float(middles[inside][np.argmax(between)])


def _ellipse_area(weights: np.ndarray) -> float:
    """Area of the two-deviation ellipse of weights over a frame of area 1; 0 if none."""
    total = float(weights.sum())
    if not total:
        return 0.0
    height, width = weights.shape
    y, x = np.mgrid[:height, :width]
    x, y = x / width, y / height
    dx, dy = x - (weights * x).sum() / total, y - (weights * y).sum() / total
    xx, yy = (weights * dx * dx).sum() / total, (weights * dy * dy).sum() / total
    xy = (weights * dx * dy).sum() / total
    return float(4 * math.pi * np.sqrt(max(xx * yy - xy * xy, 0.0)))


def perceptual_hash(image: Image.Image) -> int:
    """64 bits that small changes leave alone: signs of the lowest cosine frequencies.

    pHash: the 8 x 8 lowest DCT coefficients of a 32 x 32 grey thumbnail, constant left
    out, against their median.
    """
    side = _HASH_SIDE_PX
    grey = _to_grey(image.convert("L").resize((side, side), Image.Resampling.LANCZOS))
    k, n = np.mgrid[:9, :side]
    basis = np.cos(math.pi * k * (2 * n + 1) / (2 * side))
    low = (basis @ grey @ basis.T)[:8, 1:9].ravel()
    bits = low > np.median(low)
    return int("".join("1" if bit else "0" for bit in bits), 2)


def hash_distance(one: int, other: int) -> int:
    """Bits that differ, 0 to 64."""
    return (one ^ other).bit_count()


def rim_colour(image: Image.Image) -> np.ndarray:
    """(3, 4, 3) mean L*a*b* of the frame's edge, in 12 cells around the middle: what is behind."""
    small = to_lab(crop_bars(image).resize((60, 60), Image.Resampling.BOX))
    cells = small.reshape(4, 15, 4, 15, 3).mean(axis=(1, 3))
    rim_cells = [cells[r, c] for r in range(4) for c in range(4) if r in (0, 3) or c in (0, 3)]
    return np.stack(rim_cells).reshape(3, 4, 3)
