"""Schemas of tables: from Parquet's, and what existing tables lack."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from google.cloud import bigquery
from google.cloud.bigquery import SchemaField

from transforms.influence.records import RecordScoring
from transforms.influence.sums import SumScoring
from transforms.storage.tables.bigquery_rows import TableRows
from transforms.storage.tables.bigquery_schema import fields, mismatch


def test_lists_are_repeated_and_structures_are_records() -> None:
    label = SchemaField("train_label", "INTEGER", "REPEATED")
    candidates = [SchemaField("train_id", "STRING"), label, SchemaField("score", "FLOAT")]
    assert fields(RecordScoring().schema("multilabel", 3)) == [
        SchemaField("test_id", "STRING"),
        SchemaField("test_label", "INTEGER", "REPEATED"),
        SchemaField("test_prediction", "INTEGER", "REPEATED"),
        SchemaField("test_probability", "FLOAT"),
        SchemaField("self_influence", "FLOAT"),
        SchemaField("proponents", "RECORD", "REPEATED", fields=candidates),
        SchemaField("opponents", "RECORD", "REPEATED", fields=candidates),
    ]


def test_rows_of_summed_positions_have_columns_of_their_own() -> None:
    columns = fields(SumScoring().schema("multilabel", 3))
    assert [(one.name, one.field_type, one.mode) for one in columns] == [
        ("test_id", "STRING", "NULLABLE"),
        ("test_positions", "INTEGER", "NULLABLE"),
        ("test_wrong_positions", "INTEGER", "NULLABLE"),
        ("test_label_probability", "FLOAT", "NULLABLE"),
        ("self_influence", "FLOAT", "NULLABLE"),
        ("proponents", "RECORD", "REPEATED"),
        ("opponents", "RECORD", "REPEATED"),
    ]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.list_(pa.int64())), pa.float32(), pa.map_(pa.string(), pa.string())]
)
def test_a_column_that_bigquery_has_not_is_refused(kind: pa.DataType) -> None:
    with pytest.raises(ValueError, match="a column of BigQuery cannot be some_column: "):
        fields(pa.schema([("some_column", kind)]))


ROWS = TableRows("examples-", pa.schema([("example_id", pa.string()), ("count", pa.int64())]))


def table(columns: list[SchemaField] | None = None, **changes: Any) -> bigquery.Table:
    made = bigquery.Table("project.dataset.table", columns or fields(ROWS.columns))
    made.time_partitioning = bigquery.TimePartitioning("DAY", "run_date")
    # The service says what a table is; there is no setter.
    made = bigquery.Table.from_api_repr({**made.to_api_repr(), "type": "TABLE"})
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_a_table_with_the_same_columns_takes_the_rows() -> None:
    assert mismatch(table(), ROWS) is None
    # Names differ in case, types by their other names, and further columns stay empty.
    columns = [*fields(ROWS.columns)[:-1], SchemaField("COUNT", "INT64"), SchemaField("x", "DATE")]
    assert mismatch(table(columns), ROWS) is None


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (table(fields(ROWS.columns)[:-1]), "it has no column count, expected INTEGER NULLABLE"),
        (
            table([*fields(ROWS.columns)[:-1], SchemaField("count", "FLOAT")]),
            "its column count is FLOAT NULLABLE, expected INTEGER NULLABLE",
        ),
        (
            table([*fields(ROWS.columns), SchemaField("x", "DATE", "REQUIRED")]),
            "its column x is DATE REQUIRED, and rows have none",
        ),
        (
            table(time_partitioning=bigquery.TimePartitioning("MONTH", "run_date")),
            "it is partitioned by MONTH of run_date, expected by DAY of run_date",
        ),
        (
            table(time_partitioning=None),
            "it is partitioned otherwise, or not at all, expected by DAY of run_date",
        ),
        (
            table(require_partition_filter=True),
            "it wants every query to filter by its partitions, and the rows of a run are looked "
            "for in all of them",
        ),
    ],
)
def test_a_table_that_cannot_take_the_rows_says_why(made: bigquery.Table, message: str) -> None:
    assert mismatch(made, ROWS) == message


def test_records_must_have_the_same_fields() -> None:
    rows = TableRows("x-", pa.schema([("r", pa.struct([("a", pa.int64())]))]))
    whole = fields(rows.columns)
    record = SchemaField(
        "r", "RECORD", fields=[SchemaField("a", "INTEGER"), SchemaField("b", "DATE")]
    )
    why = mismatch(table([*whole[:-1], record]), rows)
    assert why == "its column r.b is DATE NULLABLE, and rows have none"
