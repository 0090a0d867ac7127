"""Several pictures on one sheet."""

from PIL import Image


def image_grid(pictures: list[Image.Image], columns: int, gap_px: int = 2) -> Image.Image:
    """Equal-sized pictures in rows of `columns` on white."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new(
        "RGB",
        (columns * (width + gap_px) - gap_px, rows * (height + gap_px) - gap_px),
        (255, 255, 255),
    )
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * (width + gap_px), i // columns * (height + gap_px)))
    return sheet
