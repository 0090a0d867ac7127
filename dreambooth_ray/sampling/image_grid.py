"""Several images as one grid."""

from PIL import Image


def image_grid(images: list[Image.Image], columns: int, gap_px: int = 2) -> Image.Image:
    """Equal-sized images in rows of `columns` on white."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new(
        "RGB",
        (columns * (width + gap_px) - gap_px, rows * (height + gap_px) - gap_px),
        (255, 255, 255),
    )
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * (width + gap_px), i // columns * (height + gap_px)))
    return sheet
