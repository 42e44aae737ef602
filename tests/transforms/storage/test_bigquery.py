"""A table's name, its columns, and the statement that writes it."""

from __future__ import annotations

import pyarrow as pa
import pytest
from google.cloud.bigquery import SchemaField

from transforms.influence.records import RecordScoring
from transforms.influence.sums import SumScoring
from transforms.storage import bigquery
from transforms.storage.bigquery import Computed, TableName, TableRows


@pytest.mark.parametrize("project", ["some-project", "example.com:some-project"])
def test_a_name_is_its_three_parts(project: str) -> None:
    table = TableName.parse(f"{project}:some_dataset.some-table")
    assert table == TableName(project, "some_dataset", "some-table")
    assert (str(table), table.sql) == (
        f"{project}:some_dataset.some-table",
        f"{project}.some_dataset.some-table",
    )


def test_lists_are_repeated_and_structures_are_records() -> None:
    label = SchemaField("train_label", "INTEGER", "REPEATED")
    candidates = [SchemaField("train_id", "STRING"), label, SchemaField("score", "FLOAT")]
    assert bigquery.fields(RecordScoring().schema("multilabel", 3)) == [
        SchemaField("test_id", "STRING"),
        SchemaField("test_label", "INTEGER", "REPEATED"),
        SchemaField("test_prediction", "INTEGER", "REPEATED"),
        SchemaField("test_probability", "FLOAT"),
        SchemaField("self_influence", "FLOAT"),
        SchemaField("proponents", "RECORD", "REPEATED", fields=candidates),
        SchemaField("opponents", "RECORD", "REPEATED", fields=candidates),
    ]


def test_rows_of_summed_positions_have_columns_of_their_own() -> None:
    found = bigquery.fields(SumScoring().schema("multilabel", 3))
    assert [(one.name, one.field_type, one.mode) for one in found] == [
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
        bigquery.fields(pa.schema([("some_column", kind)]))


def test_the_statement_replaces_the_rows_of_a_run() -> None:
    rows = TableRows(
        "examples-", pa.schema([("example_id", pa.string()), ("suspicion", pa.float64())])
    )
    rows = TableRows(
        rows.prefix, rows.schema, (Computed("suspect", pa.bool_(), "`suspicion` >= 0.5"),)
    )
    assert rows.columns.names == ["run_id", "run_date", "suspect", "example_id", "suspicion"]
    assert bigquery.statement(
        TableName("some-project", "some_dataset", "audit"), rows
    ).splitlines() == [
        "MERGE INTO `some-project.some_dataset.audit` AS kept",
        "USING (SELECT @run_id AS `run_id`, @run_date AS `run_date`, `suspicion` >= 0.5 AS "
        "`suspect`, `example_id`, `suspicion` FROM committed) AS made",
        "ON FALSE",
        "WHEN NOT MATCHED BY SOURCE AND kept.`run_id` = @run_id THEN DELETE",
        "WHEN NOT MATCHED BY TARGET THEN INSERT (`run_id`, `run_date`, `suspect`, `example_id`, "
        "`suspicion`) VALUES (made.`run_id`, made.`run_date`, made.`suspect`, made.`example_id`, "
        "made.`suspicion`)",
    ]
