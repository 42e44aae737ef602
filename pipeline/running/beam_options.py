"""Beam's options, from the flags that are not ours."""

from __future__ import annotations

from collections.abc import Sequence

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    _BeamArgumentParser,
)
from apache_beam.runners.runner import create_runner

from transforms.core.errors import InputError

# Named in full, because `DirectRunner` is a switch that may fetch another runner's program from the
# network.
IN_PROCESS = "FnApiRunner"

# Runners that take no flags of their own, so that an unknown flag is a mistake.
_WITHOUT_FLAGS = (IN_PROCESS, "DirectRunner", "DataflowRunner", "PrismRunner")


def beam_options(flags: Sequence[str]) -> PipelineOptions:
    """Returns Beam's options, with the in-process runner unless another is named.

    Raises:
        InputError: Beam does not know a flag, the runner takes no flags of its own, and no
            template's launcher gave it.
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
    # A template's launcher passes parameters that were checked before, and what its service adds;
    # nobody there could mend it.
    launched = options.view_as(GoogleCloudOptions).template_location
    if standard.runner in _WITHOUT_FLAGS and not launched:
        _check_known(flags)
    # The programs are installed packages: nothing of __main__ is needed on workers.
    options.view_as(SetupOptions).save_main_session = False
    # Files that are read before the graph is built need the credentials that these options name.
    FileSystems.set_options(options)
    return options


def _check_known(flags: Sequence[str]) -> None:
    parser = _BeamArgumentParser(add_help=False, allow_abbrev=False)
    for kind in PipelineOptions.__subclasses__():
        kind._add_argparse_args(parser)
    _, unknown = parser.parse_known_args(list(flags))
    if unknown:
        raise InputError(f"unknown flag {unknown[0]}: neither tracin nor Apache Beam has it")


def runs_here(options: PipelineOptions) -> bool:
    """Whether the in-process runner runs the graph."""
    return bool(options.view_as(StandardOptions).runner == IN_PROCESS)


def processes_per_machine(options: PipelineOptions) -> int | None:
    """Returns how many worker processes share a machine; None for one per processor of a machine
    that is not known.
    """
    if not runs_here(options):
        experiments = options.get_all_options().get("experiments") or []
        return 1 if "no_use_multiple_sdk_containers" in experiments else None
    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode != "multi_processing":
        return 1
    return int(direct.direct_num_workers or 0) or None
