"""The base models that an endpoint serves, looked at before anything is started."""

from pathlib import Path

from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.models.model_directory import model_directory


def check_models(config: ServeConfig) -> dict[str, str]:
    """URIs of the models by id, absolute; raises ConfigError naming one that can't be loaded."""
    uris = {}
    for name, uri in config.models.items():
        is_elsewhere = config.cluster.ray_address and not Path(uri).expanduser().exists()
        if uri == "toyworld" or is_elsewhere:
            # Hosts of a cluster have folders that this one has not: their replicas look.
            uris[name] = uri
        else:
            model_directory(uri, f"models.{name}")
            uris[name] = str(Path(uri).expanduser().absolute())
    return uris
