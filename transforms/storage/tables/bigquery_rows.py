"""Rows of a result as rows of a BigQuery table: the table's name and columns, and the statement
that writes it.

| column | content |
|---|---|
| `run_id` | the fingerprint of the result and a digest of its directory; the cluster column |
| `run_date` | the day of the run; the table is partitioned by it |

The other columns are those of the result's Parquet files.
"""

from __future__ import annotations

import dataclasses

import pyarrow as pa

from transforms.storage.filesystems import StoredFile
from transforms.storage.manifests import Manifest

RUN_COLUMN, DATE_COLUMN = "run_id", "run_date"
_RUN = pa.schema(
    [
        pa.field(RUN_COLUMN, pa.string(), nullable=False),
        pa.field(DATE_COLUMN, pa.date32(), nullable=False),
    ]
)


@dataclasses.dataclass(frozen=True)
class TableName:
    """The name of a BigQuery table."""

    project: str
    dataset: str
    table: str

    @staticmethod
    def parse(text: str) -> TableName:
        """Reads `PROJECT:DATASET.TABLE`; a project may have a domain, `example.com:project`."""
        project, _, rest = text.rpartition(":")
        return TableName(project, *rest.split("."))

    def __str__(self) -> str:
        return f"{self.project}:{self.dataset}.{self.table}"

    @property
    def sql(self) -> str:
        """The name in statements and in Google's library."""
        return f"{self.project}.{self.dataset}.{self.table}"


@dataclasses.dataclass(frozen=True)
class Computed:
    """A column that is computed from those of the files: its name, type, and the expression in
    SQL.
    """

    name: str
    type: pa.DataType
    sql: str


@dataclasses.dataclass(frozen=True)
class TableRows:
    """The part of a result that becomes rows of a table.

    Attributes:
        prefix: the beginning of the names of its Parquet files.
        schema: the columns that are taken from the files.
        computed: further columns.
    """

    prefix: str
    schema: pa.Schema
    computed: tuple[Computed, ...] = ()

    @property
    def columns(self) -> pa.Schema:
        """All columns of the table."""
        computed = [pa.field(column.name, column.type) for column in self.computed]
        return pa.schema([*_RUN, *computed, *self.schema])

    def files(self, manifest: Manifest) -> list[StoredFile]:
        """Returns the files of a result that hold rows."""
        return [
            file
            for file in manifest.files
            if file.name.startswith(self.prefix) and file.name.endswith(".parquet") and file.count
        ]

    def count(self, manifest: Manifest) -> int:
        """Returns the number of rows of a result."""
        return sum(file.count for file in self.files(manifest))


def statement(table: TableName, rows: TableRows) -> str:
    """Returns the statement that replaces a run's rows in a table by those of its files, which it
    names `committed`.

    Its parameters are `run_id` and `run_date`. No row matches another, so all of the run's old rows
    are deleted and all new ones inserted.
    """
    names = [f"`{name}`" for name in rows.columns.names]
    computed = [f"{column.sql} AS `{column.name}`" for column in rows.computed]
    taken = [f"`{name}`" for name in rows.schema.names]
    run = [f"@{name} AS `{name}`" for name in (RUN_COLUMN, DATE_COLUMN)]
    return (
        f"MERGE INTO `{table.sql}` AS kept\n"
        f"USING (SELECT {', '.join([*run, *computed, *taken])} FROM committed) AS made\n"
        "ON FALSE\n"
        "WHEN NOT MATCHED BY SOURCE AND kept.`run_id` = @run_id THEN DELETE\n"
        f"WHEN NOT MATCHED BY TARGET THEN INSERT ({', '.join(names)}) "
        f"VALUES ({', '.join(f'made.{name}' for name in names)})"
    )
