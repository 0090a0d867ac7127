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
_KNOWN_FOLDERS = (
    "runs", "priors", "photographs", "catalog", "serve", "fleets", "queue", "models",
)  # fmt: skip


def read_storage(arguments: list[str] | None) -> "StorageConfig":
    """The storage that the arguments name; `out` unless something else is given."""
    from dreambooth_ray.config.load import (
        SUBJECT_OF_NO_MATTER,
        list_recipe_names,
        load_config,
        parse_storage_overrides,
    )

    storage_or_recipe_arguments = [
        a for a in arguments or [] if "=" not in a or "://" in a.partition("=")[0]
    ]
    overrides = [a for a in arguments or [] if a not in storage_or_recipe_arguments]
    if len(storage_or_recipe_arguments) > 1:
        raise ConfigError(
            f"{storage_or_recipe_arguments[1]!r} is one argument too many; give one storage"
        )
    storage_or_recipe = storage_or_recipe_arguments[0] if storage_or_recipe_arguments else ""
    if (
        storage_or_recipe.endswith((".yaml", ".yml"))
        or f"{storage_or_recipe}.yaml" in list_recipe_names()
    ):
        return load_config(storage_or_recipe, [*SUBJECT_OF_NO_MATTER, *overrides]).storage
    return parse_storage_overrides(
        ([f"storage.uri={storage_or_recipe}"] if storage_or_recipe else []) + overrides
    )


def open_storage(arguments: list[str] | None) -> "Store":
    """The storage that holds runs, as `read_storage` has it.

    raises: ConfigError where nothing of ours lies, as at a mistaken address
    """
    from dreambooth_ray.storage.store import Store, use_storage_options

    storage_config = read_storage(arguments)
    use_storage_options(storage_config.uri, storage_config.options)
    store = Store(storage_config.uri)
    if not any(store.names(folder, limit=1) for folder in _KNOWN_FOLDERS):
        raise ConfigError(
            f"storage.uri={storage_config.uri!r} holds no runs, class images or catalog; give the "
            "storage.uri of the runs"
        )
    return store
