"""The command line of a night."""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Callable, Sequence

import google.auth
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage

from pipeline.nightly.argument import NightlyConfig, read_argument
from pipeline.nightly.run import NightlyRun
from pipeline.nightly.services import SERVICE_ERRORS, Dataflow, Results
from transforms.core.errors import InputError, first_line

# By the status of an outcome. Drift differs from failure: everything is complete, somebody should
# look at the report, and another run would change nothing.
EXIT_STATUS = {"done": 0, "failed": 1, "drift": 3}
WRONG_ARGUMENT = 2

_EPILOG = """exit status:
  0  everything is complete
  1  a step failed
  2  the argument is wrong; nothing was launched
  3  drift: everything is complete, and the audit crosses a threshold
"""


def connect(config: NightlyConfig) -> tuple[Dataflow, Results]:
    """Returns the services, with the default credentials of where this runs.

    Raises:
        InputError: no project is named and the credentials have none.
    """
    credentials, default = google.auth.default(
        scopes=["https://www.googleapis.com/auth/cloud-platform"]
    )
    project = config.project or default
    if not project:
        raise InputError("`project` is not set, and the credentials name none")
    client = storage.Client(project=project, credentials=credentials)
    return (
        Dataflow(AuthorizedSession(credentials), project, config.region),
        Results(client, config.bucket),
    )


def main(
    argv: Sequence[str] | None = None,
    connect: Callable[[NightlyConfig], tuple[Dataflow, Results]] = connect,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> int:
    """Runs a night and returns the exit status.

    Args:
        argv: the words of the command line.
        connect: returns the services that a configuration names.
        sleep: waits so many seconds.
        clock: seconds since the epoch.
    """
    args = _parser().parse_args(argv)
    today = datetime.datetime.fromtimestamp(clock(), datetime.timezone.utc).date().isoformat()
    try:
        config = read_argument(args.argument, args.date, today)
        dataflow, results = connect(config)
        run = NightlyRun(config, dataflow, results, sleep, clock, args.execution, _emit)
        if args.dry_run:
            run.describe()
            return 0
        outcome = run.run()
    except InputError as error:
        print(f"pipeline.nightly: {error}", file=sys.stderr)
        return WRONG_ARGUMENT
    except SERVICE_ERRORS as error:
        print(f"pipeline.nightly: {first_line(error)}", file=sys.stderr)
        return EXIT_STATUS["failed"]
    _emit(outcome.message)
    return EXIT_STATUS[outcome.status]


def _emit(line: str) -> None:
    # A log shows an event when it happens, not when a buffer is full.
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.nightly",
        description="Runs a night: features, influence and audit, each a Dataflow job. What is "
        "complete is not done again.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "argument", metavar="ARGUMENT", help="a JSON object, or a file that holds one"
    )
    parser.add_argument("--date", help="of the night, in UTC; the argument's, or today's")
    parser.add_argument(
        "--execution",
        default="",
        metavar="NAME",
        help="of the schedule's execution; when it runs this again, it gets the same outcome",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="print what would be launched, and launch nothing"
    )
    return parser
