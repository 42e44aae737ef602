"""Remote files made local: what libraries open by path is copied once to this machine's disk, and is whole there or not at all."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import logging
import os
import posixpath
import tempfile
import uuid
from collections.abc import Iterator

import google_crc32c
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from transforms import counting, files
from transforms.errors import InputError

_WHOLE_FILES = (".keras", ".h5", ".json")
_CHUNK = 1 << 22
_ATTEMPTS = 3


def local_checkpoint(path: str) -> str:
    """A local path of a checkpoint: a `.keras`, `.weights.h5` or `.json` file, or the prefix of a TensorFlow checkpoint's files.

    Local paths are returned as they are. Remote files are copied to a directory whose name tells path, size and time of change, so that a
    changed file is copied again and an unchanged one is not. Processes of one machine wait for each other's copies. A copy has its file's
    size and, where the store tells one, its CRC-32C, and is compared with its own SHA-256 before it is used again.

    Raises:
        InputError: the file cannot be read, or does not arrive as it is stored.
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
        directory = os.path.join(private_directory(), key)
        os.makedirs(directory, exist_ok=True)
        with _locked(os.path.join(directory, "lock")):
            for m in found:
                _copy(m.path, os.path.join(directory, posixpath.basename(m.path)), m.size_in_bytes)
    except (BeamIOError, OSError) as error:
        raise InputError(f"{path} cannot be copied to this machine: {error}") from error
    return os.path.join(directory, posixpath.basename(path))


def private_directory() -> str:
    """This user's own directory on this machine, which outlives processes but no restart of the machine."""
    directory = os.path.join(tempfile.gettempdir(), f"tracin-{os.getuid()}")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    return directory


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Keeps the other processes of this machine out; the lock of one that dies is released."""
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _copy(source: str, target: str, size: int) -> None:
    """Copies a file, unless there is a copy that is still what it was."""
    if _is_whole(target):
        return
    for left in reversed(range(_ATTEMPTS)):
        try:
            _download(source, target, size)
            return
        except (BeamIOError, OSError) as error:
            if not left:
                raise
            logging.getLogger(__name__).warning("%s did not arrive (%s): copying it again", source, error)


def _is_whole(target: str) -> bool:
    try:
        with open(target, "rb") as copy, open(_digest_path(target)) as written:
            digest = hashlib.sha256()
            while chunk := copy.read(_CHUNK):
                digest.update(chunk)
            return digest.hexdigest() == written.read()
    except FileNotFoundError:
        return False


def _digest_path(target: str) -> str:
    return f"{target}.sha256"


def _download(source: str, target: str, size: int) -> None:
    """Copies a file once.

    Raises:
        OSError, BeamIOError: it could not be read, or what arrived is not what is stored.
    """
    counting.add("checkpoint-files-copied")
    arrived, crc, digest = 0, google_crc32c.Checksum(), hashlib.sha256()
    # Under another name first: no name that is looked for ever holds half a file.
    partial = f"{target}.{uuid.uuid4().hex}"
    try:
        with files.open_raw(source) as reader, open(partial, "wb") as writer:
            while chunk := reader.read(_CHUNK):
                writer.write(chunk)
                arrived += len(chunk)
                crc.update(chunk)
                digest.update(chunk)
        stored = _stored_crc32c(source)
        if arrived != size or stored not in (None, crc.digest()):
            raise OSError(f"it has {size} bytes, {arrived} arrived" if arrived != size else "its CRC-32C is not that of what arrived")
        with open(_digest_path(target), "w") as written:
            written.write(digest.hexdigest())
        os.replace(partial, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)


def _stored_crc32c(path: str) -> bytes | None:
    """The CRC-32C that a store tells of a file, in Google Cloud Storage's form, base64 of four bytes big-endian; else None."""
    told = FileSystems.checksum(path)
    try:
        decoded = base64.b64decode(told, validate=True) if told else b""
    except ValueError:
        return None
    return decoded if len(decoded) == 4 else None
