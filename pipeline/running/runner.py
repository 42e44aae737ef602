"""Names of the modules of this package, until every command imports them from there."""

from pipeline.running.beam_options import IN_PROCESS, beam_options, processes_per_machine
from pipeline.running.graph import run_graph
from pipeline.running.outcomes import Crossed, RunFailed, exit_with, read_back, read_back_kind

__all__ = [
    "IN_PROCESS",
    "Crossed",
    "RunFailed",
    "beam_options",
    "exit_with",
    "processes_per_machine",
    "read_back",
    "read_back_kind",
    "run_graph",
]
