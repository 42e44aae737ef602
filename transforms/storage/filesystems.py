"""Files on any filesystem that Beam reads: read and verified, written whole, deleted.

The rest of the project reads and writes stored files through this module. `globs` finds files, and
`staging` copies remote ones for libraries that open files by themselves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import posixpath
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, cast

import google_crc32c
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError
from google.cloud.storage.exceptions import InvalidResponse
from urllib3.exceptions import HTTPError

from transforms.core.errors import InputError, first_line

# The errors of stores and networks. Beam wraps Cloud Storage's exceptions in some of its calls and
# lets them through in others.
STORE_ERRORS = (BeamIOError, OSError, GoogleAPIError, GoogleAuthError, InvalidResponse, HTTPError)

# How often a file that does not arrive whole is asked for, beyond what the store's library tries by
# itself: a third failure is no accident.
_ATTEMPTS = 3


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file as a manifest lists it: its name in the directory, size in bytes, CRC-32C, and number
    of records.
    """

    name: str
    size: int
    crc32c: int
    count: int


def describe_error(error: Exception) -> str:
    """Returns a store's error as one line; where Beam wrapped several, the first of them."""
    for cause in (getattr(error, "exception_details", None) or {}).values():
        if isinstance(cause, Exception):
            return describe_error(cause)
    response = getattr(error, "response", None)
    if response is None or not isinstance(error, (GoogleAPIError, InvalidResponse)):
        return first_line(error)
    status = f"{response.status_code} {response.reason}"
    try:
        return f"{status}: {response.json()['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return status


class _WholeStream(io.RawIOBase):
    """A store's stream that ends where its file ends: after an answer that is shorter than the
    request, the rest is requested.
    """

    def __init__(self, path: str, stream: IO[bytes]) -> None:
        self._path = path
        self._stream = stream
        self._size = stream.seek(0, os.SEEK_END)
        self._position = stream.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = self._stream.seek(offset, whence)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        parts = []
        while part := self._next(self._size - self._position):
            parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()

    def _next(self, size: int) -> bytes:
        size = min(size, self._size - self._position)
        for _ in range(_ATTEMPTS if size > 0 else 0):
            if data := self._stream.read(size):
                self._position += len(data)
                return data
        if size > 0:
            raise OSError(
                f"{self._path} has {self._size} bytes, and from {self._position} on none arrive"
            )
        return b""


def open_raw(path: str) -> IO[bytes]:
    """Opens a file as it is stored: a name's ending does not make it decompressed."""
    stream = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return (
        stream if is_local(path) else cast(IO[bytes], io.BufferedReader(_WholeStream(path, stream)))
    )


def read(path: str) -> bytes:
    """Reads a whole file as it is stored."""
    with open_raw(path) as stream:
        return stream.read()


def read_verified(directory: str, file: StoredFile) -> bytes:
    """Reads a file that a manifest lists, and checks its size and CRC-32C.

    Raises:
        InputError: the file is missing, or its content is not what was written.
    """
    path = join(directory, file.name)
    for left in reversed(range(1 if is_local(path) else _ATTEMPTS)):
        try:
            data = read(path)
        except STORE_ERRORS as error:
            raise InputError(
                f"{path} is listed in its manifest and cannot be read: {describe_error(error)}; "
                "compute the set again"
            ) from error
        if len(data) == file.size and crc32c(data) == file.crc32c:
            return data
        if left:
            logging.getLogger(__name__).warning(
                "%s did not arrive as its manifest says: reading it again", path
            )
    raise InputError(
        f"{path} is damaged: its manifest says {file.size} bytes with CRC-32C {file.crc32c:08x}, "
        f"found {len(data)} bytes with {crc32c(data):08x}; compute the set again"
    )


def crc32c(data: bytes, before: int = 0) -> int:
    """Returns the CRC-32C of `data`, or of bytes with the checksum `before` followed by `data`."""
    return int(google_crc32c.extend(before, data))


