"""One graph, built and run to its end, with progress for whoever watches.

Everything that a correct result needs happens inside the graph; what follows `run_graph` only
prints. So the same program serves a Flex Template's launcher, which keeps the graph and runs
nothing after it.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, TestOptions

from pipeline.running import dry_run, progress
from pipeline.running.beam_options import runs_here
from pipeline.running.outcomes import RunFailed, input_error_message
from transforms.runtime import counters


def run_graph(
    build: Callable[[beam.Pipeline], Any],
    options: PipelineOptions,
    stages: Sequence[progress.Stage],
) -> Mapping[str, int] | None:
    """Builds a graph and runs it to its end.

    Returns:
        The run's counters by name; None where the graph was only built, for a template or a dry
        run.

    Raises:
        RunFailed: something that the user can mend ended the run, or it did not end well.
    """
    _quieten(options)
    pipeline = beam.Pipeline(options=options)
    build(pipeline)
    counters.reset()
    # The loaded models and the graph stay while the run lasts, as the modules do; see `cli`.
    gc.freeze()
    watch = progress.Watch()
    try:
        with progress.shown(stages, watch):
            result = pipeline.run()
            if _is_only_built(result, options):
                return None
            if not runs_here(options):
                watch.follow(result)
            state = str(result.wait_until_finish())  # a state's name
    except Exception as error:
        message = input_error_message(error)
        if message is None and type(error).__name__ == "DataflowRuntimeException":
            message = f"{' '.join(str(error).split())}: see the job's logs"
        if message is None:
            raise
        raise RunFailed(message) from error
    if state != "DONE":
        raise RunFailed(f"the run ended as {state}: see the runner's own logs")
    # Worker processes keep no counts here, and have reported them all by now.
    watch.follow(result)
    return watch.counts()


def _quieten(options: PipelineOptions) -> None:
    if runs_here(options):
        # The runner logs a worker's exception, with the whole graph's trace, before it raises the
        # same.
        for name in (
            "apache_beam.runners.common",
            "apache_beam.runners.worker",
            "apache_beam.runners.portability",
        ):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    # It warns that it starts and ends another runner's program.
    logging.getLogger("apache_beam.utils.subprocess_server").setLevel(logging.ERROR)


def _is_only_built(result: Any, options: PipelineOptions) -> bool:
    """Whether nothing runs, for a template or a dry run; prints the job of a dry run."""
    if options.view_as(GoogleCloudOptions).template_location:
        return True
    if not options.view_as(TestOptions).dry_run:
        return False
    if hasattr(result, "job"):
        print(dry_run.describe(result.job, options.get_all_options()))
    return True
