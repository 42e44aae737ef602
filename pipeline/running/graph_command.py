"""The skeleton of commands with a graph: skip if complete, build, run, summarise."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence

import apache_beam as beam

from pipeline.running import output_table, progress
from pipeline.running.command import Command, Invocation
from pipeline.running.graph import run_graph
from pipeline.running.outcomes import RunFailed
from transforms.storage import filesystems, manifests
from transforms.storage.manifests import Manifest
from transforms.storage.tables.bigquery_write import WriteTable


@dataclasses.dataclass(frozen=True)
class GraphCommand(Command):
    """A command that builds one graph, which writes one result.

    Attributes:
        invocation: the command line.
        draft: the manifest of the result, its files and counts still missing.
        table: the step that writes the rows to a table, if one is asked for.
    """

    invocation: Invocation
    draft: Manifest
    table: WriteTable | None

    @property
    def output(self) -> str:
        """The directory of the result."""
        return str(self.invocation.args.output)

    def execute(self) -> None:
        """Skips a complete result; else checks the outputs, builds and runs the graph, and
        summarises what it wrote.
        """
        if self.is_complete():
            self.skip()
            return
        output_table.check(self.table, self.invocation.beam)
        filesystems.check_writable(self.output)
        self.announce()
        try:
            counts = run_graph(self.build, self.invocation.beam, self.stages())
        except RunFailed:
            self.explain_failure()
            raise
        if counts is None:
            print("the graph is built; nothing has run")
            return
        self.summarise(counts)

    def is_complete(self) -> bool:
        """Whether the result is there with the same settings.

        Raises:
            InputError: there is one with other settings, which may not be replaced.
        """
        return manifests.is_complete(self.output, self.draft, self.invocation.args.overwrite)

    def skip(self) -> None:
        """Says that the result is complete, and writes its rows to the table if they are not
        there.
        """
        output_table.finish(self.output, self.table, self.invocation.beam)

    def announce(self) -> None:
        """Prints what is known before the run."""

    @abc.abstractmethod
    def build(self, pipeline: beam.Pipeline) -> None:
        """Adds the steps to a pipeline."""

    @abc.abstractmethod
    def stages(self) -> Sequence[progress.Stage]:
        """Returns the stages that a person at a terminal sees."""

    def explain_failure(self) -> None:
        """Prints or raises what is known of a failed run."""

    @abc.abstractmethod
    def summarise(self, counts: Mapping[str, int]) -> None:
        """Prints what the run wrote, given its counters."""
