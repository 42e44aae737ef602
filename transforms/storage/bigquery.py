"""Rows of a committed result in a BigQuery table, where those of one run stand once, however often
they are written.

One statement reads the Parquet files that the manifest lists, where they are, deletes what the
table holds of the run and inserts its rows: all of that happens, or nothing. No row goes through
the graph.

| column | content |
|---|---|
| `run_id` | the fingerprint of the result and a digest of its directory; the table is clustered by it |
| `run_date` | the day that the run is of; the table is partitioned by it |

The other columns are those of the files.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import os
import time
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import google.auth
import pyarrow as pa
from apache_beam.internal.gcp import auth
from apache_beam.options.pipeline_options import PipelineOptions
from google.api_core.exceptions import Conflict, NotFound
from google.api_core.retry import Retry, if_exception_type
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError
from google.cloud import bigquery
from google.cloud.bigquery import DEFAULT_RETRY, QueryJobConfig, ScalarQueryParameter, SchemaField

from transforms.core.errors import InputError
from transforms.storage import filesystems, manifests
from transforms.storage.manifests import Manifest

_EMULATOR = "BIGQUERY_EMULATOR_HOST"
_DATE_COLUMN = "run_date"
_RUN = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field(_DATE_COLUMN, pa.date32(), nullable=False),
    ]
)
_TYPES = {
    pa.string(): "STRING",
    pa.int64(): "INTEGER",
    pa.float64(): "FLOAT",
    pa.bool_(): "BOOLEAN",
    pa.date32(): "DATE",
}
# The API answers with either name.
_SAME_TYPES = {"INT64": "INTEGER", "FLOAT64": "FLOAT", "BOOL": "BOOLEAN", "STRUCT": "RECORD"}
# A query takes no more of them.
_MOST_FILES = 10_000
# What a job may end with that another may not.
_PASSING = (
    "backendError",
    "internalError",
    "rateLimitExceeded",
    "jobBackendError",
    "jobInternalError",
    "jobRateLimitExceeded",
)
_ATTEMPTS = 3
_PAUSE = 2.0  # seconds between looks at a job, and before another
# Before any work somebody waits for the answer; in a run, ten minutes are the library's own
# patience.
_SOON: dict[str, Any] = {"retry": DEFAULT_RETRY.with_timeout(30), "timeout": 20}
# A job that is there may not be found for a moment.
_FOUND = Retry(if_exception_type(NotFound), timeout=60)


@dataclasses.dataclass(frozen=True)
class TableName:
    """A table of BigQuery."""

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
        """Its name in statements and in the library."""
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
    """What of a result is rows of a table.

    Attributes:
        prefix: how the names of the Parquet files begin that hold them.
        schema: the columns that are taken from the files.
        computed: further columns.
    """

    prefix: str
    schema: pa.Schema
    computed: tuple[Computed, ...] = ()

    @property
    def columns(self) -> pa.Schema:
        """All columns of the table."""
        return pa.schema(
            [*_RUN, *(pa.field(one.name, one.type) for one in self.computed), *self.schema]
        )

    def files(self, committed: Manifest) -> list[filesystems.StoredFile]:
        """The files of a result that hold rows."""
        return [
            file
            for file in committed.files
            if file.name.startswith(self.prefix) and file.name.endswith(".parquet") and file.count
        ]

    def count(self, committed: Manifest) -> int:
        """How many rows a result has."""
        return sum(file.count for file in self.files(committed))


def fields(schema: pa.Schema) -> list[SchemaField]:
    """A table's schema in BigQuery, from that of the Parquet files: lists are REPEATED, structures
    RECORD.

    Raises:
        ValueError: BigQuery has no such column.
    """
    return [_field(one) for one in schema]


def _field(one: pa.Field) -> SchemaField:
    kind, mode = one.type, "NULLABLE" if one.nullable else "REQUIRED"
    if pa.types.is_list(kind):
        kind, mode = kind.value_type, "REPEATED"
    if pa.types.is_struct(kind):
        return SchemaField(
            one.name, "RECORD", mode, fields=[_field(kind.field(i)) for i in range(kind.num_fields)]
        )
    if kind not in _TYPES:
        raise ValueError(f"a column of BigQuery cannot be {one.name}: {one.type}")
    return SchemaField(one.name, _TYPES[kind], mode)


def statement(table: TableName, rows: TableRows) -> str:
    """The statement that makes a table hold of a run the rows of its files, here named `committed`,
    and nothing else.

    Its parameters are `run_id` and `run_date`. No row matches another, so all of the run's old ones
    are deleted and all new ones inserted.
    """
    names = [f"`{name}`" for name in rows.columns.names]
    computed = [f"{one.sql} AS `{one.name}`" for one in rows.computed]
    taken = [f"`{name}`" for name in rows.schema.names]
    return (
        f"MERGE INTO `{table.sql}` AS kept\nUSING (SELECT "
        f"{', '.join(['@run_id AS `run_id`', '@run_date AS `run_date`', *computed, *taken])} FROM "
        "committed) AS made\nON FALSE\n"
        "WHEN NOT MATCHED BY SOURCE AND kept.`run_id` = @run_id THEN DELETE\n"
        f"WHEN NOT MATCHED BY TARGET THEN INSERT ({', '.join(names)}) VALUES "
        f"({', '.join(f'made.{name}' for name in names)})"
    )


def mismatch(found: bigquery.Table, rows: TableRows) -> str | None:
    """Why rows cannot be written to a table that is there, or None."""
    if found.table_type != "TABLE":
        return f"it is a {found.table_type}, expected a table"
    parts = found.time_partitioning
    if parts is None or parts.field != _DATE_COLUMN or parts.type_ != "DAY":
        kind = (
            f"by {parts.type_} of {parts.field or 'the time of loading'}"
            if parts
            else "otherwise, or not at all"
        )
        return f"it is partitioned {kind}, expected by DAY of {_DATE_COLUMN}"
    if found.require_partition_filter:
        return (
            "it wants every query to filter by its partitions, and the rows of a run are looked "
            "for in all of them"
        )
    return _differing(found.schema, fields(rows.columns))


def _differing(
    found: Sequence[SchemaField], wanted: Sequence[SchemaField], inside: str = ""
) -> str | None:
    there = {one.name.lower(): one for one in found}
    for one in wanted:
        name = inside + one.name
        other = there.pop(one.name.lower(), None)
        if other is None:
            return f"it has no column {name}, expected {_told_type(one)}"
        if _told_type(other) != _told_type(one):
            return f"its column {name} is {_told_type(other)}, expected {_told_type(one)}"
        differing = _differing(other.fields, one.fields, f"{name}.")
        if differing:
            return differing
    # Further columns stay empty; those of records would have to be filled in.
    wrong = [one for one in there.values() if inside or one.mode == "REQUIRED"]
    return (
        f"its column {inside}{wrong[0].name} is {_told_type(wrong[0])}, and rows have none"
        if wrong
        else None
    )


def _told_type(one: SchemaField) -> str:
    return f"{_SAME_TYPES.get(one.field_type, one.field_type)} {one.mode}"


def check_credentials() -> None:
    """Makes sure that there are credentials, for which Beam's own search would take half a minute.

    Raises:
        InputError: there are none.
    """
    if os.environ.get(_EMULATOR):
        return
    try:
        google.auth.default()
    except DefaultCredentialsError as error:
        raise InputError(
            f"`output_table` needs Google's credentials ({filesystems.describe_error(error)}): run `gcloud "
            "auth application-default login`, or name a "
            "key's file by the environment variable GOOGLE_APPLICATION_CREDENTIALS"
        ) from error


def connect(project: str, options: PipelineOptions) -> bigquery.Client:
    """A client with the credentials that Beam reads and writes files with; its jobs are the
    project's.

    Raises:
        InputError: there are no credentials.
    """
    check_credentials()
    found = None if os.environ.get(_EMULATOR) else auth.get_service_credentials(options)
    return bigquery.Client(
        project, found.get_google_auth_credentials() if found else AnonymousCredentials()
    )


@dataclasses.dataclass
class WriteTable(beam.PTransform):
    """Writes the rows of a committed result to a table: Manifest (one) → Manifest (one).

    Attributes:
        table: where to; made if it is not there.
        rows: what of the result.
        directory: where the result is, on Cloud Storage.
        run_date: the day that the rows are of.
        any_date: whether rows that are there with another date count as written.
        project: whose jobs they are, and who pays.
    """

    table: TableName
    rows: TableRows
    directory: str
    run_date: datetime.date
    any_date: bool
    project: str

    def run_id(self, committed: Manifest) -> str:
        """What tells the rows of a result from all others: its fingerprint, and where it is.

        Two nights may have equal results, and each has its rows.
        """
        return f"{committed.fingerprint}-{manifests.fingerprint(self.directory.rstrip('/'))[:16]}"

    def check(self, client: bigquery.Client) -> None:
        """Makes sure, before any work, that the table can take the rows, or that it can be made.

        Raises:
            InputError: it cannot.
        """
        self._find(client)

    def is_written(self, client: bigquery.Client, committed: Manifest) -> bool:
        """Whether the table holds the rows of a result.

        Raises:
            InputError: it cannot be asked, or cannot hold them.
        """
        location, exists = self._find(client)
        return not self.rows.count(committed) or (
            exists and self._holds(client, location, committed)
        )

    def write(self, client: bigquery.Client, committed: Manifest) -> None:
        """Makes the table hold the rows of a result, once.

        Raises:
            InputError: BigQuery refuses.
        """
        written = self.rows.files(committed)
        if not written:
            return
        if len(written) > _MOST_FILES:
            raise InputError(
                f"{self._told()}: {len(written)} files, and BigQuery reads {_MOST_FILES} at once: "
                "load them in parts"
            )
        location, exists = self._find(client)
        try:
            if not exists:
                self._create(client)
            self._merge(client, location, committed)
        except filesystems.STORE_ERRORS as error:
            raise self._not_written(filesystems.describe_error(error)) from error

    def _told(self) -> str:
        return f"`output_table={self.table}`"

    def _not_written(self, why: str) -> InputError:
        return InputError(
            f"{self._told()}: {self.directory} is complete, and its rows were not written: {why}; "
            "run it again to write them"
        )

    def _find(self, client: bigquery.Client) -> tuple[str, bool]:
        """The location of the table's dataset, and whether the table exists."""
        try:
            try:
                found = client.get_table(self.table.sql, **_SOON)
            except NotFound:
                return str(
                    client.get_dataset(
                        f"{self.table.project}.{self.table.dataset}", **_SOON
                    ).location
                ), False
        except NotFound as error:
            raise InputError(
                f"{self._told()}: {filesystems.describe_error(error)}; make the dataset first, where the "
                "bucket of `output` is"
            ) from error
        except filesystems.STORE_ERRORS as error:
            raise InputError(
                f"{self._told()} cannot be looked at: {filesystems.describe_error(error)}"
            ) from error
        self._check_fits(found)
        return str(found.location), True

    def _check_fits(self, found: bigquery.Table) -> None:
        why = mismatch(found, self.rows)
        if why:
            raise InputError(
                f"{self._told()} cannot take the rows: {why}; name another table, or change it"
            )

    def _create(self, client: bigquery.Client) -> None:
        wanted = bigquery.Table(self.table.sql, schema=fields(self.rows.columns))
        wanted.time_partitioning = bigquery.TimePartitioning(
            bigquery.TimePartitioningType.DAY, _DATE_COLUMN
        )
        wanted.clustering_fields = ["run_id"]
        # Another run may have made it, for other rows.
        self._check_fits(client.create_table(wanted, exists_ok=True))

    def _holds(self, client: bigquery.Client, location: str, committed: Manifest) -> bool:
        parameters = [ScalarQueryParameter("run_id", "STRING", self.run_id(committed))]
        dated = ""
        if not self.any_date:
            dated = " AND `run_date` = @run_date"
            parameters.append(ScalarQueryParameter("run_date", "DATE", self.run_date))
        query = (
            f"SELECT COUNT(*) AS `found` FROM `{self.table.sql}` WHERE `run_id` = @run_id{dated}"
        )
        config = QueryJobConfig(query_parameters=parameters, use_query_cache=False)
        try:
            ((found,),) = client.query(query, config, location=location).result()
        except filesystems.STORE_ERRORS as error:
            raise InputError(
                f"{self._told()} cannot be read: {filesystems.describe_error(error)}"
            ) from error
        return int(found) == self.rows.count(committed)

    def _merge(self, client: bigquery.Client, location: str, committed: Manifest) -> None:
        written = self.rows.files(committed)
        source = bigquery.ExternalConfig(bigquery.ExternalSourceFormat.PARQUET)
        source.source_uris = [filesystems.join(self.directory, file.name) for file in written]
        source.parquet_options = bigquery.ParquetOptions()
        source.parquet_options.enable_list_inference = True
        config = QueryJobConfig(
            table_definitions={"committed": source},
            query_parameters=[
                ScalarQueryParameter("run_id", "STRING", self.run_id(committed)),
                ScalarQueryParameter("run_date", "DATE", self.run_date),
            ],
        )
        # Two jobs of one name cannot be, so that a second try of this step, or of the run, joins
        # the first one's instead of racing it: two statements that each find nothing to delete
        # would both insert.
        key = manifests.fingerprint(
            [
                str(self.table),
                self.run_id(committed),
                [[file.name, file.crc32c] for file in written],
                None if self.any_date else str(self.run_date),
            ]
        )
        failed = 0
        for number in itertools.count():
            name = f"tracin-{key}-{number}"
            job: Any
            try:
                job, ours = (
                    client.query(
                        statement(self.table, self.rows),
                        config,
                        job_id=name,
                        location=location,
                        job_retry=None,
                    ),
                    True,
                )
            except Conflict:
                job, ours = _FOUND(client.get_job)(name, location=location), False
            error = _awaited(job)
            if error is None:
                # What an earlier job wrote may have been deleted since.
                if ours or self._holds(client, location, committed):
                    return
            elif ours:
                failed += 1
                if failed == _ATTEMPTS or not _may_pass(error):
                    raise self._not_written(error["message"])
                time.sleep(_PAUSE)

    def _write(self, committed: Manifest) -> Manifest:
        self.write(connect(self.project, PipelineOptions()), committed)
        return committed

    def expand(self, committed: beam.PCollection) -> beam.PCollection:
        return (
            committed
            # Else a runner that tries this step again would commit again.
            | "KeepResult" >> beam.Reshuffle()  # Manifest
            | "MergeRows" >> beam.Map(self._write)  # Manifest
        )


def _awaited(job: Any) -> dict[str, str] | None:
    """Waits for a job's end; returns the error that it ended with, if any."""
    while not job.done():
        time.sleep(_PAUSE)
    error: dict[str, str] | None = job.error_result
    return error


def _may_pass(error: dict[str, str]) -> bool:
    return error.get("reason") in _PASSING or "concurrent update" in error.get("message", "")
