"""A run's folder and the configuration it was started with.

Nothing heavy is imported here: who lists, watches or stops runs need not wait for torch.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from dreambooth_ray.config.load import (
    dump_config,
    override_config,
    parse_config,
    parse_storage_option_overrides,
)
from dreambooth_ray.config.machines import MACHINE_SECTIONS, ClusterConfig
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.remote_images import is_remote_uri
from dreambooth_ray.data.run_inputs import RunInputs
from dreambooth_ray.errors import CheckpointError, ConfigError
from dreambooth_ray.models.model_directory import has_matching_hash
from dreambooth_ray.models.model_source import make_absolute
from dreambooth_ray.run_changes import (
    MODEL_KEYS,
    ConfigChange,
    find_config_changes,
    find_resume_obstacles,
)
from dreambooth_ray.storage import fence, manifest, paths
from dreambooth_ray.storage.lease_keeper import LeaseKeeper, LeaseWaiter, get_run_lease_files
from dreambooth_ray.storage.store import Store, use_storage_options
from dreambooth_ray.storage.version_catalog import withdraw_run
from dreambooth_ray.training.run_state import find_training_end_step


def load_run_config(uri: str, overrides: list[str]) -> Config:
    """The configuration of a run that is to go on, from where it lies now.

    overrides: `key.path=value`; those of storage.options may be needed to read it at all
    raises: CheckpointError if it is no run, StorageError if it can't be read
    """
    storage_options = parse_storage_option_overrides(
        [o for o in overrides if o.startswith("storage.options")]
    )
    use_storage_options(uri, storage_options)
    run_store = Store(uri)
    config = override_config(read_run_config(run_store), overrides)
    # A run that was copied or is mounted elsewhere goes on where it is.
    storage_uri, _, run_id = run_store.uri.rpartition("/runs/")
    if not storage_uri or "/" in run_id:
        return config
    storage_config = config.storage.model_copy(update={"uri": storage_uri})
    return config.model_copy(update={"run_id": run_id, "storage": storage_config})


def open_run(
    config: Config,
    force: bool = False,
    inputs: RunInputs | None = None,
    say: Callable[[str], None] = print,
    requested: Config | None = None,
) -> Store:
    """The run's folder, with its configuration stored; an existing run must have the same.

    force: go on with another configuration or other photographs, which take the place of the stored
        ones; inputs: what it is trained on, where that was looked at; say: hears of a holder that
        may be dead and is waited for; requested: the configuration before the model's own values
        were filled in, which a run that was stored without the model takes over
    raises: ConfigError naming the keys that differ if run_id names a run of another configuration,
        or, with force, what can't be taken up; StorageError if another process trains a run that is
        to change
    """
    run_id = config.run_id or _new_run_id(config)
    resolved_config = with_absolute_paths(config).model_copy(update={"run_id": run_id})
    run_store = Store(config.storage.uri).sub(paths.run(run_id))
    changes: list[ConfigChange] = []
    stored_config = resolved_config
    if not run_store.create(paths.CONFIG, dump_config(resolved_config).encode()):
        stored_config = with_absolute_paths(read_run_config(run_store))
        changes = find_config_changes(
            _run_identity_fields(stored_config), _run_identity_fields(resolved_config)
        )
        if changes and requested is not None:
            changes = _find_requested_changes(run_store, changes, stored_config, requested)
            if not changes:
                # The first: what is stored may have been filled in before, by an earlier version.
                run_store.create(paths.REQUESTED_CONFIG, dump_config(stored_config).encode())
                run_store.write(paths.CONFIG, dump_config(resolved_config).encode())
        elif changes and _is_as_requested(run_store, resolved_config):
            changes = []
    data_differences = _compare_inputs(run_store, inputs, may_tell=not changes)
    if not changes and not data_differences:
        return run_store
    _refuse_changes(run_store, stored_config, resolved_config, changes, data_differences, inputs)
    if not force:
        difference_texts = [*map(str, changes), *data_differences]
        raise ConfigError(
            f"run_id={run_id!r} is a run with another configuration "
            f"({run_store.uri}/{paths.CONFIG}): {'; '.join(difference_texts)}; choose another "
            "run_id, resume that run as it is, or go on with --force"
        )
    with LeaseKeeper(
        LeaseWaiter(get_run_lease_files(run_store), config.cluster.lease_s, say=say), say
    ):
        # What others did until the lease was ours counts.
        _refuse_changes(
            run_store, stored_config, resolved_config, changes, data_differences, inputs
        )
        _store_changes(run_store, resolved_config, inputs)
    return run_store


def _find_requested_changes(
    run: Store, changes: list[ConfigChange], stored: Config, requested: Config
) -> list[ConfigChange]:
    """Of these changes those that somebody asked for, or all where the run has begun."""
    if fence.read_history(run).checkpoints:
        return changes
    requested_config_fields = _run_identity_fields(with_absolute_paths(requested))
    requested_keys = {
        change.key
        for change in find_config_changes(_run_identity_fields(stored), requested_config_fields)
    }
    return [change for change in changes if change.key in requested_keys]


def _is_as_requested(run: Store, config: Config) -> bool:
    """Whether a run that was sent without its model's values was sent with these settings."""
    try:
        requested_text = run.read(paths.REQUESTED_CONFIG).decode()
    except FileNotFoundError:
        return False
    requested = parse_config(requested_text, f"{run.uri}/{paths.REQUESTED_CONFIG}", [])
    return not find_config_changes(
        _run_identity_fields(with_absolute_paths(requested)), _run_identity_fields(config)
    )


