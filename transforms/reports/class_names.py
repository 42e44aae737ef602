"""Names of classes, for the readers of a report."""

from __future__ import annotations

from transforms.core.errors import InputError
from transforms.storage import filesystems
from transforms.storage.manifests import FeatureManifest


def read_class_names(path: str | None, manifest: FeatureManifest) -> list[str] | None:
    """Reads the names of a feature set's classes, the lines of a text file; None without a path.

    Raises:
        InputError: the file cannot be read, it does not have a line for each class, or labels are
            numbers of a regression.
    """
    if not path:
        return None
    if manifest.task == "regression":
        raise InputError(
            f"`class_names={path!r}`: the labels are numbers of a regression and have no names; "
            "leave it out"
        )
    try:
        names = filesystems.read(path).decode().splitlines()
    except (*filesystems.STORE_ERRORS, ValueError) as error:
        raise InputError(
            f"`class_names={path!r}` cannot be read: {filesystems.describe_error(error)}"
        ) from error
    count = manifest.outputs if manifest.task == "multilabel" else max(2, manifest.outputs)
    if len(names) != count:
        raise InputError(
            f"`class_names={path!r}` has {len(names)} lines, the features are of {count} classes: "
            "give one line for each"
        )
    return names
