"""Loads a recipe's model into this host's cache: `python -m cluster.model_loader RECIPE`.

A Job of Kubernetes calls it once, with the volume of models as the cache of all pods
(k8s/components/model-volume): pods that come later find the model there.
"""

import argparse
import sys
from pathlib import Path

from dreambooth_ray.config.load import load_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import DreamBoothError, describe_error
from dreambooth_ray.models.model_mirror import share_model
from dreambooth_ray.models.model_source import find_packaged_model
from dreambooth_ray.models.weight_cache import set_model_cache_limit
from dreambooth_ray.storage.store import Store, use_storage_options


def cache_base_model(config: Config) -> Path:
    """The folder of a recipe's model, as its run will find it.

    raises: ConfigError where it is no model or may not be read, CapacityError, StorageError
    """
    use_storage_options(config.storage.uri, config.storage.options)
    set_model_cache_limit(config.storage.model_cache_gb)
    model_source, storage = config.model.source, Store(config.storage.uri)
    if packaged_model_folder := find_packaged_model(model_source):
        return packaged_model_folder
    share_model(model_source, "model.uri", storage)
    # A model of the hub is in the storage now, and runs take it from there, by its hash.
    return share_model(model_source, "model.uri", storage)


def main() -> None:
    """Load it, and say where it lies."""
    parser = argparse.ArgumentParser(description="Load a recipe's model into this host's cache.")
    parser.add_argument("recipe", help="the run's recipe")
    try:
        print(cache_base_model(load_config(parser.parse_args().recipe, [])))
    except DreamBoothError as error:
        sys.exit(f"error: {describe_error(error)}")


if __name__ == "__main__":
    main()
