"""The command line: `tracin COMMAND --flag=value …`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from pipeline.flags import parser
from pipeline.flags.declarations.commands import COMMANDS
from pipeline.running.loading import loading


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the words after the program's name; those of the process if None.

    Returns:
        The exit status: 0 where it is done, 1 where the run failed, 2 where nothing was started, 3
        where a threshold was crossed.
    """
    try:
        status = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read has seen enough, as `head` does; nothing more can be printed, not even at the
        # end of the program.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def _main(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    command, *rest = words
    if command == "--version":
        from importlib.metadata import version

        print(f"tracin-beam {version('tracin-beam')}")
        return 0
    if command not in COMMANDS:
        print(
            f"tracin: there is no command {command!r}; the commands are {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    # Flags are checked before anything heavy is imported.
    parser.parse(command, rest)
    return _run(command, rest)


def _run(command: str, words: Sequence[str]) -> int:
    computes = COMMANDS[command].computes
    with loading("TensorFlow and Apache Beam" if computes else "Apache Beam"):
        module = importlib.import_module(f"pipeline.commands.{command}")
        if computes:
            importlib.import_module("tensorflow").config.list_physical_devices()
    # Where people keep the modules that --parse_fn, --model and --import name. Last, so that it
    # shadows nothing.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    status: int = module.run(words)
    return status


def _usage() -> str:
    commands = "\n".join(f"  {name:<10} {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: tracin COMMAND --flag=value …\n\n"
        "Which training examples made the model say this, and which of them are wrong?\n\n"
        f"commands:\n{commands}\n\n"
        "tracin COMMAND --help lists a command's flags."
    )


if __name__ == "__main__":
    sys.exit(main())
