"""Where a model's files come to lie on this host: fetched, converted and put together, once each.

What lies elsewhere is fetched into the host's cache, a single file is converted there, and a model
whose parts are of several sources is a folder of links to them. Nothing heavy is imported here.
"""

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dreambooth_ray.errors import ConfigError, DreamBoothError
from dreambooth_ray.models import hub_files, single_file
from dreambooth_ray.models.hub_errors import HubModel, HubUnreachableError
from dreambooth_ray.models.model_source import (
    SUFFIXES,
    ModelSource,
    add_source_to_error,
    find_hub_id,
    find_packaged_model,
    parse_source,
)
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.remote_model_files import (
    RemoteModelFiles,
    count_bytes,
    download_model,
    write_outline,
)
from dreambooth_ray.models.store_files import is_url, open_store_file, open_store_model
from dreambooth_ray.models.weight_cache import add_model_to_cache, find_cached_model
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.file_hashes import cached_file_hash, dreambooth_cache_folder

_MAX_OUTLINE_AGE_S = 7 * 86_400.0
_WHAT = (
    "give a directory in diffusers format, a single .safetensors file, a run, a model of the hub "
    "such as owner/name, or a URL"
)


def fetch_source(text: str, key: str) -> Path:
    """Where a model's files lie on this host, fetched if they were not there.

    key: the setting to name in an error
    raises: ConfigError where it is no model or may not be read, CheckpointError, StorageError
    """
    return _ModelLocator(key, whole=True).locate(parse_source(text))


def fetch_part(uri: str, part: str, key: str) -> Path:
    """Where a part's files lie on this host: one alone, as save_pretrained writes it.

    key: the setting to name in an error
    raises: as `fetch_source`; ConfigError where it has no config.json
    """
    accepted_sources = (
        "give a directory that save_pretrained wrote, or a model of the hub or a URL of such a one"
    )
    if ModelSource(uri).is_directory and not Path(uri).expanduser().is_dir():
        raise ConfigError(f"{key}={uri!r} is no directory here; {accepted_sources}")
    part_folder = _ModelLocator(key, whole=True)._locate_one_source(uri, part=part)
    if not (part_folder / "config.json").is_file():
        raise ConfigError(f"{key}={uri!r} has no config.json; {accepted_sources}")
    return part_folder


def outline_source(text: str, key: str) -> Path:
    """As `fetch_source`, to look at alone: of weights that are not here the headers alone are."""
    return _ModelLocator(key, whole=False).locate(parse_source(text))


