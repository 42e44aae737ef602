"""One graph, run: Beam's options, the runner, the watch over it, and what is told when it fails.

Everything that a correct result needs happens inside the graph; what follows `run` only prints. So
the same program serves a Flex Template's launcher, which keeps the graph and runs nothing after it.
"""

from __future__ import annotations

import gc
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    TestOptions,
    _BeamArgumentParser,
)
from apache_beam.runners.runner import create_runner

from pipeline.flags.messages import with_flags
from pipeline.running import dry_run, progress
from transforms.core.errors import InputError
from transforms.runtime import counters
from transforms.storage import manifests
from transforms.storage.manifests import Manifest

# Named in full, because `DirectRunner` is a switch that may fetch another runner's program from the
# network.
IN_PROCESS = "FnApiRunner"

_M = TypeVar("_M", bound=Manifest)


class Crossed(Exception):
    """A run did all it had to, and found more than a threshold allows."""


class RunFailed(Exception):
    """A run was started and ended without a result; the message is the one line for the user."""


def beam_options(flags: Sequence[str]) -> PipelineOptions:
    """Beam's options from the flags that are not ours; the in-process runner unless another is
    named.

    Raises:
        InputError: Beam does not know a flag, the runner is not one that takes flags of its own,
            and no template's launcher gave it.
    """
    options = PipelineOptions(list(flags))
    standard = options.view_as(StandardOptions)
    standard.runner = standard.runner or IN_PROCESS
    try:
        create_runner(standard.runner)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"--runner={standard.runner} is not a runner that Apache Beam knows here: {error}"
        ) from error
    if standard.runner in (IN_PROCESS, "DirectRunner", "DataflowRunner", "PrismRunner"):
        known = _BeamArgumentParser(add_help=False, allow_abbrev=False)
        for kind in PipelineOptions.__subclasses__():
            kind._add_argparse_args(known)
        _, unknown = known.parse_known_args(list(flags))
        # A template's launcher passes parameters that were checked before, and what its service
        # adds; nobody there could mend it.
        if unknown and not options.view_as(GoogleCloudOptions).template_location:
            raise InputError(f"unknown flag {unknown[0]}: neither tracin nor Apache Beam has it")
    # The programs are installed packages: nothing of __main__ is needed on workers.
    options.view_as(SetupOptions).save_main_session = False
    # Else what is looked at before the graph is built would be read with other credentials than
    # these options name.
    FileSystems.set_options(options)
    return options


def processes_per_machine(options: PipelineOptions) -> int | None:
    """How many worker processes share a machine: known on the in-process runner, else None for one
    per processor.
    """
    if options.view_as(StandardOptions).runner != IN_PROCESS:
        return (
            1
            if "no_use_multiple_sdk_containers"
            in (options.get_all_options().get("experiments") or [])
            else None
        )
    direct = options.view_as(DirectOptions)
    return (
        int(direct.direct_num_workers or 0) or None
        if direct.direct_running_mode == "multi_processing"
        else 1
    )


def run_graph(
    build: Callable[[beam.Pipeline], Any],
    options: PipelineOptions,
    stages: Sequence[progress.Stage],
) -> Mapping[str, int] | None:
    """Builds a graph and runs it to its end; returns its counters by name, or None where it was
    only built, for a template or a dry run.

    Raises:
        RunFailed: the run was ended by something that the user can mend, or did not end well.
    """
    local = options.view_as(StandardOptions).runner == IN_PROCESS
    if local:
        # It logs a worker's exception, with the whole graph's trace, before it raises the same.
        for name in (
            "apache_beam.runners.common",
            "apache_beam.runners.worker",
            "apache_beam.runners.portability",
        ):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    # It warns that it starts and ends another runner's program.
    logging.getLogger("apache_beam.utils.subprocess_server").setLevel(logging.ERROR)
    pipeline = beam.Pipeline(options=options)
    build(pipeline)
    counters.reset()
    # Neither do the loaded models and the graph go away while it runs; see `cli`.
    gc.freeze()
    watch = progress.Watch()
    try:
        with progress.shown(stages, watch):
            result = pipeline.run()
            if options.view_as(GoogleCloudOptions).template_location:
                return None
            if options.view_as(TestOptions).dry_run:
                if hasattr(result, "job"):
                    print(dry_run.describe(result.job, options.get_all_options()))
                return None
            if not local:
                watch.follow(result)
            state = str(result.wait_until_finish())  # a state's name
    except Exception as error:
        told = _told(error)
        if told is None and type(error).__name__ == "DataflowRuntimeException":
            told = f"{' '.join(str(error).split())}: see the job's logs"
        if told is None:
            raise
        raise RunFailed(told) from error
    if state != "DONE":
        raise RunFailed(f"the run ended as {state}: see the runner's own logs")
    # Worker processes keep no counts here, and have told them all by now.
    watch.follow(result)
    return watch.counts()


def _told(error: BaseException) -> str | None:
    """The message of the InputError that ended a run, out of the text that a runner made of it."""
    if isinstance(error, InputError):
        text = str(error)
    else:
        # The traceback of the last exception of a chain; what was handled on the way stands before
        # it.
        last = re.split(
            r"During handling of the above exception, another exception occurred", str(error)
        )[-1]
        found = re.findall(
            r"^(?:\w+\.)*InputError: (.*)$", last.replace("\\n", "\n"), flags=re.MULTILINE
        )
        if not found:
            return None
        text = found[-1]
    return re.split(r" \[while running ", text)[0].strip()


def read_back(directory: str, kind: type[_M]) -> _M:
    """The manifest that a run has committed.

    Raises:
        RunFailed: it is not there.
    """
    try:
        return manifests.read(directory, kind, "output")
    except InputError as error:
        raise RunFailed(str(error)) from error


def read_back_kind(directory: str, kind: str) -> Manifest:
    """The manifest that a run has committed, of a directory of this kind.

    Raises:
        RunFailed: it is not there.
    """
    try:
        return manifests.read_kind(directory, "output", kind)
    except InputError as error:
        raise RunFailed(str(error)) from error


def exit_with(command: str, run: Callable[[], None]) -> int:
    """Runs a command's body and turns what it raises into a line on standard error and an exit
    status.

    0 where it is done, 2 where something that the user gave kept it from being started, 1 where a
    run failed, 3 where it is done and crosses a threshold that it is told to fail at.
    """
    try:
        run()
    except Crossed as error:
        print(f"tracin {command}: {with_flags(str(error))}", file=sys.stderr)
        return 3
    except RunFailed as error:
        print(f"tracin {command}: failed: {with_flags(str(error))}", file=sys.stderr)
        return 1
    except InputError as error:
        print(f"tracin {command}: {with_flags(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"tracin {command}: stopped", file=sys.stderr)
        return 130
    return 0
