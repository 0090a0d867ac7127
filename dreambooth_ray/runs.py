"""A run's folder and the configuration it was started with.

Nothing heavy is imported here: who lists, watches or stops runs need not wait for torch.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreambooth_ray.config.load import (
    dump_config,
    override_config,
    parse_config,
    parse_options,
)
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.remote_images import is_remote
from dreambooth_ray.errors import CheckpointError, ConfigError
from dreambooth_ray.storage import fence, paths
from dreambooth_ray.storage.catalog import withdraw_run
from dreambooth_ray.storage.lease_keeper import LEASES, LeaseKeeper, LeaseWaiter, run_leases
from dreambooth_ray.storage.manifest import MANIFEST
from dreambooth_ray.storage.store import Store, use_options


def find_run(uri: str, overrides: list[str]) -> Config:
    """The configuration of a run that is to go on, from where it lies now.

    overrides: `key.path=value`; those of storage.options may be needed to read it at all
    raises: CheckpointError if it is no run, StorageError if it can't be read
    """
    options = parse_options([o for o in overrides if o.startswith("storage.options")])
    use_options(uri, options)
    run = Store(uri)
    config = override_config(read_run_config(run), overrides)
    # A run that was copied or is mounted elsewhere goes on where it is.
    base, _, run_id = run.uri.rpartition("/runs/")
    if not base or "/" in run_id:
        return config
    storage = config.storage.model_copy(update={"uri": base})
    return config.model_copy(update={"run_id": run_id, "storage": storage})


def open_run(config: Config, force: bool = False) -> Store:
    """The run's folder, with its configuration stored; an existing run must have the same.

    force: go on with another configuration, which takes the place of the stored one
    raises: ConfigError naming the keys that differ if run_id names a run of another configuration
    """
    run_id = config.run_id or _new_run_id(config)
    resolved = with_absolute_paths(config).model_copy(update={"run_id": run_id})
    run = Store(config.storage.uri).sub(paths.run(run_id))
    if run.create(paths.CONFIG, dump_config(resolved).encode()):
        return run
    differences = _find_differences(
        _identity_fields(with_absolute_paths(read_run_config(run))), _identity_fields(resolved)
    )
    if differences and not force:
        raise ConfigError(
            f"run_id={run_id!r} is a run with another configuration ({run.uri}/{paths.CONFIG}): "
            f"{'; '.join(differences)}; choose another run_id, resume that run as it is, or go on "
            "with --force"
        )
    if differences:
        withdraw_run(run)
        run.write(paths.CONFIG, dump_config(resolved).encode())
        ends = [fence.numbered(paths.END, n) for n in fence.numbers_of(run.names(), paths.END)]
        for stale_file in (f"{paths.BUNDLE}/{MANIFEST}", *ends):
            run.remove_file(stale_file)
    return run


def read_run_config(run: Store) -> Config:
    """The configuration a run was started with; raises CheckpointError if there is none."""
    try:
        text = run.read(paths.CONFIG).decode()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{run.uri} is not a run: it has no {paths.CONFIG}; give the URI that "
            "`dreambooth train` printed"
        ) from error
    return parse_config(text, f"{run.uri}/{paths.CONFIG}", [])


def delete_run(run: Store, say: Callable[[str], None] = print) -> None:
    """Delete a run and what the catalog knows of it: its entry first, so that nobody is sent to it.

    say: hears of a holder that may be dead and is waited for
    raises: StorageError if a process works on it
    """
    with LeaseKeeper(LeaseWaiter(run_leases(run), ClusterConfig().lease_s, say=say), say):
        withdraw_run(run)
        for name in run.names():
            if name != LEASES:
                run.remove(name)
    run.remove("")


def is_finished(run: Store) -> bool:
    """Whether a run has its bundle, committed."""
    return run.exists(f"{paths.BUNDLE}/{MANIFEST}")


def _find_differences(stored: Any, current: Any, key: str = "") -> list[str]:
    """Each leaf that two dumped configurations differ in, as text."""
    if isinstance(stored, dict) and isinstance(current, dict):
        return [
            text
            for name in sorted(stored.keys() | current.keys())
            for text in _find_differences(
                stored.get(name), current.get(name), f"{key}.{name}" if key else name
            )
        ]
    return [] if stored == current else [f"{key} was {stored!r} and is {current!r}"]


def with_absolute_paths(config: Config) -> Config:
    """The same configuration, with photographs and model found from any working directory."""
    subjects = [
        s if is_remote(s.photos) else s.model_copy(update={"photos": str(Path(s.photos).resolve())})
        for s in config.all_subjects
    ]
    several = tuple(subjects) if config.subjects else ()
    model = config.model
    if model.uri != "toyworld":
        path = Path(model.uri).expanduser().absolute()
        model = model.model_copy(update={"uri": str(path)})
    return config.model_copy(update={"subject": subjects[0], "subjects": several, "model": model})


def _identity_fields(config: Config) -> dict[str, object]:
    """What makes two configurations the same run: all but where it runs and what it keeps."""
    return config.model_dump(mode="json", exclude={"cluster", "storage", "checkpoint"})


def _new_run_id(config: Config) -> str:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    digest = hashlib.sha256(f"{dump_config(config)}{time.time_ns()}".encode()).hexdigest()[:6]
    noun = "".join(c if c.isalnum() else "-" for c in config.subject.class_noun.lower())
    return f"{noun}-{stamp}-{digest}"
