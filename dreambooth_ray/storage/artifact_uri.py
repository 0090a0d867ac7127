"""Artifacts by their URI, where a plain folder may lie as well."""

from dreambooth_ray.storage.store import Store


def find_artifact(uri: str) -> tuple[Store, str] | None:
    """The storage and the name of a committed artifact, KIND/NAME; None where none lies there.

    raises: StorageError
    """
    storage_uri, *artifact_name_parts = uri.rsplit("/", 2)
    # A folder right below a bucket has no storage above it.
    if "://" not in storage_uri:
        return None
    store, artifact_name = Store(storage_uri), "/".join(artifact_name_parts)
    # It is known by its pointer, which lies beside what it names.
    return (store, artifact_name) if store.exists(f"{artifact_name}.json") else None
