"""Local copies of remote files, for libraries that open files by path: made once on this machine's
disk, and whole there or absent.
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

# The endings of checkpoints that are one file.
_ONE_FILE = (".keras", ".h5", ".json")
# Bytes that are read and digested at once: few calls, and little memory.
_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True)
class StagingTuning:
    """The way files are copied.

    Attributes:
        attempts: how often a file that does not arrive whole is copied: a third failure is no
            accident.
        part_bytes: bytes of one request of a parallel download, 32 MiB as in Google's library.
    """

    attempts: int = 3
    part_bytes: int = 1 << 25


DEFAULT_TUNING = StagingTuning()


@dataclasses.dataclass(frozen=True)
class _Remote:
    """A file to be copied: its path, size in bytes, a number that changes with its content, and its
    object where it is in Cloud Storage.
    """

    path: str
    size: int
    version: float | None
    blob: Blob | None = None


def local_checkpoint(path: str, tuning: StagingTuning = DEFAULT_TUNING) -> str:
    """Returns a local path of a checkpoint: a `.keras`, `.weights.h5` or `.json` file, or the
    prefix of a TensorFlow checkpoint's files.

    Local paths are returned as they are. Remote files are copied to a directory whose name depends
    on path, size and generation (or time of change), so that a changed file is copied again and an
    unchanged one is not. Processes of one machine wait for each other's copies. A copy has its
    file's size and, where the store has one, its CRC-32C, and is compared with its own SHA-256
    before it is used again.

    Raises:
        InputError: the file cannot be read, or does not arrive as it is stored.
    """
    if filesystems.is_local(path):
        return path
    patterns = [path] if path.endswith(_ONE_FILE) else [f"{path}.index", f"{path}.data-*"]
    try:
        remotes = [_remote(m) for match in FileSystems.match(patterns) for m in match.metadata_list]
        if not remotes:
            raise InputError(f"{path}: no such file")
        identity = repr([(remote.path, remote.size, remote.version) for remote in remotes])
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        directory = os.path.join(private_directory(), key)
        os.makedirs(directory, exist_ok=True)
        with _locked(os.path.join(directory, "lock")):
            for remote in remotes:
                _copy(remote, os.path.join(directory, posixpath.basename(remote.path)), tuning)
    except filesystems.STORE_ERRORS as error:
        raise InputError(
            f"{path} cannot be copied to this machine: {filesystems.describe_error(error)}"
        ) from error
    return os.path.join(directory, posixpath.basename(path))


def _remote(metadata: FileMetadata) -> _Remote:
    """Returns a listed file with its version.

    Raises:
        InputError: an object has gone since it was listed.
    """
    if not metadata.path.startswith("gs://"):
        return _Remote(metadata.path, metadata.size_in_bytes, metadata.last_updated_in_seconds)
    bucket, name = gcsio.parse_gcs_path(metadata.path)
    # Beam's client: its credentials are those of all other reads.
    blob = gcsio.GcsIO().client.bucket(bucket).get_blob(name)
    if blob is None:
        raise InputError(f"{metadata.path}: no such file")
    return _Remote(metadata.path, blob.size, blob.generation, blob)


def private_directory() -> str:
    """Returns this user's own directory on this machine; it outlives processes, but no restart of
    the machine.
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


def _copy(remote: _Remote, target: str, tuning: StagingTuning) -> None:
    """Copies a file, unless there is an unchanged copy."""
    if _is_whole(target):
        return
    for left in reversed(range(tuning.attempts)):
        try:
            _download(remote, target, tuning.part_bytes)
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


def _download(remote: _Remote, target: str, part_bytes: int) -> None:
    """Copies a file once.

    Raises:
        one of `filesystems.STORE_ERRORS`: it cannot be read, or does not arrive as it is stored.
    """
    counters.add("checkpoint-files-copied")
    # Under another name first: no final name ever holds half a file.
    partial = f"{target}.{uuid.uuid4().hex}"
    try:
        _transfer(remote, partial, part_bytes)
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


def _transfer(remote: _Remote, target: str, part_bytes: int) -> None:
    """Writes a file's content to a local file that no other process reads."""
    if remote.blob:
        # The stored bytes, not unpacked ones; of the generation that was looked up.
        # The whole copy's checksum is compared afterwards, as it is on the disk.
        transfer_manager.download_chunks_concurrently(
            remote.blob,
            target,
            chunk_size=part_bytes,
            download_kwargs={"raw_download": True},
            worker_type=transfer_manager.THREAD,
            crc32c_checksum=False,
        )
    else:
        with filesystems.open_raw(remote.path) as reader, open(target, "wb") as writer:
            while chunk := reader.read(_CHUNK):
                writer.write(chunk)


def _decoded(checksum: str | None) -> bytes | None:
    """Returns a CRC-32C from Google Cloud Storage's form, base64 of four bytes big-endian; None
    where a store has another sum, or none.
    """
    try:
        decoded = base64.b64decode(checksum, validate=True) if checksum else b""
    except ValueError:
        return None
    return decoded if len(decoded) == 4 else None
