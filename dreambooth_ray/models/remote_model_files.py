"""A model's files elsewhere: which of them are read, their outline, and their way to this host.

An outline is a model directory for looking at, made within moments: configurations are whole, and
of weights the header alone is there, before a hole of the size of the rest. Nothing heavy is
imported.
"""

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from dreambooth_ray.errors import CheckpointError, ConfigError, StorageError
from dreambooth_ray.models.weight_files import MAX_HEADER_BYTES, PICKLES, choose_weights
from dreambooth_ray.storage.local_files import replace_file
from dreambooth_ray.storage.transfer import download_parts

INDEX = "model_index.json"
# Of diffusers' parts and of transformers', as save_pretrained names them.
_STEMS = ("diffusion_pytorch_model", "model")
# Read by nothing here, and large.
_UNREAD_PARTS = ("safety_checker", "image_encoder")
_TEXT_SUFFIXES = (".json", ".txt", ".model", ".jinja")
_PARTS_WITHOUT_INDEX = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_LENGTH_BYTES = 8
# Of a weight file, in the first request: the headers of most are shorter.
_HEADER_GUESS_BYTES = 2**18
_READERS = 8
_SMALL_FILE_BYTES = 2**22
_PROGRESS_INTERVAL_S = 10.0


class RemoteModelFiles(ABC):
    """The files of one version of a model. sizes: bytes of each file by name."""

    def __init__(self, uri: str, sizes: Mapping[str, int], version: str) -> None:
        """uri: for people; version: another where a file is another"""
        self.uri, self.sizes, self.version = uri, sizes, version
        self._small_files: dict[str, bytes] = {}

    def read_range(self, name: str, begin: int, end: int) -> bytes:
        """Bytes of a file from one offset up to another; a small file is fetched once.

        raises: StorageError, ConfigError where it may not be read
        """
        size_bytes = self.sizes[name]
        if size_bytes > _SMALL_FILE_BYTES:
            return self.fetch_range(name, begin, end)
        if name not in self._small_files:
            self._small_files[name] = self.fetch_range(name, 0, size_bytes) if size_bytes else b""
        return self._small_files[name][begin:end]

    def select(self, part: str = "") -> tuple[list[str], list[str]]:
        """Configurations, and weight files, that loading the model reads, or that part alone."""
        return select_files(self, part)

    @abstractmethod
    def fetch_range(self, name: str, begin: int, end: int) -> bytes:
        """As `read_range`, from where the file lies."""

    @abstractmethod
    def check_file_hash(self, name: str, path: Path, sha256: str) -> None:
        """Raise StorageError or CheckpointError where a copy is not what is stored.

        sha256: of the copy
        """


def select_files(files: RemoteModelFiles, part: str = "") -> tuple[list[str], list[str]]:
    """Configurations, and weight files, that loading the model reads; no pickles, no copies.

    Weights are chosen as in a directory: whole files before variants, fp16 before others.
    part: the only one that is needed; a repository may be such a part itself
    raises: ConfigError where it is no model directory, or a part has pickles alone
    """
    file_names = [
        weight_file_name for weight_file_name in files.sizes if _is_safe(weight_file_name)
    ]
    part_prefixes = _list_folder_prefixes(files, file_names, part)
    config_file_names, weight_file_names = [INDEX] if INDEX in files.sizes else [], list[str]()
    for part_prefix in part_prefixes:
        part_file_names = {
            n.removeprefix(part_prefix) for n in file_names if n.startswith(part_prefix)
        }
        part_file_names = {n for n in part_file_names if "/" not in n}
        config_file_names += [
            part_prefix + n
            for n in part_file_names
            if n.endswith(_TEXT_SUFFIXES) and ".index." not in n
        ]
        weight_choices = [choose_weights(part_file_names, stem) for stem in _STEMS]
        weight_choice = next(
            (weight_choice for weight_choice in weight_choices if weight_choice), None
        )
        if weight_choice is None:
            _refuse_pickles(files, part_prefix, part_file_names)
            continue
        weight_file_name = part_prefix + weight_choice[1]
        if weight_file_name.endswith(".json"):
            config_file_names.append(weight_file_name)
            weight_file_names += _list_shards(files, weight_file_name)
        else:
            weight_file_names.append(weight_file_name)
    return sorted(config_file_names), sorted(weight_file_names)


def write_outline(files: RemoteModelFiles, folder: Path, part: str = "") -> None:
    """Write the outline of a model to a folder; raises ConfigError, StorageError."""
    config_file_names, weight_file_names = files.select(part)

    def write_outline_file(name: str) -> None:
        with replace_file(folder / name) as partial:
            if name in config_file_names:
                partial.write_bytes(_read_file(files, name))
            else:
                partial.write_bytes(_read_header_bytes(files, name))
                with partial.open("r+b") as weight_file:
                    weight_file.truncate(files.sizes[name])

    with ThreadPoolExecutor(_READERS, thread_name_prefix="outline") as pool:
        list(pool.map(write_outline_file, [*config_file_names, *weight_file_names]))


