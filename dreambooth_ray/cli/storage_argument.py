"""The storage that a verb looks into: a URI, or recipe and overrides as other verbs take them."""

from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_ray.errors import ConfigError

# ruff: noqa: PLC0415  imports inside verbs keep --help quick

if TYPE_CHECKING:
    from dreambooth_ray.config.machines import StorageConfig
    from dreambooth_ray.storage.store import Store

StorageArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[STORAGE] [OVERRIDES]",
        help="storage.uri of the runs, or a recipe; storage.uri=... and storage.options.name=...",
    ),
]
_KNOWN_FOLDERS = ("runs", "priors", "photographs", "catalog", "serve", "fleets")


def read_storage(arguments: list[str] | None) -> "StorageConfig":
    """The storage that the arguments name; `out` unless something else is given."""
    from dreambooth_ray.config.load import (
        SUBJECT_OF_NO_MATTER,
        load_config,
        load_storage,
        recipe_names,
    )

    storage_arguments = [a for a in arguments or [] if "=" not in a or "://" in a.partition("=")[0]]
    overrides = [a for a in arguments or [] if a not in storage_arguments]
    if len(storage_arguments) > 1:
        raise ConfigError(f"{storage_arguments[1]!r} is one argument too many; give one storage")
    uri = storage_arguments[0] if storage_arguments else ""
    if uri.endswith((".yaml", ".yml")) or f"{uri}.yaml" in recipe_names():
        return load_config(uri, [*SUBJECT_OF_NO_MATTER, *overrides]).storage
    return load_storage(([f"storage.uri={uri}"] if uri else []) + overrides)


def open_storage(arguments: list[str] | None) -> "Store":
    """The storage that holds runs, as `read_storage` has it.

    raises: ConfigError where nothing of ours lies, as at a mistaken address
    """
    from dreambooth_ray.storage.store import Store, use_options

    storage = read_storage(arguments)
    use_options(storage.uri, storage.options)
    store = Store(storage.uri)
    if not any(store.names(folder, limit=1) for folder in _KNOWN_FOLDERS):
        raise ConfigError(
            f"storage.uri={storage.uri!r} holds no runs, class images or catalog; give the "
            "storage.uri of the runs"
        )
    return store
