"""Which files an adapter is of, and their keys bound. Nothing heavy is imported."""

from pathlib import Path

from dreambooth_ray.adapters.binding import BoundAdapterFile, bind_file
from dreambooth_ray.adapters.layer_table import LayerTable
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.peft_files import WEIGHTS

SUFFIX = ".safetensors"


def list_adapter_files(path: Path, table: LayerTable) -> list[tuple[Path, str | None]]:
    """The files that an adapter is of, each with the part that it is for, None where it says that.

    path: a .safetensors file, a folder of peft's, or one with such a folder for each part
    raises: ConfigError for what holds no adapter, and for pickles
    """
    if path.is_file():
        if path.suffix != SUFFIX:
            raise ConfigError(
                "is no .safetensors file; pickles can run code, and are not read: write it again "
                "as safetensors"
            )
        return [(path, None)]
    if (path / WEIGHTS).is_file():
        return [(path / WEIGHTS, None)]
    part_files: list[tuple[Path, str | None]] = [
        (path / part / WEIGHTS, part) for part in table.layers if (path / part / WEIGHTS).is_file()
    ]
    if not part_files:
        raise ConfigError(
            f"has no {WEIGHTS} (peft's format; pickled weights are not read), and is no file"
        )
    return part_files


def bind_adapter(path: Path, table: LayerTable) -> list[tuple[Path, str | None, BoundAdapterFile]]:
    """Every key of an adapter's files, bound; raises ConfigError as `bind_file`."""
    return [
        (adapter_file, part, bind_file(adapter_file, table.of_part(part) if part else table))
        for adapter_file, part in list_adapter_files(path, table)
    ]
