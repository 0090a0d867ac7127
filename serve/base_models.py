"""The base models that an endpoint serves, looked at before anything is started."""

from pathlib import Path

from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.models.model_directory import model_directory, model_outline
from dreambooth_ray.models.model_source import (
    find_packaged_model,
    make_absolute,
    parse_source,
    pin_source,
)


def resolve_model_uris(config: ServeConfig) -> dict[str, str]:
    """URIs of the models by id, as every host finds them, those of the hub at the commit of now.

    Nothing large is fetched: replicas do that.
    raises: ConfigError naming one that can't be loaded, StorageError
    """
    uris_by_model_id = {}
    for model_id, uri in config.models.items():
        config_key, exists_here = f"models.{model_id}", Path(uri).expanduser().exists()
        if not parse_source(uri).is_directory:
            uris_by_model_id[model_id] = make_absolute(pin_source(uri, config_key))
            model_outline(uris_by_model_id[model_id], config_key)
        elif find_packaged_model(uri) or (config.cluster.ray_address and not exists_here):
            # Hosts of a cluster have folders that this one has not: their replicas look.
            uris_by_model_id[model_id] = uri
        else:
            model_directory(uri, config_key)
            uris_by_model_id[model_id] = make_absolute(uri)
    return uris_by_model_id