def download_model(files: RemoteModelFiles, folder: Path, part: str = "") -> None:
    """Download what loading reads, each file checked; what an earlier try has left is gone on with.

    raises: CheckpointError, ConfigError, StorageError
    """
    config_file_names, weight_file_names = files.select(part)
    progress = _Progress(files.uri, sum(files.sizes[file_name] for file_name in weight_file_names))
    for file_name in [*config_file_names, *weight_file_names]:
        path = folder / file_name
        if not path.is_file():
            _download_file(files, file_name, path, progress)


def count_bytes(files: RemoteModelFiles, part: str = "") -> int:
    """Bytes that `download_model` writes."""
    return sum(
        files.sizes[file_name] for file_names in files.select(part) for file_name in file_names
    )


def _download_file(files: RemoteModelFiles, name: str, path: Path, progress: "_Progress") -> None:
    """A file is there under its name once it is whole and was checked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")

    def read_range(begin: int, end: int) -> bytes:
        range_bytes = files.read_range(name, begin, end)
        progress.add_bytes(len(range_bytes))
        return range_bytes

    try:
        sha256 = download_parts(read_range, files.sizes[name], partial, goes_on=True)
        files.check_file_hash(name, partial, sha256)
    except (CheckpointError, StorageError):
        if partial.is_file() and partial.stat().st_size == files.sizes[name]:
            partial.unlink()  # whole and wrong: nothing to go on with
        raise
    partial.rename(path)


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _list_folder_prefixes(files: RemoteModelFiles, names: list[str], part: str) -> list[str]:
    """Of the names of the parts that are read; raises ConfigError where there are none."""
    if part:
        return [f"{part}/" if f"{part}/config.json" in files.sizes else ""]
    return [f"{part_name}/" for part_name in _list_parts(files, names)]


def _list_parts(files: RemoteModelFiles, names: list[str]) -> list[str]:
    if INDEX in files.sizes:
        model_index = _read_object(files, INDEX)
        part_names = [
            key
            for key, value in model_index.items()
            if isinstance(value, list) and any(value) and key not in _UNREAD_PARTS
        ]
    else:
        part_names = [p for p in _PARTS_WITHOUT_INDEX if any(n.startswith(f"{p}/") for n in names)]
    if not part_names:
        single_files = [n for n in names if n.endswith((".safetensors", *PICKLES)) and "/" not in n]
        raise ConfigError(
            f"{files.uri} is no model in diffusers format: it has no {INDEX}"
            + (
                f"; of {single_files[0]} alone: download it, and give its path"
                if single_files
                else ""
            )
        )
    return part_names


def _refuse_pickles(files: RemoteModelFiles, prefix: str, own_names: set[str]) -> None:
    if pickles := sorted(n for n in own_names if n.endswith(PICKLES)):
        raise ConfigError(
            f"{files.uri} has {prefix}{pickles[0]} alone, a pickle, which can run code when read; "
            "weights are read from safetensors: take another revision or model that has them"
        )


def _list_shards(files: RemoteModelFiles, index: str) -> list[str]:
    weight_map = _read_object(files, index).get("weight_map")
    folder_prefix = index[: index.rfind("/") + 1]
    shards = weight_map.values() if isinstance(weight_map, dict) else ()
    shard_names = sorted({f"{folder_prefix}{shard}" for shard in shards})
    if missing_shards := [
        shard_name
        for shard_name in shard_names
        if shard_name not in files.sizes or not _is_safe(shard_name)
    ]:
        raise ConfigError(f"{files.uri}: {index} names {missing_shards[0]}, which is not there")
    return shard_names


def _read_file(files: RemoteModelFiles, name: str) -> bytes:
    return files.read_range(name, 0, files.sizes[name])


def _read_object(files: RemoteModelFiles, name: str) -> dict[str, object]:
    try:
        json_object = json.loads(_read_file(files, name))
    except ValueError as error:
        raise ConfigError(f"{files.uri}: {name} holds no JSON ({error})") from error
    if not isinstance(json_object, dict):
        raise ConfigError(f"{files.uri}: {name} holds no JSON object")
    return json_object


def _read_header_bytes(files: RemoteModelFiles, name: str) -> bytes:
    """The beginning of a safetensors file up to its tensors; whether it is one, others look."""
    size_bytes = files.sizes[name]
    first_bytes = files.read_range(name, 0, min(size_bytes, _HEADER_GUESS_BYTES))
    header_end = _LENGTH_BYTES + int.from_bytes(first_bytes[:_LENGTH_BYTES], "little")
    if header_end > min(size_bytes, MAX_HEADER_BYTES):
        return first_bytes
    if header_end > len(first_bytes):
        first_bytes += files.read_range(name, len(first_bytes), header_end)
    return first_bytes[:header_end]


class _Progress:
    """Says now and then how far a long download is, to who waits."""

    def __init__(self, uri: str, total_bytes: int) -> None:
        self._uri, self._total_bytes, self._num_bytes = uri, total_bytes, 0
        self._said_at_s = time.monotonic()

    def add_bytes(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if time.monotonic() - self._said_at_s > _PROGRESS_INTERVAL_S:
            self._said_at_s = time.monotonic()
            progress_text = f"{self._num_bytes / 1e9:.1f} of {self._total_bytes / 1e9:.1f} GB"
            print(f"{self._uri}: {progress_text}", file=sys.stderr, flush=True)
