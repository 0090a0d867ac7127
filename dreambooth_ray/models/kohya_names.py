"""Under which names readers of kohya's files (sd-scripts, A1111, ComfyUI) look for adapters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class KohyaLayer:
    """Where readers have a layer: whole, or as a part of one of theirs.

    part: from 0; they lie one behind the other in the layer's output
    shares: sizes of all parts' outputs, each a multiple of the smallest
    """

    name: str
    part: int = 0
    shares: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class KohyaNames:
    """A family's.

    find: of a directory: by the name of a part and that of a layer; None for layers that readers
        pass over
    read_metadata: of a directory: what sd-scripts write of a base model
    """

    find: Callable[[Path, str, str], KohyaLayer | None]
    read_metadata: Callable[[Path], Mapping[str, str]]


@dataclass(frozen=True)
class AdapterFileLayer:
    """A name that files of adapters have for a layer of ours, or for one that ours is in.

    name: with dots; underscores are taken for the same
    parts: which of the file's layer are ours, in our order; shares: as KohyaLayer
    """

    name: str
    parts: tuple[int, ...] = (0,)
    shares: tuple[int, ...] = (1,)
