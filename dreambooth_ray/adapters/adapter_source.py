"""What names an adapter, and where its files come to lie on this host. Nothing heavy is imported.

URI or URI:WEIGHT: a .safetensors file of any trainer, a folder of peft's, or a run or bundle of a
LoRA, on this host or at any URL that fsspec knows.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dreambooth_ray.adapters.adapter_files import bind_adapter
from dreambooth_ray.adapters.layer_table import LayerTable
from dreambooth_ray.config.adapter_mix import AdapterUse, check_mix_limits
from dreambooth_ray.errors import ConfigError, DreamBoothError
from dreambooth_ray.models.model_directory import (
    adapted_base,
    base_directory,
    has_matching_hash,
)
from dreambooth_ray.models.model_location import fetch_source
from dreambooth_ray.models.model_source import SUFFIXES, add_source_to_error, find_hub_id
from dreambooth_ray.models.remote_model_files import download_model
from dreambooth_ray.models.store_files import is_url, open_store_file
from dreambooth_ray.models.weight_cache import add_model_to_cache
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.file_hashes import cached_file_hash

_WEIGHTED = re.compile(r"(?P<uri>.+):(?P<weight>[+-]?[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)")
_HASH_DIGITS = 12


@dataclass(frozen=True)
class WeightedAdapterSource:
    """uri: as it was given; weight: what the adapter adds is multiplied by that"""

    uri: str
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "WeightedAdapterSource":
        """From "URI" or "URI:0.8"; a path that is there is taken whole."""
        uri_and_weight_match = _WEIGHTED.fullmatch(text)
        if uri_and_weight_match is None or Path(text).expanduser().exists():
            return cls(text)
        return cls(uri_and_weight_match["uri"], float(uri_and_weight_match["weight"]))


@dataclass(frozen=True)
class LocalAdapter:
    """An adapter's files on this host.

    path: a file, or a folder; base: URI and hash of the model that a bundle was trained on, else
        None
    """

    path: Path
    weight: float
    base: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """As an engine and receipts call it: its own name and what it is made of."""
        adapter_path = self.path.parent if self.path.name == paths.ADAPTER else self.path
        adapter_name = (
            adapter_path.parent.name if adapter_path.name == paths.BUNDLE else adapter_path.name
        )
        return f"{adapter_name}@{hash_adapter(self.path)[:_HASH_DIGITS]}"


def hash_adapter(path: Path) -> str:
    """SHA-256 of a file, or over names and contents of a folder's."""
    if path.is_file():
        return cached_file_hash(path)
    digest = hashlib.sha256()
    for adapter_file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(adapter_file.relative_to(path).as_posix().encode())
        digest.update(bytes.fromhex(cached_file_hash(adapter_file)))
    return digest.hexdigest()


def locate_adapter(source: WeightedAdapterSource, key: str) -> LocalAdapter:
    """An adapter's files, fetched if they were not here.

    key: the option to name in an error
    raises: ConfigError where there is none, CheckpointError, StorageError
    """
    adapter_path = Path(source.uri).expanduser().absolute()
    try:
        if is_url(source.uri) and source.uri.endswith(SUFFIXES):
            adapter_path = _fetch_file(source.uri)
        elif is_url(source.uri):
            adapter_path = fetch_source(source.uri, key)
    except DreamBoothError as error:
        raise add_source_to_error(source.uri, key, error) from error
    if not adapter_path.exists():
        hub_hint = (
            " (models of the hub are not read as adapters)" if find_hub_id(source.uri) else ""
        )
        raise ConfigError(
            f"{key}={source.uri!r} is not there{hub_hint}; give a .safetensors file, a folder of "
            "peft's, or a run with train.method=lora"
        )
    return (
        _open_bundle(adapter_path, source, key)
        if adapter_path.is_dir()
        else LocalAdapter(adapter_path, source.weight)
    )


def _open_bundle(folder: Path, source: WeightedAdapterSource, key: str) -> LocalAdapter:
    if (folder / paths.CONFIG).is_file():
        folder = folder / paths.BUNDLE
    base_model = adapted_base(folder)
    if base_model is None:
        if (folder / "vae").is_dir():
            raise ConfigError(
                f"{key}={source.uri!r} is a whole model, no adapter; give a run with "
                "train.method=lora"
            )
        return LocalAdapter(folder, source.weight)
    return LocalAdapter(folder / paths.ADAPTER, source.weight, base_model)


def _fetch_file(uri: str) -> Path:
    store_files = open_store_file(uri)
    (file_name,) = store_files.sizes
    cache_key = hashlib.sha256(f"adapter {store_files.version}".encode()).hexdigest()[:32]
    return (
        add_model_to_cache(
            cache_key, store_files.sizes[file_name], lambda to: download_model(store_files, to)
        )
        / file_name
    )


def locate_adapters(texts: Iterable[str], directory: Path, key: str) -> list[LocalAdapter]:
    """Adapters as options name them, each bound key by key to the layers of a model.

    directory: the model's, or its outline
    raises: ConfigError naming the adapter and what of it does not fit the model
    """
    sources = [WeightedAdapterSource.parse(text) for text in texts]
    if not sources:
        return []
    check_mix_limits([AdapterUse(source.uri, source.weight) for source in sources])
    base_folder = base_directory(directory)
    layer_table, adapters = LayerTable.of_directory(base_folder), []
    for source in sources:
        adapter = locate_adapter(source, key)
        if adapter.base and not has_matching_hash(base_folder, adapter.base[1]):
            raise ConfigError(
                f"{key}={source.uri!r} was trained on another base model than {directory.name}"
            )
        try:
            bind_adapter(adapter.path, layer_table)
        except ConfigError as error:
            raise ConfigError(f"{key}={source.uri!r}: {error}") from error
        adapters.append(adapter)
    return adapters
