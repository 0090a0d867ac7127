"""One module a model family, and one for what it computes; see `dreambooth_ray.models.family`."""
