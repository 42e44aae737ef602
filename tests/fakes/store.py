"""A store of files that are not on this machine's disk, as far as the program can tell:
`store://NAME` is NAME below a directory.

Importing this module makes Beam know it. It notes every file that it opens, and breaks the next
ones as it is told.
"""

from __future__ import annotations

import base64
import fnmatch
import io
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import google_crc32c
from apache_beam.io.filesystem import BeamIOError, FileMetadata, MatchResult
from apache_beam.io.localfilesystem import LocalFileSystem


class StoreFileSystem(LocalFileSystem):
    """Files below the directory that the environment variable TRACIN_TEST_STORE names.

    Attributes:
        faults: what becomes of the next files that are opened: `"short"`, `"changed"` or
            `"broken"`.
        seconds: how long it takes to open one.
        tells_crc32c: whether it knows checksums.
    """

    faults: ClassVar[list[str]] = []
    seconds = 0.0
    tells_crc32c = True

    @classmethod
    def scheme(cls) -> str:
        return "store"

    @staticmethod
    def _path(url: str) -> pathlib.Path:
        return pathlib.Path(os.environ["TRACIN_TEST_STORE"]) / url.removeprefix("store://")

    def match(self, patterns: Sequence[str], limits: Any = None) -> list[MatchResult]:
        root = self._path("store://")
        urls = {
            f"store://{path.relative_to(root)}": path.stat()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }
        return [
            MatchResult(
                p,
                [
                    FileMetadata(url, stat.st_size, stat.st_mtime)
                    for url, stat in urls.items()
                    if fnmatch.fnmatchcase(url, p)
                ],
            )
            for p in patterns
        ]

    def open(self, path: str, mime_type: str = "", compression_type: str = "") -> io.BytesIO:
        with open(self._path("store://.opened"), "a") as log:
            log.write(f"{path}\n")
        time.sleep(self.seconds)
        data = self._path(path).read_bytes()
        fault = self.faults.pop(0) if self.faults else None
        if fault == "broken":
            raise BeamIOError("connection reset by peer")
        if fault == "changed":
            data = data[:-1] + bytes([data[-1] ^ 1])
        return io.BytesIO(data[: len(data) // 2] if fault == "short" else data)

    def checksum(self, path: str) -> str | None:
        if not self.tells_crc32c:
            return None
        return base64.b64encode(
            google_crc32c.Checksum(self._path(path).read_bytes()).digest()
        ).decode()


def opened() -> list[str]:
    """What has been opened, in all processes."""
    log = StoreFileSystem._path("store://.opened")
    return log.read_text().split() if log.exists() else []
