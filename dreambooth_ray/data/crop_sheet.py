"""What a training sees of photographs, drawn for people."""

from PIL import Image, ImageDraw

from dreambooth_ray.data.masks import darken_outside_mask
from dreambooth_ray.data.photographs import read_photograph
from dreambooth_ray.data.subject import Photograph

_SIDE_PX, _GAP_PX, _TEXT_PX = 256, 6, 16


def draw_crops(photographs: list[Photograph], *, is_squeezed: bool) -> list[Image.Image]:
    """A cell for each photograph at each resolution: the whole with what is seen of it in a frame,
    and beside it what training gets; all of one size.

    is_squeezed: whether all of a photograph is seen, as with train.crop=none
    """
    return [
        _draw_cell(view, is_squeezed)
        for photograph in photographs
        for view in photograph.at_all_resolutions
    ]


def _draw_cell(view: Photograph, is_squeezed: bool) -> Image.Image:
    whole_photograph = read_photograph(view.path)
    width, height = whole_photograph.size
    training_crop_box = (0, 0, width, height) if is_squeezed else view.crop_box
    training_crop_share = (
        (training_crop_box[2] - training_crop_box[0])
        * (training_crop_box[3] - training_crop_box[1])
        / (width * height)
    )
    ImageDraw.Draw(whole_photograph).rectangle(
        (
            training_crop_box[0],
            training_crop_box[1],
            training_crop_box[2] - 1,
            training_crop_box[3] - 1,
        ),
        outline=(255, 0, 0),
        width=max(2, width // 80),
    )
    sheet_cell = Image.new("RGB", (2 * _SIDE_PX + _GAP_PX, _SIDE_PX + _TEXT_PX), (255, 255, 255))
    for column_index, image in enumerate((whole_photograph, _darken_background(view))):
        thumbnail = image.copy()
        thumbnail.thumbnail((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
        sheet_cell.paste(thumbnail, (column_index * (_SIDE_PX + _GAP_PX), _TEXT_PX))
    cell_caption = (
        f"{view.path.name} {width}x{height} -> {view.shape.text}, {training_crop_share:.0%} seen"
    )
    ImageDraw.Draw(sheet_cell).text((2, 2), cell_caption, fill=(0, 0, 0))
    return sheet_cell


def _darken_background(view: Photograph) -> Image.Image:
    """What training gets; where it has a mask, dark outside it."""
    if view.mask is None:
        return view.image
    return darken_outside_mask(view.image, view.mask)
