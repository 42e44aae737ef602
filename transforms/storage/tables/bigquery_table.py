"""A BigQuery table that holds the rows of each run once, however often they are written.

One statement reads the Parquet files that the manifest lists, where they are, deletes the run's
rows from the table and inserts the new ones: all of that happens, or nothing. No row goes through
the graph.
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

from google.api_core.exceptions import NotFound
from google.cloud import bigquery
from google.cloud.bigquery import DEFAULT_RETRY, QueryJobConfig, ScalarQueryParameter

from transforms.core.errors import InputError
from transforms.storage import filesystems, manifests
from transforms.storage.manifests import Manifest
from transforms.storage.tables import bigquery_client
from transforms.storage.tables.bigquery_client import JobTuning
from transforms.storage.tables.bigquery_rows import (
    DATE_COLUMN,
    RUN_COLUMN,
    TableName,
    TableRows,
    statement,
)
from transforms.storage.tables.bigquery_schema import fields, mismatch

# A query reads no more source files, by BigQuery's quotas for external tables.
_MOST_FILES = 10_000
# Before any work somebody waits for the answer; in a run, ten minutes are the library's own
# patience.
_SOON: dict[str, Any] = {"retry": DEFAULT_RETRY.with_timeout(30), "timeout": 20}


@dataclasses.dataclass
class ResultTable:
    """A table that holds the rows of committed results.

    Attributes:
        table: the table; made where it does not exist.
        rows: the part of the result that becomes rows.
        directory: the directory of the result, on Cloud Storage.
        run_date: the day of the rows.
        any_date: whether existing rows with another date count as written.
        project: the project whose jobs they are, and that pays.
        tuning: the patience with jobs.
    """

    table: TableName
    rows: TableRows
    directory: str
    run_date: datetime.date
    any_date: bool
    project: str
    tuning: JobTuning = dataclasses.field(default_factory=lambda: bigquery_client.DEFAULT_TUNING)

    def run_id(self, manifest: Manifest) -> str:
        """Returns the identity of a result among all others: its fingerprint, and its directory.

        Two nights may have equal results, and each has its rows.
        """
        return f"{manifest.fingerprint}-{manifests.fingerprint(self.directory.rstrip('/'))[:16]}"

    def check(self, client: bigquery.Client) -> None:
        """Checks, before any work, that the table can take the rows, or that it can be made.

        Raises:
            InputError: it cannot.
        """
        self._look_up(client)

    def is_written(self, client: bigquery.Client, manifest: Manifest) -> bool:
        """Returns whether the table holds the rows of a result.

        Raises:
            InputError: it cannot be read, or cannot hold them.
        """
        location, exists = self._look_up(client)
        return not self.rows.count(manifest) or (exists and self._holds(client, location, manifest))

    def write(self, client: bigquery.Client, manifest: Manifest) -> None:
        """Makes the table hold the rows of a result, once.

        Raises:
            InputError: BigQuery refuses.
        """
        files = self.rows.files(manifest)
        if not files:
            return
        if len(files) > _MOST_FILES:
            raise InputError(
                f"{self._setting}: {len(files)} files, and BigQuery reads {_MOST_FILES} at once: "
                "load them in parts"
            )
        location, exists = self._look_up(client)
        try:
            if not exists:
                self._create(client)
            message = self._merge(client, location, manifest)
        except filesystems.STORE_ERRORS as error:
            raise self._not_written(filesystems.describe_error(error)) from error
        if message is not None:
            raise self._not_written(message)

    @property
    def _setting(self) -> str:
        return f"`output_table={self.table}`"

    def _not_written(self, message: str) -> InputError:
        return InputError(
            f"{self._setting}: {self.directory} is complete, and its rows were not written: "
            f"{message}; run it again to write them"
        )

    def _look_up(self, client: bigquery.Client) -> tuple[str, bool]:
        """Returns the location of the table's dataset, and whether the table exists."""
        try:
            try:
                table = client.get_table(self.table.sql, **_SOON)
            except NotFound:
                dataset = client.get_dataset(f"{self.table.project}.{self.table.dataset}", **_SOON)
                return str(dataset.location), False
        except NotFound as error:
            raise InputError(
                f"{self._setting}: {filesystems.describe_error(error)}; make the dataset first, "
                "where the bucket of `output` is"
            ) from error
        except filesystems.STORE_ERRORS as error:
            raise InputError(
                f"{self._setting} cannot be looked at: {filesystems.describe_error(error)}"
            ) from error
        self._check_fits(table)
        return str(table.location), True

    def _check_fits(self, table: bigquery.Table) -> None:
        why = mismatch(table, self.rows)
        if why:
            raise InputError(
                f"{self._setting} cannot take the rows: {why}; name another table, or change it"
            )

    def _create(self, client: bigquery.Client) -> None:
        table = bigquery.Table(self.table.sql, schema=fields(self.rows.columns))
        table.time_partitioning = bigquery.TimePartitioning(
            bigquery.TimePartitioningType.DAY, DATE_COLUMN
        )
        table.clustering_fields = [RUN_COLUMN]
        # Another run may have made it, for other rows.
        self._check_fits(client.create_table(table, exists_ok=True))

    def _holds(self, client: bigquery.Client, location: str, manifest: Manifest) -> bool:
        parameters = [ScalarQueryParameter(RUN_COLUMN, "STRING", self.run_id(manifest))]
        dated = ""
        if not self.any_date:
            dated = " AND `run_date` = @run_date"
            parameters.append(ScalarQueryParameter(DATE_COLUMN, "DATE", self.run_date))
        query = (
            f"SELECT COUNT(*) AS `found` FROM `{self.table.sql}` WHERE `run_id` = @run_id{dated}"
        )
        config = QueryJobConfig(query_parameters=parameters, use_query_cache=False)
        try:
            ((count,),) = client.query(query, config, location=location).result()
        except filesystems.STORE_ERRORS as error:
            raise InputError(
                f"{self._setting} cannot be read: {filesystems.describe_error(error)}"
            ) from error
        return int(count) == self.rows.count(manifest)

    def _merge(self, client: bigquery.Client, location: str, manifest: Manifest) -> str | None:
        """Runs the statement; returns the message of its failure, or None."""
        files = self.rows.files(manifest)
        source = bigquery.ExternalConfig(bigquery.ExternalSourceFormat.PARQUET)
        source.source_uris = [filesystems.join(self.directory, file.name) for file in files]
        source.parquet_options = bigquery.ParquetOptions()
        source.parquet_options.enable_list_inference = True
        config = QueryJobConfig(
            table_definitions={"committed": source},
            query_parameters=[
                ScalarQueryParameter(RUN_COLUMN, "STRING", self.run_id(manifest)),
                ScalarQueryParameter(DATE_COLUMN, "DATE", self.run_date),
            ],
        )
        key = manifests.fingerprint(
            [
                str(self.table),
                self.run_id(manifest),
                [[file.name, file.crc32c] for file in files],
                None if self.any_date else str(self.run_date),
            ]
        )
        return bigquery_client.run_once(
            client,
            statement(self.table, self.rows),
            config,
            f"tracin-{key}",
            location,
            # Rows of an earlier job may have been deleted since.
            lambda: self._holds(client, location, manifest),
            self.tuning,
        )
