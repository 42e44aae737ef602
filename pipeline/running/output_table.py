"""`--output_table`: the table is checked before any work, and a complete result's rows are written
where they are missing.
"""

from __future__ import annotations

import argparse
import datetime

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from pipeline.running.graph import run_graph
from pipeline.running.outcomes import read_back
from pipeline.terminal import run
from transforms.core.errors import InputError
from transforms.storage import manifests
from transforms.storage.manifests import Manifest
from transforms.storage.tables import bigquery_client
from transforms.storage.tables.bigquery_rows import TableName, TableRows
from transforms.storage.tables.bigquery_write import WriteTable


def check_credentials(args: argparse.Namespace) -> None:
    """Checks, before anything is read, that there are credentials for the table of the flags.

    Raises:
        InputError: there are none.
    """
    if args.output_table:
        bigquery_client.check_credentials()


def requested(
    args: argparse.Namespace, beam_options: PipelineOptions, rows: TableRows
) -> WriteTable | None:
    """Returns the step that writes the rows to the table of the flags; None without a table."""
    if args.output_table is None:
        return None
    table = TableName.parse(args.output_table)
    today = datetime.datetime.now(datetime.timezone.utc).date()
    project = beam_options.view_as(GoogleCloudOptions).project or table.project
    return WriteTable(
        table, rows, args.output or "", args.run_date or today, args.run_date is None, project
    )


def check(table: WriteTable | None, beam_options: PipelineOptions) -> None:
    """Checks, before any work, that the table can take the rows.

    Raises:
        InputError: it cannot.
    """
    if table:
        table.check(bigquery_client.connect(table.project, beam_options))


def holds(table: WriteTable | None, beam_options: PipelineOptions) -> bool:
    """Whether the rows of a complete result are known to be where they are to be."""
    try:
        return table is None or _is_written(table, beam_options)
    except InputError:
        return False


def finish(output: str, table: WriteTable | None, beam_options: PipelineOptions) -> None:
    """Writes the rows of a complete result to the table if they are not there, since an earlier run
    named no table or failed at it.

    Raises:
        InputError: the table cannot be read.
        RunFailed: the rows cannot be written.
    """
    if table is None or _is_written(table, beam_options):
        print(f"{output} is complete with the same settings: nothing to do")
        return
    print(f"{output} is complete with the same settings, and its rows are not in {table.table}")

    def build(pipeline: beam.Pipeline) -> None:
        (
            pipeline
            | "NameResult" >> beam.Create([output])  # directory
            | "ReadResult" >> beam.Map(_committed)  # Manifest
            | "WriteTable" >> table  # Manifest
        )

    if run_graph(build, beam_options, []) is None:
        print("the graph is built; nothing has run")
        return
    summarise(table)


def summarise(table: WriteTable | None) -> None:
    """Prints what the table holds of a run, once it is there."""
    if table:
        manifest = read_back(table.directory, Manifest)
        print(run.table(str(table.table), table.rows.count(manifest), table.run_id(manifest)))


def _is_written(table: WriteTable, beam_options: PipelineOptions) -> bool:
    return table.is_written(
        bigquery_client.connect(table.project, beam_options), _committed(table.directory)
    )


def _committed(directory: str) -> Manifest:
    return manifests.read(directory, Manifest, "output")
