"""Remote files made local: what libraries open by path is copied once to this machine's disk, and
is whole there or not at all.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import fcntl
import hashlib
import logging
import os
import posixpath
import tempfile
import uuid
from collections.abc import Iterator

import google_crc32c
from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.filesystems import FileSystems
from apache_beam.io.gcp import gcsio
from google.cloud.storage import Blob, transfer_manager

from transforms.core.errors import InputError
from transforms.runtime import counters
from transforms.storage import filesystems

_WHOLE_FILES = (".keras", ".h5", ".json")
_CHUNK = 1 << 22
_ATTEMPTS = 3
# What one request of a parallel transfer is for.
_PART = 1 << 25


@dataclasses.dataclass(frozen=True)
class _Remote:
    """A file to be copied: its path, size in bytes, what changes with its content, and its object
    where Cloud Storage has it.
    """

    path: str
    size: int
    version: float | None
    blob: Blob | None = None


def local_checkpoint(path: str) -> str:
    """A local path of a checkpoint: a `.keras`, `.weights.h5` or `.json` file, or the prefix of a
    TensorFlow checkpoint's files.

    Local paths are returned as they are. Remote files are copied to a directory whose name tells
    path, size and generation (or time of change), so that a changed file is copied again and an
    unchanged one is not. Processes of one machine wait for each other's copies. A copy has its
    file's size and, where the store tells one, its CRC-32C, and is compared with its own SHA-256
    before it is used again.

    Raises:
        InputError: the file cannot be read, or does not arrive as it is stored.
    """
    if filesystems.is_local(path):
        return path
    patterns = [path] if path.endswith(_WHOLE_FILES) else [f"{path}.index", f"{path}.data-*"]
    try:
        found = [
            _described(m) for match in FileSystems.match(patterns) for m in match.metadata_list
        ]
        if not found:
            raise InputError(f"{path}: no such file")
        identity = repr([(remote.path, remote.size, remote.version) for remote in found])
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        directory = os.path.join(private_directory(), key)
        os.makedirs(directory, exist_ok=True)
        with _locked(os.path.join(directory, "lock")):
            for remote in found:
                _copy(remote, os.path.join(directory, posixpath.basename(remote.path)))
    except filesystems.STORE_ERRORS as error:
        raise InputError(
            f"{path} cannot be copied to this machine: {filesystems.describe_error(error)}"
        ) from error
    return os.path.join(directory, posixpath.basename(path))


def _described(metadata: FileMetadata) -> _Remote:
    """A file that was found, as what is to be copied.

    Raises:
        InputError: an object has gone since it was listed.
    """
    if not metadata.path.startswith("gs://"):
        return _Remote(metadata.path, metadata.size_in_bytes, metadata.last_updated_in_seconds)
    bucket, name = gcsio.parse_gcs_path(metadata.path)
    # Beam's client, so that the credentials are those that everything else is read with.
    blob = gcsio.GcsIO().client.bucket(bucket).get_blob(name)
    if blob is None:
        raise InputError(f"{metadata.path}: no such file")
    return _Remote(metadata.path, blob.size, blob.generation, blob)


def private_directory() -> str:
    """This user's own directory on this machine, which outlives processes but no restart of the
    machine.
    """
    directory = os.path.join(tempfile.gettempdir(), f"tracin-{os.getuid()}")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    return directory


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Keeps the other processes of this machine out; the lock of one that dies is released."""
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _copy(remote: _Remote, target: str) -> None:
    """Copies a file, unless there is a copy that is still what it was."""
    if _is_whole(target):
        return
    for left in reversed(range(_ATTEMPTS)):
        try:
            _download(remote, target)
            return
        except filesystems.STORE_ERRORS as error:
            if not left:
                raise
            logging.getLogger(__name__).warning(
                "%s did not arrive (%s): copying it again",
                remote.path,
                filesystems.describe_error(error),
            )


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


def _download(remote: _Remote, target: str) -> None:
    """Copies a file once.

    Raises:
        one of `files.STORE_ERRORS`: it could not be read, or what arrived is not what is stored.
    """
    counters.add("checkpoint-files-copied")
    # Under another name first: no name that is looked for ever holds half a file.
    partial = f"{target}.{uuid.uuid4().hex}"
    try:
        _transfer(remote, partial)
        arrived, crc, digest = 0, google_crc32c.Checksum(), hashlib.sha256()
        with open(partial, "rb") as copy:
            while chunk := copy.read(_CHUNK):
                arrived += len(chunk)
                crc.update(chunk)
                digest.update(chunk)
        stored = _decoded(remote.blob.crc32c if remote.blob else FileSystems.checksum(remote.path))
        if arrived != remote.size or stored not in (None, crc.digest()):
            wrong_size = f"it has {remote.size} bytes, {arrived} arrived"
            raise OSError(
                wrong_size if arrived != remote.size else "its CRC-32C is not that of what arrived"
            )
        with open(_digest_path(target), "w") as written:
            written.write(digest.hexdigest())
        os.replace(partial, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)


def _transfer(remote: _Remote, target: str) -> None:
    """Writes a file's content to a local one, which nobody else looks at."""
    if remote.blob:
        # Stored bytes, not what they would be unpacked to; of the generation that was looked up.
        # The whole copy's checksum is compared afterwards, as it is on the disk.
        transfer_manager.download_chunks_concurrently(
            remote.blob,
            target,
            chunk_size=_PART,
            download_kwargs={"raw_download": True},
            worker_type=transfer_manager.THREAD,
            crc32c_checksum=False,
        )
    else:
        with filesystems.open_raw(remote.path) as reader, open(target, "wb") as writer:
            while chunk := reader.read(_CHUNK):
                writer.write(chunk)


def _decoded(told: str | None) -> bytes | None:
    """A CRC-32C in Google Cloud Storage's form, base64 of four bytes big-endian; None where a store
    tells another sum, or none.
    """
    try:
        decoded = base64.b64decode(told, validate=True) if told else b""
    except ValueError:
        return None
    return decoded if len(decoded) == 4 else None
