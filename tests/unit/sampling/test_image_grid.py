from PIL import Image

from dreambooth_ray.sampling.image_grid import image_grid


def test_a_grid_holds_all_images(tile: Image.Image) -> None:
    assert image_grid([tile] * 5, columns=3, gap_px=2).size == (3 * 66 - 2, 2 * 66 - 2)