def _compare_inputs(run: Store, inputs: RunInputs | None, *, may_tell: bool) -> list[str]:
    """What a run was trained on and is no longer there.

    may_tell: whether a run that does not know its inputs yet is told; not by who may be refused
    """
    if inputs is None or (may_tell and run.create(paths.INPUTS, inputs.to_json())):
        return []
    if not run.exists(paths.INPUTS):
        return []
    return inputs.describe_differences(run.read(paths.INPUTS))


def _refuse_changes(
    run: Store,
    stored: Config,
    current: Config,
    changes: list[ConfigChange],
    data_differences: list[str],
    inputs: RunInputs | None,
) -> None:
    """raises: ConfigError for changes that a run with checkpoints can't take up"""
    checkpoints = fence.read_history(run).checkpoints
    if not checkpoints:
        return
    committed_step = max(checkpoints)
    resume_obstacles = find_resume_obstacles(
        stored,
        current,
        changes,
        data_differences,
        committed_step,
        find_training_end_step(run, current),
    )
    if inputs is not None and any(change.key in MODEL_KEYS for change in changes):
        checkpoint_metadata = manifest.read_artifact_metadata(run, checkpoints[committed_step].name)
        stored_model_hash = str(checkpoint_metadata.get("model_hash", ""))
        if stored_model_hash and not has_matching_hash(inputs.model, stored_model_hash):
            resume_obstacles.append(
                f"model.uri={current.model.uri!r} is another model than {run.uri} was trained "
                "from; give that one, or another run_id"
            )
    if resume_obstacles:
        raise ConfigError("; ".join(resume_obstacles))


def _store_changes(run: Store, config: Config, inputs: RunInputs | None) -> None:
    """Let a run go on with another configuration: its bundle and its end are no more."""
    withdraw_run(run)
    run_end_files = [
        fence.file_name_with_lease(paths.END, n)
        for n in fence.list_leases_of_file(run.names(), paths.END)
    ]
    bundle_file = f"{paths.BUNDLE}/{manifest.MANIFEST}"
    for obsolete_file in (bundle_file, paths.REQUESTED_CONFIG, *run_end_files):
        run.remove_file(obsolete_file)
    if inputs is not None:
        run.write(paths.INPUTS, inputs.to_json())
    # Last: whatever ends this process before, the next start still finds the change.
    run.write(paths.CONFIG, dump_config(config).encode())


def read_run_config(run: Store) -> Config:
    """The configuration a run was started with; raises CheckpointError if there is none."""
    try:
        config_text = run.read(paths.CONFIG).decode()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{run.uri} is not a run: it has no {paths.CONFIG}; give the URI that "
            "`dreambooth train` printed"
        ) from error
    return parse_config(config_text, f"{run.uri}/{paths.CONFIG}", [])


def delete_run(run: Store, say: Callable[[str], None] = print) -> None:
    """Delete a run and what the catalog knows of it: its entry first, so that nobody is sent to it.

    say: hears of a holder that may be dead and is waited for
    raises: StorageError if a process works on it
    """
    with LeaseKeeper(LeaseWaiter(get_run_lease_files(run), ClusterConfig().lease_s, say=say), say):
        withdraw_run(run)
        # Its configuration last: what was cut off before is still known as a run.
        for child_name in sorted(run.names(), key=lambda name: name == paths.CONFIG):
            if child_name != paths.LEASES:
                run.remove(child_name)
    run.remove("")


def is_finished(run: Store) -> bool:
    """Whether a run has its bundle, committed."""
    return run.exists(f"{paths.BUNDLE}/{manifest.MANIFEST}")


def with_absolute_paths(config: Config) -> Config:
    """The same configuration, with all its files found from any working directory."""
    subjects = [
        s
        if is_remote_uri(s.photos)
        else s.model_copy(update={"photos": str(Path(s.photos).resolve())})
        for s in config.all_subjects
    ]
    subject_list = tuple(subjects) if config.subjects else ()
    model_config = config.model
    model_uris = {
        model_field: getattr(model_config, model_field)
        for model_field in ("uri", "vae", "text_encoder")
    }
    absolute_model_config = model_config.model_copy(
        update={k: uri and make_absolute(uri) for k, uri in model_uris.items()}
    )
    prior_config, choice_config = config.prior, config.choice
    if prior_config.folder:
        prior_config = prior_config.model_copy(
            update={"folder": str(Path(prior_config.folder).absolute())}
        )
    if choice_config.protocol and Path(choice_config.protocol).is_file():
        choice_config = choice_config.model_copy(
            update={"protocol": str(Path(choice_config.protocol).absolute())}
        )
    updated_sections = {
        "model": absolute_model_config,
        "prior": prior_config,
        "choice": choice_config,
    }
    return config.model_copy(
        update={"subject": subjects[0], "subjects": subject_list, **updated_sections}
    )


def _run_identity_fields(config: Config) -> dict[str, object]:
    """What makes two configurations the same run: all but where it runs and what it keeps."""
    run_identity_fields = config.model_dump(mode="json", exclude=set(MACHINE_SECTIONS))
    if config.choice.rule == "last":
        # Nothing is evaluated, whatever by.
        run_identity_fields["choice"]["protocol"] = None
    return run_identity_fields


def _new_run_id(config: Config) -> str:
    time_stamp = time.strftime("%Y%m%d-%H%M%S")
    config_digest = hashlib.sha256(f"{dump_config(config)}{time.time_ns()}".encode()).hexdigest()[
        :6
    ]
    class_noun_slug = "".join(c if c.isalnum() else "-" for c in config.subject.class_noun.lower())
    return f"{class_noun_slug}-{time_stamp}-{config_digest}"
