"""The shapes of class images: those of the photographs that they are trained beside."""

from collections.abc import Iterable

from dreambooth_ray.config.count_text import describe_count
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.image_shapes import ImageShape
from dreambooth_ray.data.subject import Photograph
from dreambooth_ray.errors import ConfigError


def list_class_shapes(config: Config, photographs: Iterable[Photograph]) -> tuple[ImageShape, ...]:
    """All shapes of these photographs; none where all are squares of one size.

    raises: ConfigError if there would be too few class images of each for a step
    """
    shapes = tuple(
        sorted({view.shape for photograph in photographs for view in photograph.at_all_resolutions})
    )
    side_px = config.train.side_px
    if shapes == ((side_px, side_px),):
        return ()
    prior_count, batch_size = config.prior.num_images, config.train.batch_size
    min_images_per_shape = config.num_class_images // len(shapes)
    if prior_count and min_images_per_shape < batch_size:
        num_validation_class_images = prior_count - config.num_class_images
        raise ConfigError(
            f"prior.count={prior_count} makes "
            f"{describe_count(min_images_per_shape, 'class image')} in each of the "
            f"photographs' {len(shapes)} shapes, and a step may need train.batch_size={batch_size} "
            f"of one; set prior.count={num_validation_class_images + batch_size * len(shapes)} or "
            "more"
        )
    return shapes
