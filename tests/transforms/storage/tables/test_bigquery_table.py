"""A table of results: its rows stand once, whoever writes them, whenever."""

from __future__ import annotations

import dataclasses
import datetime
import io
import threading
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to

from tests.fakes import google_cloud
from tests.fakes.bigquery_service import DATASET, PROJECT, Warehouse
from tests.fakes.object_store import BUCKET, Store
from tests.transforms.influence.test_rows import block
from transforms.core.errors import InputError
from transforms.influence.records import RecordScoring
from transforms.influence.rows import to_table
from transforms.storage import filesystems
from transforms.storage.manifests import Manifest
from transforms.storage.tables import bigquery_client
from transforms.storage.tables.bigquery_client import JobTuning
from transforms.storage.tables.bigquery_rows import TableName, TableRows
from transforms.storage.tables.bigquery_table import ResultTable
from transforms.storage.tables.bigquery_write import WriteTable

TABLE = f"{PROJECT}:{DATASET}.influence"
MONDAY = datetime.date(2026, 3, 30)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Store, Warehouse]]:
    with google_cloud.running() as servers:
        yield servers


@pytest.fixture
def warehouse(servers: tuple[Store, Warehouse]) -> Warehouse:
    """BigQuery, with an empty dataset and nothing broken."""
    servers[1].clear()
    return servers[1]


def result_rows(
    task: str = "class",
    outputs: int = 9,
    labels: Any = ((1,), (2,), (3,)),
    candidates: Any = ((7,), (8,), (9,)),
) -> pa.Table:
    """Three rows of influence."""
    probabilities = [np.nan] * 3 if task == "regression" else [0.5] * 3
    fields = RecordScoring().schema(task, outputs)
    return to_table(block(np.array(labels), np.array(candidates), probabilities), fields)


def committed(rows: pa.Table, name: str = "rows") -> Manifest:
    """A result of one file, as it would be committed."""
    buffer = io.BytesIO()
    pq.write_table(rows, buffer)
    directory = f"gs://{BUCKET}/out/{name}"
    content = buffer.getvalue()
    file = filesystems.write(directory, "influence-00000.parquet", content, rows.num_rows)
    return Manifest("influence", f"run-{name}", {}, (file,), {"rows": rows.num_rows})


def result_table(
    schema: pa.Schema, name: str = "rows", date: datetime.date = MONDAY, any_date: bool = True
) -> ResultTable:
    return ResultTable(
        TableName.parse(TABLE),
        TableRows("influence-", schema),
        f"gs://{BUCKET}/out/{name}",
        date,
        any_date,
        PROJECT,
        JobTuning(pause=0.01),
    )


def client() -> Any:
    return bigquery_client.connect(PROJECT, PipelineOptions())


