"""Remote files made local: what libraries open by path is copied once to this machine's disk."""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
import tempfile
import uuid

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from transforms import files
from transforms.errors import InputError

_WHOLE_FILES = (".keras", ".h5", ".json")


def local_checkpoint(path: str) -> str:
    """A local path of a checkpoint: a `.keras`, `.weights.h5` or `.json` file, or the prefix of a TensorFlow checkpoint's files.

    Local paths are returned as they are. Remote files are copied to a directory whose name tells path, size and time of change, so that a
    changed file is copied again and an unchanged one is not.

    Raises:
        InputError: the file cannot be read.
    """
    if files.is_local(path):
        return path
    patterns = [path] if path.endswith(_WHOLE_FILES) else [f"{path}.index", f"{path}.data-*"]
    try:
        found = [m for match in FileSystems.match(patterns) for m in match.metadata_list]
        if not found:
            raise InputError(f"{path}: no such file")
        identity = repr([(m.path, m.size_in_bytes, m.last_updated_in_seconds) for m in found])
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        directory = os.path.join(tempfile.gettempdir(), f"tracin-{os.getuid()}", key)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        for m in found:
            _copy(m.path, os.path.join(directory, posixpath.basename(m.path)), m.size_in_bytes)
    except (BeamIOError, OSError) as error:
        raise InputError(f"{path} cannot be copied to this machine: {error}") from error
    return os.path.join(directory, posixpath.basename(path))


def _copy(source: str, target: str, size: int) -> None:
    if os.path.exists(target) and os.path.getsize(target) == size:
        return
    # The name is taken in one step, so that no process ever loads half a file and two that copy at once do no harm.
    partial = f"{target}.{uuid.uuid4().hex}"
    try:
        with files.open_raw(source) as reader, open(partial, "wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 22)
        if os.path.getsize(partial) != size:
            raise InputError(f"{source} is {size} bytes and only {os.path.getsize(partial)} arrived: try again")
        os.replace(partial, target)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
