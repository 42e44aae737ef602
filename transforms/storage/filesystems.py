"""Files on any filesystem that Beam reads: found, read and verified, written whole.

The rest of the project reads and writes stored files through this module; `staging` copies what
libraries open by themselves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import posixpath
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, cast

import google_crc32c
from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata
from apache_beam.io.filesystems import FileSystems
from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError
from google.cloud.storage.exceptions import InvalidResponse
from urllib3.exceptions import HTTPError

from transforms.core.errors import InputError, first_line

# What stores and networks raise. Beam wraps Cloud Storage's exceptions in some of its calls and
# lets them through in others.
STORE_ERRORS = (BeamIOError, OSError, GoogleAPIError, GoogleAuthError, InvalidResponse, HTTPError)

# How often a store is asked for what does not arrive whole, beyond what its library tries by
# itself.
_ATTEMPTS = 3


@dataclasses.dataclass(frozen=True)
class FoundFile:
    """A file that a glob matched: its path, size in bytes, time of last change (seconds), and its
    path below the glob's literal part.
    """

    path: str
    size: int
    modified: float
    name: str


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file as a manifest lists it: its name in the directory, size in bytes, CRC-32C, and how
    many records it holds.
    """

    name: str
    size: int
    crc32c: int
    count: int


def told(error: Exception) -> str:
    """What an error of a store says, in one line; where Beam wrapped others, the first of them."""
    for cause in (getattr(error, "exception_details", None) or {}).values():
        if isinstance(cause, Exception):
            return told(cause)
    response = getattr(error, "response", None)
    if response is None or not isinstance(error, (GoogleAPIError, InvalidResponse)):
        return first_line(error)
    status = f"{response.status_code} {response.reason}"
    try:
        return f"{status}: {response.json()['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return status


def split_patterns(patterns: str) -> list[str]:
    """The globs of a comma-separated flag."""
    return [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]


def literal_directory(pattern: str) -> str:
    """The last directory of a glob that is spelled out: `data/2024/` for `data/2024/*/train-*`,
    with its trailing separator.
    """
    literal = _literal(pattern)
    return literal[: literal.rfind("/") + 1]


def is_glob(pattern: str) -> bool:
    """Whether a path holds a character that stands for others."""
    return _literal(pattern) != pattern


def _literal(pattern: str) -> str:
    """What stands before a glob's first special character."""
    return re.split(r"[*?\[]", pattern, maxsplit=1)[0]


def match(pattern: str) -> list[FileMetadata]:
    """The files that a glob matches, on any filesystem."""
    if not is_local(pattern) or "/" in _literal(pattern) or not is_glob(pattern):
        return list(FileSystems.match([pattern])[0].metadata_list)
    # Beam finds nothing for a local glob whose literal part has no directory.
    found = FileSystems.match([f"./{pattern}"])[0].metadata_list
    return [
        FileMetadata(m.path.removeprefix("./"), m.size_in_bytes, m.last_updated_in_seconds)
        for m in found
    ]


def find(patterns: str, field: str) -> list[FoundFile]:
    """Finds the files of a comma-separated list of globs, sorted by path.

    `field` names the setting in messages. Each glob must match a file, and no two files may have
    the same name below their globs' last literal directories, since those names are the stems of
    the examples' ids.

    Raises:
        InputError: a glob matches nothing or cannot be read, or two files would give the same ids.
    """
    wanted = split_patterns(patterns)
    if not wanted:
        raise InputError(
            f"`{field}` is empty: give one or more globs of files, separated by commas"
        )
    found: dict[str, FoundFile] = {}
    for pattern in wanted:
        try:
            matched = match(pattern)
        except (*STORE_ERRORS, ValueError) as error:
            raise InputError(f"`{field}={pattern!r}` cannot be read: {told(error)}") from error
        prefix = literal_directory(pattern)
        files = [
            m
            for m in matched
            if not m.path.endswith("/") and not (is_local(m.path) and os.path.isdir(m.path))
        ]
        if not files:
            raise InputError(f"`{field}={pattern!r}` matches no file: check the path and the glob")
        for m in files:
            # Beam may return a local path made absolute; the name is then what follows the same
            # directory made absolute.
            base = prefix if m.path.startswith(prefix) else os.path.abspath(prefix) + "/"
            name = m.path[len(base) :] if m.path.startswith(base) else posixpath.basename(m.path)
            found.setdefault(
                m.path, FoundFile(m.path, m.size_in_bytes, m.last_updated_in_seconds or 0.0, name)
            )
    names: dict[str, str] = {}
    for file in found.values():
        if file.name in names:
            raise InputError(
                f"`{field}` matches {names[file.name]} and {file.path}, whose records would get "
                f"the same ids ({file.name}#0, …): "
                "use one glob from a common directory, or run them one by one"
            )
        names[file.name] = file.path
    return sorted(found.values(), key=lambda file: file.path)


class _Steady(io.RawIOBase):
    """A store's stream that ends where its file ends: an answer shorter than what was asked for is
    no end, the rest is asked for.
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

    def _next(self, wanted: int) -> bytes:
        wanted = min(wanted, self._size - self._position)
        for _ in range(_ATTEMPTS if wanted > 0 else 0):
            if data := self._stream.read(wanted):
                self._position += len(data)
                return data
        if wanted > 0:
            raise OSError(
                f"{self._path} has {self._size} bytes, and from {self._position} on none arrive"
            )
        return b""


def open_raw(path: str) -> IO[bytes]:
    """Opens a file as it is stored: what a name's ending says of compression is ignored."""
    stream = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return stream if is_local(path) else cast(IO[bytes], io.BufferedReader(_Steady(path, stream)))


