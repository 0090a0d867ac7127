"""Pages for people: one HTML file each, its images inside it."""

import base64
import io
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from PIL import Image


def render_page(template: str, **values: object) -> str:
    """A page from `pages/{template}`; all values are escaped."""
    jinja_environment = Environment(
        loader=FunctionLoader(_read_page_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return jinja_environment.get_template(template).render(**values)


def _read_page_template(name: str) -> str:
    return (files("dreambooth_ray.evaluation") / "pages" / name).read_text(encoding="utf-8")


def image_data_uri(image: Image.Image, side_px: int) -> str:
    """A JPEG data URI of the image, reduced to `side_px` if it is larger."""
    thumbnail = image.convert("RGB")
    thumbnail.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    jpeg_buffer = io.BytesIO()
    thumbnail.save(jpeg_buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg_buffer.getvalue()).decode()
