"""Writes the rows of a committed result to a BigQuery table, in a graph."""

from __future__ import annotations

import dataclasses

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from transforms.storage.manifests import Manifest
from transforms.storage.tables import bigquery_client
from transforms.storage.tables.bigquery_table import ResultTable


@dataclasses.dataclass
class WriteTable(ResultTable, beam.PTransform):
    """Writes the rows of a committed result to a table: Manifest (one) → Manifest (one).

    The fields are those of `ResultTable`.
    """

    def _write(self, manifest: Manifest) -> Manifest:
        self.write(bigquery_client.connect(self.project, PipelineOptions()), manifest)
        return manifest

    def expand(self, committed: beam.PCollection) -> beam.PCollection:
        return (
            committed
            # Else a runner that tries this step again would commit again.
            | "KeepResult" >> beam.Reshuffle()  # Manifest
            | "MergeRows" >> beam.Map(self._write)  # Manifest
        )
