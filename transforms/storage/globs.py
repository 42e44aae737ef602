"""Files by their patterns: the files that comma-separated globs match on any filesystem."""

from __future__ import annotations

import dataclasses
import os
import posixpath
import re
from collections.abc import Iterable

from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.filesystems import FileSystems

from transforms.core.errors import InputError
from transforms.storage import filesystems


@dataclasses.dataclass(frozen=True)
class MatchedFile:
    """A file that a glob matches: its path, size in bytes, time of last change (seconds), and its
    path below the glob's literal part.
    """

    path: str
    size: int
    modified: float
    name: str


def split_patterns(patterns: str) -> list[str]:
    """Returns the globs of a comma-separated list."""
    return [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]


def literal_directory(pattern: str) -> str:
    """Returns the last directory of a glob that is spelled out, with its trailing separator:
    `data/2024/` for `data/2024/*/train-*`.
    """
    literal = _literal(pattern)
    return literal[: literal.rfind("/") + 1]


def is_glob(pattern: str) -> bool:
    """Returns whether a path has a character that stands for others."""
    return _literal(pattern) != pattern


def _literal(pattern: str) -> str:
    """Returns the part of a glob before its first special character."""
    return re.split(r"[*?\[]", pattern, maxsplit=1)[0]


def match(pattern: str) -> list[FileMetadata]:
    """Returns the files that a glob matches, on any filesystem.

    Raises:
        one of `filesystems.STORE_ERRORS`, ValueError: the filesystem cannot be read, or is unknown.
    """
    if not filesystems.is_local(pattern) or "/" in _literal(pattern) or not is_glob(pattern):
        return list(FileSystems.match([pattern])[0].metadata_list)
    # Beam matches nothing for a local glob whose literal part has no directory.
    matches = FileSystems.match([f"./{pattern}"])[0].metadata_list
    return [
        FileMetadata(m.path.removeprefix("./"), m.size_in_bytes, m.last_updated_in_seconds)
        for m in matches
    ]


def names_matching(directory: str, patterns: Iterable[str]) -> set[str]:
    """Returns the names of the files of `directory` that match any of the globs."""
    return {
        posixpath.basename(m.path)
        for pattern in patterns
        for m in match(filesystems.join(directory, pattern))
    }


def find(patterns: str, field: str) -> list[MatchedFile]:
    """Finds the files of a comma-separated list of globs, sorted by path.

    `field` names the setting in messages. Each glob must match a file. No two files may have the
    same name below their globs' last literal directories, since those names are the stems of the
    examples' ids.

    Raises:
        InputError: a glob matches nothing or cannot be read, or two files would give the same ids.
    """
    globs = split_patterns(patterns)
    if not globs:
        raise InputError(
            f"`{field}` is empty: give one or more globs of files, separated by commas"
        )
    files: dict[str, MatchedFile] = {}
    for pattern in globs:
        for file in _find(pattern, field):
            files.setdefault(file.path, file)
    names: dict[str, str] = {}
    for file in files.values():
        if file.name in names:
            raise InputError(
                f"`{field}` matches {names[file.name]} and {file.path}, whose records would get "
                f"the same ids ({file.name}#0, …): use one glob from a common directory, or run "
                "them one by one"
            )
        names[file.name] = file.path
    return sorted(files.values(), key=lambda file: file.path)


def _find(pattern: str, field: str) -> list[MatchedFile]:
    """Finds the files of one glob, directories excepted."""
    try:
        matches = match(pattern)
    except (*filesystems.STORE_ERRORS, ValueError) as error:
        message = filesystems.describe_error(error)
        raise InputError(f"`{field}={pattern!r}` cannot be read: {message}") from error
    prefix = literal_directory(pattern)
    files = []
    for m in matches:
        if m.path.endswith("/") or (filesystems.is_local(m.path) and os.path.isdir(m.path)):
            continue
        # Beam may return a local path made absolute; the name is then the part after the same
        # directory made absolute.
        base = prefix if m.path.startswith(prefix) else os.path.abspath(prefix) + "/"
        name = m.path[len(base) :] if m.path.startswith(base) else posixpath.basename(m.path)
        files.append(MatchedFile(m.path, m.size_in_bytes, m.last_updated_in_seconds or 0.0, name))
    if not files:
        raise InputError(f"`{field}={pattern!r}` matches no file: check the path and the glob")
    return files
