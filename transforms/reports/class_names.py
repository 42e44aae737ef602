"""The names of classes, for those who read a report."""

from __future__ import annotations

from transforms.core.errors import InputError
from transforms.storage import filesystems
from transforms.storage.feature_manifest import FeatureManifest


def read_class_names(path: str | None, found: FeatureManifest) -> list[str] | None:
    """The names of the classes of a feature set, the lines of a file; None where no file is named.

    Raises:
        InputError: it cannot be read, there are not as many as classes, or there are no classes.
    """
    if not path:
        return None
    if found.task == "regression":
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
    count = found.outputs if found.task == "multilabel" else max(2, found.outputs)
    if len(names) != count:
        raise InputError(
            f"`class_names={path!r}` has {len(names)} lines, the features are of {count} classes: "
            "give one line for each"
        )
    return names
