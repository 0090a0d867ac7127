"""Checkpoints of strategies whose workers each save a share, on hosts with scratch of their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.strategies import Strategy


class HostCheckpointPathMixin(Strategy):
    """Each host saves to its own path and loads from it.

    Lightning takes the first worker's path on all hosts, and its scratch folder need not be theirs.
    """

    _has_own_path = False

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """filepath: of this host"""
        with self._keeping_host_path():
            super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """checkpoint_path: of this host"""
        with self._keeping_host_path():
            return super().load_checkpoint(checkpoint_path, weights_only)

    @contextmanager
    def _keeping_host_path(self) -> Iterator[None]:
        self._has_own_path = True
        try:
            yield
        finally:
            self._has_own_path = False

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """The first worker's object; a path that is being saved to or loaded from stays."""
        if self._has_own_path and isinstance(obj, str | Path):
            return obj
        return super().broadcast(obj, src)  # type: ignore[safe-super]