def without_run(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    added = ("run_id", "run_date")
    return [{key: value for key, value in row.items() if key not in added} for row in rows]


@pytest.mark.parametrize(
    ("task", "outputs", "labels", "candidates"),
    [
        ("class", 9, [[3], [4], [5]], [[7], [8], [9]]),
        ("multilabel", 9, [[1, 4], [-1, -1], [2, -1]], [[0, -1], [-1, -1], [5, 6]]),
        ("regression", 1, [[0.5], [1.5], [-2.0]], [[1.0], [2.0], [3.0]]),
        (
            "regression",
            2,
            [[0.5, 1.0], [1.5, 2.0], [-2.0, 0.0]],
            [[1.0, 9.0], [2.0, 9.0], [3.0, 9.0]],
        ),
    ],
)
def test_labels_of_every_task_come_back_as_they_were(
    warehouse: Warehouse, task: str, outputs: int, labels: Any, candidates: Any
) -> None:
    rows = result_rows(task, outputs, labels, candidates)
    result_table(rows.schema).write(client(), committed(rows))
    assert without_run(warehouse.rows("influence")) == rows.to_pylist()


def test_attempts_at_the_same_time_write_the_rows_once(warehouse: Warehouse) -> None:
    rows = result_rows()
    manifest = committed(rows)
    warehouse.looks = 5
    # The first two belong to a run that was started before midnight.
    tables = [result_table(rows.schema, date=MONDAY + datetime.timedelta(i // 2)) for i in range(4)]
    attempts = [threading.Thread(target=table.write, args=(client(), manifest)) for table in tables]
    for attempt in attempts:
        attempt.start()
    for attempt in attempts:
        attempt.join()
    assert len(warehouse.rows("influence")) == 3 and len(warehouse.merges()) == 1


def test_an_attempt_that_comes_late_changes_nothing(warehouse: Warehouse) -> None:
    rows = result_rows()
    table, manifest = result_table(rows.schema), committed(rows)
    for _ in range(2):
        table.write(client(), manifest)
        assert len(warehouse.rows("influence")) == 3 and len(warehouse.merges()) == 1
    # When BigQuery has forgotten the job, after half a year, the rows are replaced.
    warehouse.jobs.clear()
    table.write(client(), manifest)
    assert len(warehouse.rows("influence")) == 3 and len(warehouse.merges()) == 1


def test_rows_that_bigquery_cannot_take_change_nothing(warehouse: Warehouse) -> None:
    rows = result_rows("multilabel")
    table = result_table(rows.schema)
    table.write(client(), committed(rows))
    before = warehouse.rows("influence")

    labels = pa.array([[1], [2, None], []], pa.list_(pa.int64()))
    null = rows.set_column(rows.column_names.index("test_label"), "test_label", labels)
    for wrong_rows, message in (
        (null, "Array cannot have a null element"),
        (result_rows("class"), r"test_label is BIGINT, and BIGINT\[\] in the table"),
    ):
        with pytest.raises(InputError, match=f"its rows were not written: .*{message}"):
            table.write(client(), committed(wrong_rows))
        assert warehouse.rows("influence") == before != []


def test_a_table_knows_whether_it_holds_the_rows_of_a_date(warehouse: Warehouse) -> None:
    rows = result_rows()
    table, manifest = result_table(rows.schema), committed(rows)
    assert not table.is_written(client(), manifest)
    table.write(client(), manifest)
    assert table.is_written(client(), manifest)
    tuesday = dataclasses.replace(table, run_date=MONDAY + datetime.timedelta(1))
    assert tuesday.is_written(client(), manifest)
    assert not dataclasses.replace(tuesday, any_date=False).is_written(client(), manifest)


def test_results_in_two_directories_have_their_own_rows(warehouse: Warehouse) -> None:
    rows = result_rows()
    for name in ("monday", "tuesday"):
        result_table(rows.schema, name).write(client(), committed(rows, name))
    runs = {row["run_id"] for row in warehouse.rows("influence")}
    assert len(runs) == 2 and len(warehouse.rows("influence")) == 6


def test_a_result_without_rows_is_written_without_a_table(warehouse: Warehouse) -> None:
    rows = result_rows()
    table, manifest = result_table(rows.schema), committed(rows.slice(0, 0))
    assert table.is_written(client(), manifest)
    table.write(client(), manifest)
    assert warehouse.merges() == []


def test_a_table_with_other_columns_is_refused_before_any_work(warehouse: Warehouse) -> None:
    rows = result_rows()
    result_table(rows.schema).write(client(), committed(rows))
    result_table(rows.schema).check(client())
    other = result_table(pa.schema([pa.field("test_id", pa.int64())]))
    with pytest.raises(InputError, match="cannot take the rows: its column test_id is STRING"):
        other.check(client())


def test_a_graph_writes_the_rows_and_hands_the_manifest_on(warehouse: Warehouse) -> None:
    rows = result_rows()
    manifest, table = committed(rows), result_table(rows.schema)
    write = WriteTable(*(getattr(table, field.name) for field in dataclasses.fields(table)))
    with beam.Pipeline() as pipeline:
        handed_on = pipeline | beam.Create([manifest]) | write
        assert_that(handed_on, equal_to([manifest]))
    assert without_run(warehouse.rows("influence")) == rows.to_pylist()
