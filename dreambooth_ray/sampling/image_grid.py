"""Several images as one grid."""

from PIL import Image


def image_grid(images: list[Image.Image], columns: int, gap_px: int = 2) -> Image.Image:
    """Equal-sized images in rows of `columns` on white."""
    width, height = images[0].size
    num_grid_rows = -(-len(images) // columns)
    grid_image = Image.new(
        "RGB",
        (columns * (width + gap_px) - gap_px, num_grid_rows * (height + gap_px) - gap_px),
        (255, 255, 255),
    )
    for i, image in enumerate(images):
        grid_image.paste(image, (i % columns * (width + gap_px), i // columns * (height + gap_px)))
    return grid_image