def read(path: str) -> bytes:
    """Reads a whole file as it is stored."""
    with open_raw(path) as stream:
        return stream.read()


def read_verified(directory: str, file: StoredFile) -> bytes:
    """Reads a file that a manifest lists and checks its size and CRC-32C.

    Raises:
        InputError: the file is missing, or its content is not what was written.
    """
    path = join(directory, file.name)
    for left in reversed(range(1 if is_local(path) else _ATTEMPTS)):
        try:
            data = read(path)
        except STORE_ERRORS as error:
            raise InputError(
                f"{path} is listed in its manifest and cannot be read: {told(error)}; compute the "
                "set again"
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
    """CRC-32C of `data`, or of what has this checksum `before` with `data` after it."""
    return int(google_crc32c.extend(before, data))


class NewFile:
    """A file in the making, of which no reader ever sees a part.

    On a local disk its bytes go to a hidden neighbour, which takes the name in one step. What goes
    to a store is kept in memory until it is whole: an upload whose state is lost, say because its
    last answer was, cannot always be resumed; the same bytes can be written again.
    """

    def __init__(self, directory: str, name: str) -> None:
        """Begins it; `finish` or `discard` ends it.

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
            with self._told():
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
        with self._told():
            self._stream.write(data)

    def finish(self, count: int) -> StoredFile:
        """Gives it its name, and returns what a manifest lists of it: it holds `count` records.

        Raises:
            InputError: the disk or the store does not take it.
        """
        if self._stream is not None:
            with self._told():
                self._stream.close()
                os.replace(self._hidden, self._path)
        else:
            self._upload()
        return StoredFile(self._name, self.size, self._crc, count)

    def discard(self) -> None:
        """Gives it up; without effect on one that is finished."""
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.close()
            with contextlib.suppress(OSError):
                os.remove(self._hidden)
        self._parts.clear()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.discard()
            raise InputError(f"{self._path} cannot be written: {told(error)}") from error

    def _upload(self) -> None:
        for left in reversed(range(_ATTEMPTS)):
            try:
                _upload(self._path, self._parts)
                return
            except STORE_ERRORS as error:
                if not left:
                    raise InputError(f"{self._path} cannot be written: {told(error)}") from error
                logging.getLogger(__name__).warning(
                    "%s was not written (%s): writing it again", self._path, told(error)
                )


def hidden_name(name: str, writer: str) -> str:
    """The name that a local file has while it is written; globs as parts of it give a glob for such
    names.
    """
    return f".{name}.{writer}.part"


def write(directory: str, name: str, data: bytes, count: int) -> StoredFile:
    """Writes a whole file, so that no reader ever sees a part of it, and returns what a manifest
    lists of it.

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
        # Else Cloud Storage's writer would try once more when it is collected, behind the back of
        # what has been told to have failed.
        if terminate := getattr(stream, "terminate", None):
            with contextlib.suppress(Exception):
                terminate()
        raise


def exists(path: str) -> bool:
    """Whether a file stands at `path`."""
    return bool(FileSystems.exists(path))


def delete(directory: str, names: Iterable[str]) -> None:
    """Deletes files of `directory` by name; those that are gone already do not matter."""
    paths = [path for name in names if exists(path := join(directory, name))]
    if paths:
        FileSystems.delete(paths)


def names_matching(directory: str, patterns: Iterable[str]) -> set[str]:
    """The names of the files of `directory` that match any of the globs."""
    return {
        posixpath.basename(m.path) for pattern in patterns for m in match(join(directory, pattern))
    }


def sizes(directory: str, names: Iterable[str]) -> dict[str, int]:
    """The sizes in bytes of those files of `directory` that are there."""
    found = FileSystems.match([join(directory, name) for name in names])
    return {
        posixpath.basename(m.path): m.size_in_bytes
        for result in found
        for m in result.metadata_list
    }


def check_writable(directory: str) -> None:
    """Makes sure, before any work, that files can be written to `directory`.

    Raises:
        InputError: a small file could not be written there and removed again.
    """
    if is_local(directory) and os.path.isfile(directory):
        raise InputError(
            f"`output={directory!r}` is a file, expected a directory or a place where one can be "
            "made"
        )
    name = f".tracin-writable-{uuid.uuid4().hex}"
    try:
        write(directory, name, b"", 0)
    except InputError as error:
        cause = error.__cause__
        raise InputError(
            f"`output={directory!r}` cannot be written: "
            f"{told(cause) if isinstance(cause, Exception) else error}"
        ) from error
    # Some may write to a bucket and not delete from it.
    with contextlib.suppress(*STORE_ERRORS):
        FileSystems.delete([join(directory, name)])


def is_local(path: str) -> bool:
    """Whether `path` is on this machine's own disk."""
    return "://" not in path


def join(directory: str, name: str) -> str:
    """The path of `name` below `directory`, on any filesystem."""
    return f"{directory.rstrip('/')}/{name}"
