"""Schemas of BigQuery tables: made from those of Parquet files, and compared with a table's own."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from google.cloud import bigquery
from google.cloud.bigquery import SchemaField

from transforms.storage.tables.bigquery_rows import DATE_COLUMN, TableRows

_TYPES = {
    pa.string(): "STRING",
    pa.int64(): "INTEGER",
    pa.float64(): "FLOAT",
    pa.bool_(): "BOOLEAN",
    pa.date32(): "DATE",
}
# The API answers with either name.
_SAME_TYPES = {"INT64": "INTEGER", "FLOAT64": "FLOAT", "BOOL": "BOOLEAN", "STRUCT": "RECORD"}


def fields(schema: pa.Schema) -> list[SchemaField]:
    """Returns a table's schema in BigQuery, from that of Parquet files: lists are REPEATED,
    structures RECORD.

    Raises:
        ValueError: BigQuery has no such column.
    """
    return [_field(column) for column in schema]


def _field(column: pa.Field) -> SchemaField:
    kind, mode = column.type, "NULLABLE" if column.nullable else "REQUIRED"
    if pa.types.is_list(kind):
        kind, mode = kind.value_type, "REPEATED"
    if pa.types.is_struct(kind):
        inner = [_field(kind.field(i)) for i in range(kind.num_fields)]
        return SchemaField(column.name, "RECORD", mode, fields=inner)
    if kind not in _TYPES:
        raise ValueError(f"a column of BigQuery cannot be {column.name}: {column.type}")
    return SchemaField(column.name, _TYPES[kind], mode)


def mismatch(table: bigquery.Table, rows: TableRows) -> str | None:
    """Returns why rows cannot be written to an existing table, or None where they can."""
    if table.table_type != "TABLE":
        return f"it is a {table.table_type}, expected a table"
    parts = table.time_partitioning
    if parts is None or parts.field != DATE_COLUMN or parts.type_ != "DAY":
        kind = (
            f"by {parts.type_} of {parts.field or 'the time of loading'}"
            if parts
            else "otherwise, or not at all"
        )
        return f"it is partitioned {kind}, expected by DAY of {DATE_COLUMN}"
    if table.require_partition_filter:
        return (
            "it wants every query to filter by its partitions, and the rows of a run are looked "
            "for in all of them"
        )
    return _difference(table.schema, fields(rows.columns))


def _difference(
    existing: Sequence[SchemaField], expected: Sequence[SchemaField], inside: str = ""
) -> str | None:
    """Returns the first difference between columns, or None; `inside` prefixes their names."""
    left = {column.name.lower(): column for column in existing}
    for column in expected:
        name = inside + column.name
        same = left.pop(column.name.lower(), None)
        if same is None:
            return f"it has no column {name}, expected {_describe(column)}"
        if _describe(same) != _describe(column):
            return f"its column {name} is {_describe(same)}, expected {_describe(column)}"
        difference = _difference(same.fields, column.fields, f"{name}.")
        if difference:
            return difference
    # Further columns stay empty; those of records would have to be filled in.
    for column in left.values():
        if inside or column.mode == "REQUIRED":
            return f"its column {inside}{column.name} is {_describe(column)}, and rows have none"
    return None


def _describe(column: SchemaField) -> str:
    return f"{_SAME_TYPES.get(column.field_type, column.field_type)} {column.mode}"
