"""Remote files made local: what libraries open by path is copied once to this machine's disk, and is whole there or not at all."""

from __future__ import annotations

import abc
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
from typing import Any

import google_crc32c
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems
from apache_beam.io.gcp import gcsio
from google.api_core.exceptions import NotFound
from google.cloud import storage
from google.cloud.storage import transfer_manager

from transforms import counting, files
from transforms.errors import InputError, first_line

_WHOLE_FILES = (".keras", ".h5", ".json")
_CHUNK = 1 << 22
_ATTEMPTS = 3
# Pieces of an object, and how many of them are copied at once.
_PIECE, _CONNECTIONS = 1 << 23, 8


def local_checkpoint(path: str) -> str:
    """A local path of a checkpoint: a `.keras`, `.weights.h5` or `.json` file, or the prefix of a TensorFlow checkpoint's files.

    Local paths are returned as they are. Remote files are copied to a directory whose name tells path, size and time of change (on Google
    Cloud Storage the generation), so that a changed file is copied again and an unchanged one is not. Processes of one machine wait for
    each other's copies. A copy has its file's size and, where the store tells one, its CRC-32C, and is compared with its own SHA-256 before
    it is used again.

    Raises:
        InputError: the file cannot be read, or does not arrive as it is stored.
    """
    if files.is_local(path):
        return path
    find = _find_objects if path.startswith("gs://") else _find_files
    try:
        found = find(path)
        if not found:
            raise InputError(f"{path}: no such file")
        identity = repr([(file.path, file.size, file.version) for file in found])
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        directory = os.path.join(private_directory(), key)
        os.makedirs(directory, exist_ok=True)
        with _locked(os.path.join(directory, "lock")):
            for file in found:
                _copy(file, os.path.join(directory, posixpath.basename(file.path)))
    except (BeamIOError, OSError) as error:
        raise InputError(f"{path} cannot be copied to this machine: {first_line(error)}") from error
    return os.path.join(directory, posixpath.basename(path))


@dataclasses.dataclass(frozen=True)
class RemoteFile(abc.ABC):
    """A file to copy: its URL, its size in bytes, and what differs once its content does."""

    path: str
    size: int
    version: Any

    @abc.abstractmethod
    def download(self, target: str) -> None:
        """Copies it to a local path.

        Raises:
            OSError, BeamIOError: it could not be read, or what arrived is not what is stored.
        """


class _File(RemoteFile):
    """A file on any filesystem that Beam reads."""

    def download(self, target: str) -> None:
        """Reads it from its beginning to its end."""
        crc = google_crc32c.Checksum()
        arrived = 0
        with files.open_raw(self.path) as reader, open(target, "wb") as writer:
            while chunk := reader.read(_CHUNK):
                writer.write(chunk)
                arrived += len(chunk)
                crc.update(chunk)
        if arrived != self.size:
            raise OSError(f"it has {self.size} bytes, {arrived} arrived")
        if _stored_crc32c(self.path) not in (None, crc.digest()):
            raise OSError("its CRC-32C is not that of what arrived")


@dataclasses.dataclass(frozen=True)
class _Object(RemoteFile):
    """An object on Google Cloud Storage."""

    blob: storage.Blob

    def download(self, target: str) -> None:
        """Reads several pieces at once."""
        try:
            # It compares the CRC-32C of all pieces together, and asks for this generation alone.
            transfer_manager.download_chunks_concurrently(
                self.blob, target, chunk_size=_PIECE, worker_type=transfer_manager.THREAD, max_workers=_CONNECTIONS
            )
        except files.GOOGLE_ERRORS as error:
            raise OSError(first_line(error)) from error
        if os.path.getsize(target) != self.size:
            raise OSError(f"it has {self.size} bytes, {os.path.getsize(target)} arrived")


def _find_files(path: str) -> list[RemoteFile]:
    """A checkpoint's files on any filesystem of Beam."""
    patterns = [path] if path.endswith(_WHOLE_FILES) else [f"{path}.index", f"{path}.data-*"]
    matched = [m for match in FileSystems.match(patterns) for m in match.metadata_list]
    return [_File(m.path, m.size_in_bytes, m.last_updated_in_seconds) for m in matched]


def _find_objects(path: str) -> list[RemoteFile]:
    """A checkpoint's objects on Google Cloud Storage."""
    # With the credentials that Beam's options name, as all other access to the store.
    filesystem: Any = FileSystems.get_filesystem(path)
    client = gcsio.GcsIO(pipeline_options=filesystem._pipeline_options).client
    bucket, name = gcsio.parse_gcs_path(path)
    prefixes = [name] if path.endswith(_WHOLE_FILES) else [f"{name}.index", f"{name}.data-"]
    try:
        blobs = [blob for prefix in prefixes for blob in client.list_blobs(bucket, prefix=prefix)]
    except NotFound:
        raise InputError(f"{path}: no such bucket") from None
    except files.GOOGLE_ERRORS as error:
        raise OSError(first_line(error)) from error
    found = [blob for blob in blobs if blob.name == prefixes[0] or blob.name.startswith(f"{name}.data-")]
    return [_Object(f"gs://{bucket}/{blob.name}", blob.size, blob.generation, blob) for blob in found]


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


def _copy(file: RemoteFile, target: str) -> None:
    """Copies a file, unless there is a copy that is still what it was."""
    if _is_whole(target):
        return
    for left in reversed(range(_ATTEMPTS)):
        try:
            _download(file, target)
            return
        except (BeamIOError, OSError) as error:
            if not left:
                raise
            logging.getLogger(__name__).warning("%s did not arrive (%s): copying it again", file.path, error)


def _is_whole(target: str) -> bool:
    try:
        with open(_digest_path(target)) as written:
            return _digest(target) == written.read()
    except FileNotFoundError:
        return False


def _digest(path: str) -> str:
    """The SHA-256 of a local file."""
    digest = hashlib.sha256()
    with open(path, "rb") as copy:
        while chunk := copy.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _digest_path(target: str) -> str:
    return f"{target}.sha256"


def _download(file: RemoteFile, target: str) -> None:
    """Copies a file once.

    Raises:
        OSError, BeamIOError: it could not be read, or what arrived is not what is stored.
    """
    counting.add("checkpoint-files-copied")
    # Under another name first: no name that is looked for ever holds half a file.
    partial = f"{target}.{uuid.uuid4().hex}"
    try:
        file.download(partial)
        with open(_digest_path(target), "w") as written:
            written.write(_digest(partial))
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
