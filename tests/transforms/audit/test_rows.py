"""Audited examples as files and as rows."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from transforms.audit.rows import AuditedExamples, read_pending, write_pending
from transforms.audit.slices import Slices
from transforms.audit.suspicion import Evidence
from transforms.core.errors import InputError
from transforms.core.origins import Origins


def drawn(n: int, slices: Slices | None) -> tuple[AuditedExamples, Evidence]:
    rng = np.random.default_rng(n)
    origins = Origins(
        ("a", "ä/b"),
        rng.integers(0, 2, n).astype(np.int32),
        rng.integers(0, 1 << 40, n),
        rng.integers(0, 256, (n, 16), np.uint8),
    )
    known = AuditedExamples(
        7,
        np.array([f"id-ö-{i}".encode() for i in range(n)], dtype=np.bytes_)
        if n
        else np.empty(0, "S1"),
        origins,
        rng.integers(0, 3, n),
        rng.integers(0, 3, n),
        rng.random(n, np.float32),
        rng.random(n),
        rng.random(n),
        np.where(rng.random((n, 3)) < 0.2, np.nan, rng.random((n, 3))) if slices else None,
        slices,
    )
    return known, Evidence(
        rng.integers(0, 3, (n, 2), np.int32),
        *rng.random((2, n, 2), np.float32),
        rng.random(n, np.float32),
    )


def assert_equal(one: object, other: object) -> None:
    for field in dataclasses.fields(one):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == theirs.dtype and mine.tobytes() == theirs.tobytes(), field.name
        elif dataclasses.is_dataclass(mine):
            assert_equal(mine, theirs)
        else:
            assert mine == theirs, field.name


@pytest.mark.parametrize("n", [0, 1, 50])
@pytest.mark.parametrize(
    "slices", [None, Slices(1, (("country", "dé"),), np.array([4, 2, 2]), ("device",))]
)
def test_what_is_read_is_what_was_written(
    tmp_path: pathlib.Path, n: int, slices: Slices | None
) -> None:
    known, evidence = drawn(n, slices)
    stored = write_pending(str(tmp_path), known, evidence)
    assert (stored.file, stored.stored.count) == (7, n)
    for one, other in zip((known, evidence), read_pending(str(tmp_path), stored), strict=True):
        assert_equal(one, other)


def test_attempts_do_not_overwrite_each_other(tmp_path: pathlib.Path) -> None:
    known, evidence = drawn(3, None)
    names = {write_pending(str(tmp_path), known, evidence).stored.name for _ in range(2)}
    assert len(names) == 2 and names == {path.name for path in tmp_path.iterdir()}


def test_damage_is_told(tmp_path: pathlib.Path) -> None:
    stored = write_pending(str(tmp_path), *drawn(3, None))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="weighed-000007"):
        read_pending(str(tmp_path), stored)