class _ModelLocator:
    """whole: with the weights, or else their headers alone."""

    def __init__(self, key: str, *, whole: bool) -> None:
        self._key, self._whole = key, whole

    def locate(self, source: ModelSource) -> Path:
        """The model's folder; raises as `fetch_source`."""
        if source.prediction_type and not source.uri.endswith(SUFFIXES):
            raise ConfigError(
                f"model.prediction_type={source.prediction_type} is for single files; the "
                f"scheduler of {source.uri!r} says what it predicts: unset it"
            )
        base_folder = self._locate_one_source(source.uri, source.prediction_type)
        if source.vae or source.text_encoder:
            base_folder = _find_whole_model(base_folder, self._key, source.uri)
        part_folders = {
            part_name: self._locate_part(uri, part_name, base_folder)
            for part_name in ("vae", "text_encoder")
            if (uri := getattr(source, part_name))
        }
        return _link_parts(base_folder, part_folders) if part_folders else base_folder

    def _locate_one_source(self, uri: str, prediction_type: str = "", part: str = "") -> Path:
        """part: of a model of which no more is needed"""
        if shipped_model_folder := find_packaged_model(uri):
            return shipped_model_folder
        try:
            if hub_id := find_hub_id(uri):
                return self._locate_on_hub(hub_id, part)
            if is_url(uri) and uri.endswith(SUFFIXES):
                return self._locate_remote_file(uri, prediction_type)
            if is_url(uri):
                return self._fetch_files(open_store_model(uri, part), part)
            path = Path(uri).expanduser().absolute()
            if path.is_file() and path.suffix in SUFFIXES:
                return self._convert_single_file(path, prediction_type)
        except DreamBoothError as error:
            raise add_source_to_error(uri, self._key, error) from error
        if not path.is_dir():
            raise ConfigError(
                f"{self._key}={uri!r} is neither 'toyworld' nor a directory or file here; {_WHAT}"
            )
        return path

    def _locate_on_hub(self, hub_id: HubModel, part: str) -> Path:
        pinned_model = hub_files.pin_model(hub_id)
        if cached_folder := find_cached_model(_hash_text(f"hub {pinned_model} {part}")):
            return cached_folder
        try:
            files = hub_files.open_hub_model(pinned_model)
        except HubUnreachableError:
            if snapshot := hub_files.find_any_snapshot(pinned_model):
                return snapshot
            raise
        config_file_names, weight_file_names = files.select(part)
        snapshot = hub_files.find_hub_snapshot(files, [*config_file_names, *weight_file_names])
        return snapshot or self._fetch_files(files, part)

    def _fetch_files(self, files: RemoteModelFiles, part: str) -> Path:
        cache_key = _hash_text(f"{files.version} {part}")
        if not self._whole:
            outline = find_cached_model(cache_key)
            return outline or _make_outline(cache_key, lambda to: write_outline(files, to, part))
        size_bytes = count_bytes(files, part)
        return add_model_to_cache(cache_key, size_bytes, lambda to: download_model(files, to, part))

    def _convert_single_file(self, path: Path, prediction_type: str) -> Path:
        single_file_model = single_file.read_single_file(path, prediction_type or None)
        small_files_json = json.dumps(dict(single_file_model.small_files), sort_keys=True)
        if not self._whole:
            file_stat = path.stat()
            cache_key = _hash_text(
                f"{path} {file_stat.st_size} {file_stat.st_mtime_ns} {small_files_json}"
            )
            return _make_outline(
                cache_key,
                lambda folder: single_file.write_directory(single_file_model, folder, whole=False),
            )
        cache_key = _hash_text(f"single file {cached_file_hash(path)} {small_files_json}")
        return add_model_to_cache(
            cache_key,
            single_file.count_bytes(single_file_model),
            lambda folder: single_file.write_directory(single_file_model, folder),
        )

    def _locate_remote_file(self, uri: str, prediction_type: str) -> Path:
        files = open_store_file(uri)
        (file_name,) = files.sizes
        if not self._whole:
            cache_key = _hash_text(f"file {files.version}")
            return self._convert_single_file(
                _make_outline(cache_key, lambda folder: write_outline(files, folder)) / file_name,
                prediction_type,
            )

        def download_and_convert(folder: Path) -> None:
            downloaded_file = folder / file_name
            download_model(files, folder)
            single_file_model = single_file.read_single_file(
                downloaded_file, prediction_type or None
            )
            single_file.write_directory(single_file_model, folder)
            downloaded_file.unlink()

        cache_key = _hash_text(f"single file {files.version} {prediction_type}")
        return add_model_to_cache(cache_key, 2 * files.sizes[file_name], download_and_convert)

    def _locate_part(self, uri: str, part: str, base: Path) -> Path:
        """The folder of a part that takes the place of a model's own; raises ConfigError."""
        key = f"model.{part}"
        path = Path(uri).expanduser().absolute()
        if part == "vae" and path.is_file() and path.suffix in SUFFIXES:
            return self._convert_vae_file(path, read_json(base / "vae" / "config.json"))
        folder = _ModelLocator(key, whole=self._whole)._locate_one_source(uri, part=part)
        for candidate_folder in (folder / part, folder):
            if (candidate_folder / "config.json").is_file():
                return candidate_folder
        raise ConfigError(
            f"{key}={uri!r} has neither {part}/config.json nor a config.json; give a model "
            "directory, or one of such a part alone"
        )

    def _convert_vae_file(self, path: Path, config: dict[str, object]) -> Path:
        vae_tensors = single_file.read_vae_tensors(path)
        file_stat = path.stat()
        file_version = cached_file_hash(path) if self._whole else f"{path} {file_stat.st_mtime_ns}"
        cache_key = _hash_text(f"vae {file_version} {json.dumps(config, sort_keys=True)}")

        def fill_vae_folder(folder: Path) -> None:
            single_file.write_vae(path, vae_tensors, config, folder, whole=self._whole)

        return (
            add_model_to_cache(cache_key, path.stat().st_size, fill_vae_folder)
            if self._whole
            else (_make_outline(cache_key, fill_vae_folder))
        )


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _make_outline(key: str, write: Callable[[Path], None]) -> Path:
    outline = dreambooth_cache_folder() / "outlines" / key
    if not outline.is_dir():
        _remove_old_outlines(outline.parent)
        _make_folder_atomically(outline, write)
    return outline


def _make_folder_atomically(folder: Path, write: Callable[[Path], None]) -> None:
    """A folder that is there once it is whole; of several processes the first one's stays."""
    partial_folder = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.partial")
    partial_folder.mkdir(mode=0o700, parents=True)
    try:
        write(partial_folder)
        try:
            partial_folder.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)


def _remove_old_outlines(folder: Path) -> None:
    """Those of models that were not looked at anew for long; somebody may be reading others."""
    for outline in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):
            if time.time() - outline.stat().st_mtime > _MAX_OUTLINE_AGE_S:
                shutil.rmtree(outline)


def _find_whole_model(folder: Path, key: str, uri: str) -> Path:
    """A model's folder, or that of a run's bundle; raises ConfigError where parts are missing."""
    if (folder / paths.BUNDLE).is_dir() and not (folder / "unet").is_dir():
        folder = folder / paths.BUNDLE
    if not (folder / "vae" / "config.json").is_file():
        raise ConfigError(
            f"{key}={uri!r} has no parts of its own that model.vae or model.text_encoder could "
            "take the place of; give a whole model"
        )
    return folder


def _link_parts(base: Path, parts: dict[str, Path]) -> Path:
    """A model of links: to the base's own entries, and to the parts that take their place."""
    link_targets = {path.name: path for path in base.iterdir()} | parts
    link_targets_json = json.dumps(
        {entry_name: str(path) for entry_name, path in sorted(link_targets.items())}
    )
    folder = dreambooth_cache_folder() / "composed" / _hash_text(link_targets_json)

    def link_entries(partial: Path) -> None:
        for entry_name, path in link_targets.items():
            (partial / entry_name).symlink_to(path)

    if not folder.is_dir():
        _make_folder_atomically(folder, link_entries)
    return folder
