"""Parquet files and NumPy archives as sources: the same features as from TFRecord files of the same
examples.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tests.conftest import Outcome, Tiny, write_records
from tests.stage_one import assert_same_features, read_set
from transforms.examples.tables import read_archive, read_parquet
from transforms.storage.records.tfrecords import UnreadableTail

Run = Callable[..., Outcome]


def columns(tiny: Tiny) -> dict[str, object]:
    return {
        "id": [f"ex-{i:02d}" for i in range(len(tiny.labels))],
        "image": list(tiny.images),
        "label": tiny.labels,
    }


def parquet(table: dict[str, object], **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(table), sink, **options)
    return sink.getvalue()


def archive(**arrays: object) -> bytes:
    sink = io.BytesIO()
    np.savez_compressed(sink, **arrays)
    return sink.getvalue()


@pytest.fixture
def features(tracin: Run, tiny: Tiny, tmp_path: pathlib.Path) -> Run:
    def run(examples: pathlib.Path, output: str, *words: str) -> Outcome:
        flags = (
            f"--examples={examples}",
            f"--checkpoints={tiny.glob}",
            f"--output={tmp_path / output}",
            "--id_key=id",
        )
        return tracin("features", *flags, *words)

    return run


@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_features_are_those_of_the_same_examples_in_tfrecord_files(
    features: Run, tiny: Tiny, tmp_path: pathlib.Path, kind: str
) -> None:
    assert features(write_records(tmp_path / "records", tiny.payloads()), "expected").status == 0
    path = tmp_path / f"examples.{kind}"
    if kind == "parquet":
        table = {**columns(tiny), "image": [image.tolist() for image in tiny.images]}
        path.write_bytes(parquet(table, row_group_size=7))
    else:
        path.write_bytes(
            archive(image=tiny.images, label=tiny.labels, id=np.array(columns(tiny)["id"]))
        )
    outcome = features(path, "found")
    assert outcome.status == 0, outcome.err
    (_, expected, _), (_, found, raw) = (
        read_set(tmp_path / "expected"),
        read_set(tmp_path / "found"),
    )
    assert_same_features(found, expected)
    assert [one["offset"].int64_list.value[0] for one in raw] == list(range(40))
    assert raw[3]["source"].bytes_list.value[0] == str(path).encode()


def test_columns_become_keys_of_the_kind_that_holds_them() -> None:
    table = {
        "small": pa.array([1, None], pa.int8()),
        "flag": [True, False],
        "real": pa.array([0.5, 1.5], pa.float16()),
        "nested": [[[1.0, 2.0], [3.0, 4.0]], [[1.0], [2.0, 3.0]]],
        "words": [["a", "ö"], []],
        "image": [{"bytes": b"\x89PNG", "path": "a.png"}, {"bytes": None, "path": "b.png"}],
        "when": pa.array([1, 2], pa.timestamp("s")),
    }
    first, second = (
        tf.train.Example.FromString(payload).features.feature
        for (payload,) in read_parquet(io.BytesIO(parquet(table)))
    )
    assert list(first["small"].int64_list.value) == [1] and "small" not in second
    assert [list(one["flag"].int64_list.value) for one in (first, second)] == [[1], [0]]
    assert list(first["real"].float_list.value) == [0.5]
    # Lists of different lengths have no shape.
    assert list(first["nested"].float_list.value) == [1, 2, 3, 4] and "nested" not in second
    assert list(first["words"].bytes_list.value) == [b"a", "ö".encode()]
    assert list(first["image"].bytes_list.value) == [b"\x89PNG"] and "image" not in second
    assert "when" not in first


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 2)]
)
def test_lists_of_numbers_of_any_kind_are_rows(kind: pa.DataType) -> None:
    # Arrow does not read back a list of fixed size that is null.
    second = [7.0, 8.0] if pa.types.is_fixed_size_list(kind) else None
    table = {
        "x": pa.array([[1.5, 2.5], second, [3.5, 4.5]], kind),
        "y": pa.array([[1, 2], [3, None], [5, 6]], pa.list_(pa.int32())),
    }
    rows = [
        tf.train.Example.FromString(payload).features.feature
        for (payload,) in read_parquet(io.BytesIO(parquet(table)))
    ]
    assert [list(row["x"].float_list.value) if "x" in row else None for row in rows] == [
        [1.5, 2.5],
        second,
        [3.5, 4.5],
    ]
    assert [list(row["y"].int64_list.value) if "y" in row else None for row in rows] == [
        [1, 2],
        None,
        [5, 6],
    ]


def test_rows_of_an_archive_keep_their_numbers() -> None:
    arrays = {
        "u": np.array([0, 255], np.uint8),
        "s": np.array([b"x", b"yz"]),
        "m": np.arange(12, dtype=np.float64).reshape(2, 2, 3),
    }
    first, second = (
        tf.train.Example.FromString(payload).features.feature
        for (payload,) in read_archive(io.BytesIO(archive(**arrays)))
    )
    assert (list(first["u"].int64_list.value), list(second["u"].int64_list.value)) == ([0], [255])
    assert list(second["s"].bytes_list.value) == [b"yz"]
    assert list(second["m"].float_list.value) == [6, 7, 8, 9, 10, 11]


def test_a_file_without_rows_gives_none() -> None:
    assert list(read_parquet(io.BytesIO(parquet({"a": pa.array([], pa.int64())})))) == []
    assert list(read_archive(io.BytesIO(archive(a=np.empty(0))))) == []
    assert list(read_archive(io.BytesIO(archive()))) == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (archive(a=np.arange(3), b=np.arange(4)), "different lengths: a (3,), b (4,)"),
        (archive(a=np.arange(3), b=np.float32(1)), "different lengths: a (3,), b ()"),
        (archive(a=np.array([{}], object)), "allow_pickle"),
        (archive(a=np.arange(1000))[:-50], "not a zip file"),
    ],
)
def test_archives_that_cannot_be_read_say_why(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableTail, match=r".*") as caught:
        list(read_archive(io.BytesIO(data)))
    assert reason in caught.value.reason


def test_a_damaged_table_fails_the_run_in_one_line(
    features: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "examples.parquet"
    path.write_bytes(
        parquet({**columns(tiny), "image": [image.tolist() for image in tiny.images]})[:-20]
    )
    outcome = features(path, "out")
    assert outcome.status == 1
    (line,) = outcome.err.strip().splitlines()
    assert f"{path}: the file cannot be read from record 0" in line
    assert not (tmp_path / "out" / "manifest.json").exists()
