"""The folder of adapter files, looked at before anything is started."""

from pathlib import Path

from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.errors import ConfigError


def check_adapter_folder_setting(config: ServeConfig) -> None:
    """raises: ConfigError where adapters.folder is no folder of this host

    Of URLs, and of hosts of a cluster that have folders of their own, the replicas' look decides.
    """
    folder_uri = config.adapters.folder
    if folder_uri is None or "://" in folder_uri or config.cluster.ray_address:
        return
    if not Path(folder_uri).expanduser().is_dir():
        raise ConfigError(
            f"adapters.folder={folder_uri!r} is no folder here; make it, or leave it out to "
            "take no files"
        )
