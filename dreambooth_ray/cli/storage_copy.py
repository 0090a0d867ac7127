"""`dreambooth copy`: all of a storage into another one, and back."""

from typing import Annotated

import typer

from dreambooth_ray.config.count_text import describe_count
from dreambooth_ray.errors import ConfigError

# ruff: noqa: PLC0415  imports inside verbs keep --help quick


def copy(
    source: Annotated[str, typer.Argument(help="storage.uri of the runs, or of their copy")],
    target: Annotated[str, typer.Argument(help="where to: another bucket, or a folder")],
) -> None:
    """Back a storage up: copy what the target lacks or has from before, while runs go on. With the
    two changed over, bring it back. Nothing is removed from the target.
    """
    from dreambooth_ray.storage.backup import copy_storage
    from dreambooth_ray.storage.store import Store

    source_and_target = Store(source), Store(target)
    store_uris = [f"{store.uri}/" for store in source_and_target]
    if store_uris[0].startswith(store_uris[1]) or store_uris[1].startswith(store_uris[0]):
        raise ConfigError(f"{target!r} and {source!r} lie in each other; give a place beside")
    copy_summary = copy_storage(*source_and_target)
    if copy_summary.num_copied + copy_summary.num_current + copy_summary.num_gone == 0:
        raise ConfigError(f"{source!r} holds nothing; give the storage.uri of the runs")
    copied_text = describe_count(copy_summary.num_copied, "file")
    summary_text = f"{copied_text} copied, {copy_summary.num_bytes / 1e6:.1f} MB"
    summary_text += f"; {describe_count(copy_summary.num_current, 'file')} up to date"
    if copy_summary.num_gone:
        summary_text += f"; {describe_count(copy_summary.num_gone, 'file')} went meanwhile"
    print(summary_text)
