"""What names a model: one text, wherever models are named.

URI, or URI?vae=URI&text_encoder=URI&prediction_type=KIND, where a part comes from elsewhere or a
single file does not say what it predicts. A URI is a directory or a single file, a model of the
Hugging Face Hub (OWNER/NAME or OWNER/NAME@REVISION), or a URL of a directory, file, run or bundle.
Nothing heavy is imported here.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from dreambooth_ray.errors import DreamBoothError
from dreambooth_ray.models import hub_files
from dreambooth_ray.models.hub_errors import HubModel, HubUnreachableError, NoSuchModelError
from dreambooth_ray.models.store_files import is_url
from dreambooth_ray.models.weight_files import PICKLES

SUFFIXES = (".safetensors", *PICKLES)
# Models that the package has in it: folders of toyworld/weights.
_SHIPPED = {"toyworld": "pipeline", "toyworld-flow": "flow-pipeline"}
_WITH_OPTIONS = re.compile(r"(?P<uri>.+)\?(?P<options>(vae|text_encoder|prediction_type)=.*)")


@dataclass(frozen=True)
class ModelSource:
    """A model's URI, and what is not taken from there; "" where all is."""

    uri: str
    vae: str = ""
    text_encoder: str = ""
    prediction_type: str = ""

    @property
    def is_directory(self) -> bool:
        """Whether it is all one directory of this host, or what ships."""
        return self == ModelSource(self.uri) and not (
            is_url(self.uri) or find_hub_id(self.uri) or self.uri.endswith(SUFFIXES)
        )

    def __str__(self) -> str:
        source_options = {
            f.name: getattr(self, f.name) for f in fields(self)[1:] if getattr(self, f.name)
        }
        return (
            f"{self.uri}?{urlencode(source_options, safe='/:@~')}" if source_options else self.uri
        )


def find_packaged_model(uri: str) -> Path | None:
    """The directory of a model that the package has in it; None for all else."""
    folder_name = _SHIPPED.get(uri)
    return (
        Path(str(files("dreambooth_ray.toyworld") / "weights" / folder_name))
        if folder_name
        else None
    )


def parse_source(text: str) -> ModelSource:
    """The source that a text names."""
    match = _WITH_OPTIONS.fullmatch(text)
    if match is None:
        return ModelSource(text)
    option_names = {field.name for field in fields(ModelSource)[1:]}
    source_options = {
        option_name: value
        for option_name, value in parse_qsl(match["options"])
        if option_name in option_names
    }
    return ModelSource(match["uri"], **source_options)


def make_absolute(text: str) -> str:
    """The same model, found from any working directory."""
    return _map_uris(text, lambda uri, _: _make_uri_absolute(uri))


def pin_source(text: str, key: str) -> str:
    """The same model, at the commits that ids of the hub mean now; others are as they are.

    key: the setting to name in an error
    raises: ConfigError where there is no such model or it may not be read, StorageError
    """

    def pin_uri(uri: str, name: str) -> str:
        hub_id = find_hub_id(uri)
        try:
            return str(hub_files.pin_model(hub_id)) if hub_id else uri
        except DreamBoothError as error:
            setting_key = key if name == "uri" else f"model.{name}"
            raise add_source_to_error(uri, setting_key, error) from error

    return _map_uris(text, pin_uri)


def find_hub_id(uri: str) -> HubModel | None:
    """The model of the hub that a URI is; None for a path: what is there goes before the hub."""
    return None if Path(uri).expanduser().exists() else hub_files.parse_hub_id(uri)


def add_source_to_error(uri: str, key: str, error: DreamBoothError) -> DreamBoothError:
    """The same kind of error, with its key; of a hub id that might have been meant as a path."""
    is_hub_failure = isinstance(error, NoSuchModelError | HubUnreachableError)
    path = str(Path(uri).expanduser().absolute())
    path_hint = f"; nor is there a directory {path}" if is_hub_failure and not is_url(uri) else ""
    return type(error)(f"{key}={uri!r}: {error}{path_hint}")


def _make_uri_absolute(uri: str) -> str:
    is_not_path = uri in _SHIPPED or is_url(uri) or find_hub_id(uri) is not None
    return uri if is_not_path else str(Path(uri).expanduser().absolute())


def _map_uris(text: str, work: Callable[[str, str], str]) -> str:
    """work: gets each URI, and the name of what it is of"""
    source = parse_source(text)
    uri_fields = [
        field_name for field_name in ("uri", "vae", "text_encoder") if getattr(source, field_name)
    ]
    return str(
        replace(
            source,
            **{
                field_name: work(getattr(source, field_name), field_name)
                for field_name in uri_fields
            },
        )
    )
