"""`--output_table`: the table checked before any work, and what is left to do of a result that is
complete.
"""

from __future__ import annotations

import argparse
import datetime

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from pipeline.running import runner
from pipeline.terminal import report
from transforms.core.errors import InputError
from transforms.storage import bigquery, manifests
from transforms.storage.bigquery import TableName, TableRows, WriteTable
from transforms.storage.manifests import Manifest


def wanted(
    args: argparse.Namespace, beam_options: PipelineOptions, rows: TableRows
) -> WriteTable | None:
    """The step that writes the rows to the table that is asked for, or None where none is."""
    if args.output_table is None:
        return None
    table = TableName.parse(args.output_table)
    today = datetime.datetime.now(datetime.timezone.utc).date()
    project = beam_options.view_as(GoogleCloudOptions).project or table.project
    return WriteTable(
        table, rows, args.output or "", args.run_date or today, args.run_date is None, project
    )


def check(table: WriteTable | None, beam_options: PipelineOptions) -> None:
    """Makes sure, before any work, that the table can take the rows.

    Raises:
        InputError: it cannot.
    """
    if table:
        table.check(bigquery.connect(table.project, beam_options))


def holds(table: WriteTable | None, beam_options: PipelineOptions) -> bool:
    """Whether the rows of a complete result are known to be where they are to be."""
    try:
        return table is None or _is_written(table, beam_options)
    except InputError:
        return False


def finish(output: str, table: WriteTable | None, beam_options: PipelineOptions) -> None:
    """Does what is left of a complete result: its rows may not be in the table, since it was not
    asked for or the run failed there.

    Raises:
        InputError: the table cannot be asked.
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

    if runner.run_graph(build, beam_options, []) is None:
        print("the graph is built; nothing has run")
        return
    tell(table)


def tell(table: WriteTable | None) -> None:
    """Prints what is in the table, once it is there."""
    if table:
        committed = runner.read_back(table.directory, Manifest)
        print(report.table(str(table.table), table.rows.count(committed), table.run_id(committed)))


def _is_written(table: WriteTable, beam_options: PipelineOptions) -> bool:
    return table.is_written(
        bigquery.connect(table.project, beam_options), _committed(table.directory)
    )


def _committed(directory: str) -> Manifest:
    return manifests.read(directory, Manifest, "output")