class NewFile:
    """A file that is being written, and that no reader sees before it is whole.

    On a local disk its bytes go to a hidden neighbour, which takes the name in one step. The bytes
    of a file of a store stay in memory until all are there: an upload whose state is lost, say
    because its last answer was, cannot always be resumed, but the same bytes can be written again.
    """

    def __init__(self, directory: str, name: str) -> None:
        """Begins a file; `finish` or `discard` ends it.

        Raises:
            InputError: the disk does not take it.
        """
        self.size = 0
        self._crc = 0
        self._name = name
        self._path = join(directory, name)
        self._parts: list[bytes] = []
        self._stream: IO[bytes] | None = None
        if is_local(self._path):
            self._hidden = join(
                os.path.dirname(self._path) or ".", hidden_name(name, uuid.uuid4().hex)
            )
            with self._written():
                os.makedirs(os.path.dirname(self._path) or ".", exist_ok=True)
                # `finish` or `discard` closes it.
                self._stream = open(self._hidden, "wb")  # noqa: SIM115

    def add(self, data: bytes) -> None:
        """Adds bytes at its end.

        Raises:
            InputError: the disk does not take them.
        """
        self.size += len(data)
        self._crc = crc32c(data, self._crc)
        if self._stream is None:
            self._parts.append(data)
            return
        with self._written():
            self._stream.write(data)

    def finish(self, count: int) -> StoredFile:
        """Gives the file its name, and returns it for a manifest, with `count` records.

        Raises:
            InputError: the disk or the store does not take it.
        """
        if self._stream is not None:
            with self._written():
                self._stream.close()
                os.replace(self._hidden, self._path)
        else:
            self._upload()
        return StoredFile(self._name, self.size, self._crc, count)

    def discard(self) -> None:
        """Discards the file; without effect on one that is finished."""
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.close()
            with contextlib.suppress(OSError):
                os.remove(self._hidden)
        self._parts.clear()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.discard()
            raise InputError(f"{self._path} cannot be written: {describe_error(error)}") from error

    def _upload(self) -> None:
        for left in reversed(range(_ATTEMPTS)):
            try:
                _upload(self._path, self._parts)
                return
            except STORE_ERRORS as error:
                if not left:
                    raise InputError(
                        f"{self._path} cannot be written: {describe_error(error)}"
                    ) from error
                logging.getLogger(__name__).warning(
                    "%s was not written (%s): writing it again", self._path, describe_error(error)
                )


def hidden_name(name: str, writer: str) -> str:
    """Returns the name of a local file while it is written; globs as arguments give a glob."""
    return f".{name}.{writer}.part"


def write(directory: str, name: str, data: bytes, count: int) -> StoredFile:
    """Writes a file that no reader sees before it is whole, and returns it for a manifest, with
    `count` records.

    Raises:
        InputError: the disk or the store does not take it.
    """
    file = NewFile(directory, name)
    try:
        file.add(data)
        return file.finish(count)
    except BaseException:
        file.discard()
        raise


def _upload(path: str, parts: Sequence[bytes]) -> None:
    """Writes a whole file to a store."""
    stream = FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)
    try:
        with stream:
            for part in parts:
                stream.write(part)
    except BaseException:
        # Else Cloud Storage's writer would try once more when it is collected, after the caller has
        # learnt that it failed.
        if terminate := getattr(stream, "terminate", None):
            with contextlib.suppress(Exception):
                terminate()
        raise


def exists(path: str) -> bool:
    """Returns whether there is a file at `path`."""
    return bool(FileSystems.exists(path))


def delete(directory: str, names: Iterable[str]) -> None:
    """Deletes files of `directory` by name, skipping those that are gone."""
    paths = [path for name in names if exists(path := join(directory, name))]
    if paths:
        FileSystems.delete(paths)


def sizes(directory: str, names: Iterable[str]) -> dict[str, int]:
    """Returns the sizes in bytes of those files of `directory` that exist, by name."""
    results = FileSystems.match([join(directory, name) for name in names])
    return {
        posixpath.basename(m.path): m.size_in_bytes
        for result in results
        for m in result.metadata_list
    }


def check_writable(directory: str) -> None:
    """Checks, before any work, that files can be written to `directory`, the setting `output`.

    Raises:
        InputError: a small file could not be written there and removed again.
    """
    if is_local(directory) and os.path.isfile(directory):
        raise InputError(
            f"`output={directory!r}` is a file, expected a directory or a path where one can be "
            "made"
        )
    name = f".tracin-writable-{uuid.uuid4().hex}"
    try:
        write(directory, name, b"", 0)
    except InputError as error:
        cause = error.__cause__
        message = describe_error(cause) if isinstance(cause, Exception) else error
        raise InputError(f"`output={directory!r}` cannot be written: {message}") from error
    # Some users may write to a bucket and not delete from it.
    with contextlib.suppress(*STORE_ERRORS):
        FileSystems.delete([join(directory, name)])


def is_local(path: str) -> bool:
    """Returns whether `path` is on this machine's own disk."""
    return "://" not in path


def join(directory: str, name: str) -> str:
    """Returns the path of `name` in `directory`, on any filesystem."""
    return f"{directory.rstrip('/')}/{name}"
