"""Audited examples as files and as rows."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from transforms.audit.rows import (
    AuditedExamples,
    influence_on,
    read_pending,
    table_rows,
    to_table,
    write_pending,
)
from transforms.audit.slices import Slices
from transforms.audit.suspicion import Evidence, Judgement
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


def test_a_damaged_file_is_named(tmp_path: pathlib.Path) -> None:
    stored = write_pending(str(tmp_path), *drawn(3, None))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="weighed-000007"):
        read_pending(str(tmp_path), stored)


def judgement(n: int) -> Judgement:
    rng = np.random.default_rng(n)
    return Judgement(rng.random(n), rng.integers(0, 3, n), rng.random(n))


def test_rows_hold_the_examples_in_order() -> None:
    examples, _ = drawn(20, None)
    judged = judgement(20)
    table = to_table(examples, judged)
    for i, row in enumerate(table.to_pylist()):
        assert row == {
            "example_id": examples.example_ids[i].decode(),
            "content_digest": examples.origins.digests[i].tobytes().hex(),
            "source": examples.origins.sources[examples.origins.source[i]],
            "offset": examples.origins.offsets[i],
            "label": examples.labels[i],
            "prediction": examples.predictions[i],
            "probability": examples.probabilities[i],
            "label_probability": examples.label_probabilities[i],
            "self_influence": examples.self_influence[i],
            "suspicion": judged.suspicion[i],
            "suggested_label": judged.suggested_labels[i],
            "suggested_probability": judged.suggested_probabilities[i],
            "record": 7 * 2**32 + i,
        }
    assert influence_on(table, "test_influence_by_label") is None


@pytest.mark.parametrize(
    ("labels", "named", "counts"),
    [
        (3, (), [2, 0, 6]),
        (2, (("k", "a"),), [3, 5, 8]),
        (1, (("k", "a"), ("k", "b")), [8, 3, 5]),
        (1, (), [4]),
    ],
)
def test_influence_is_a_mean_and_lists_with_null_for_empty_slices(labels, named, counts) -> None:
    rng = np.random.default_rng(1)
    examples, _ = drawn(20, None)
    influence = rng.normal(size=(20, len(counts)))
    influence[:, np.array(counts) == 0] = np.nan
    examples = dataclasses.replace(
        examples,
        test_influence=influence,
        test_slices=Slices(labels, named, np.array(counts)),
    )
    table = to_table(examples, judgement(20))
    expected = [
        sum(count * value for count, value in zip(counts[:labels], row, strict=False) if count)
        / sum(counts[:labels])
        for row in influence.tolist()
    ]
    assert table["test_influence"].to_pylist() == pytest.approx(expected)
    for column, own, present in (
        ("test_influence_by_label", influence[:, :labels], labels > 1),
        ("test_influence_by_slice", influence[:, labels:], bool(named)),
    ):
        found = influence_on(table, column)
        assert (found is not None) is present
        if present:
            np.testing.assert_array_equal(found, own)
            lists = [[None if np.isnan(x) else x for x in row] for row in own.tolist()]
            assert table[column].to_pylist() == lists


@pytest.mark.parametrize("with_test", [False, True])
def test_a_table_has_the_columns_of_the_rows_and_suspect(with_test: bool) -> None:
    columns = table_rows(0.25, with_test)
    examples, _ = drawn(3, None)
    written = to_table(examples, judgement(3)).drop_columns("record").schema
    assert columns.schema.names == [*written.names, *(["test_influence"] if with_test else [])]
    assert all(columns.schema.field(field.name).type == field.type for field in written)
    (suspect,) = columns.computed
    assert (suspect.name, suspect.sql) == ("suspect", "`suspicion` >= 0.25")
    assert columns.prefix == "examples-"
