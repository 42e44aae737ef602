"""A table's name, its columns, and the statement that writes it."""

from __future__ import annotations

import pyarrow as pa
import pytest

from transforms.storage.filesystems import StoredFile
from transforms.storage.manifests import Manifest
from transforms.storage.tables.bigquery_rows import Computed, TableName, TableRows, statement


@pytest.mark.parametrize("project", ["some-project", "example.com:some-project"])
def test_a_name_is_its_three_parts(project: str) -> None:
    table = TableName.parse(f"{project}:some_dataset.some-table")
    assert table == TableName(project, "some_dataset", "some-table")
    assert (str(table), table.sql) == (
        f"{project}:some_dataset.some-table",
        f"{project}.some_dataset.some-table",
    )


def test_the_statement_replaces_the_rows_of_a_run() -> None:
    rows = TableRows(
        "examples-", pa.schema([("example_id", pa.string()), ("suspicion", pa.float64())])
    )
    rows = TableRows(
        rows.prefix, rows.schema, (Computed("suspect", pa.bool_(), "`suspicion` >= 0.5"),)
    )
    assert rows.columns.names == ["run_id", "run_date", "suspect", "example_id", "suspicion"]
    assert statement(TableName("some-project", "some_dataset", "audit"), rows).splitlines() == [
        "MERGE INTO `some-project.some_dataset.audit` AS kept",
        "USING (SELECT @run_id AS `run_id`, @run_date AS `run_date`, `suspicion` >= 0.5 AS "
        "`suspect`, `example_id`, `suspicion` FROM committed) AS made",
        "ON FALSE",
        "WHEN NOT MATCHED BY SOURCE AND kept.`run_id` = @run_id THEN DELETE",
        "WHEN NOT MATCHED BY TARGET THEN INSERT (`run_id`, `run_date`, `suspect`, `example_id`, "
        "`suspicion`) VALUES (made.`run_id`, made.`run_date`, made.`suspect`, made.`example_id`, "
        "made.`suspicion`)",
    ]


def test_rows_are_those_of_parquet_files_that_hold_some() -> None:
    files = (
        StoredFile("examples-00000.parquet", 9, 0, 4),
        StoredFile("examples-00001.parquet", 9, 0, 0),
        StoredFile("examples-00002.parquet", 9, 0, 3),
        StoredFile("examples-00000.jsonl", 9, 0, 4),
        StoredFile("suspects.parquet", 9, 0, 2),
    )
    rows = TableRows("examples-", pa.schema([]))
    manifest = Manifest("audit", "f", {}, files, {})
    assert rows.files(manifest) == [files[0], files[2]]
    assert rows.count(manifest) == 7
